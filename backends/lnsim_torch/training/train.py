"""One training loop for every network: GD, SGD and SAM, with or without label noise.

A step takes a batch (batches.py), in which labels may have been flipped (the paper's Algorithm 1)
or targets been given noise, and moves the weights against the gradient g of the mean loss,

    theta <- theta - lr g(theta)                                 GD, SGD
    theta <- theta - lr g(theta + rho g(theta) / |g(theta)|)       SAM, both on the same batch

with momentum and weight decay as in torch.optim.SGD.  The losses of outputs f : (B, C), with the
one-hot targets y (and noise, sigma times +-1, on every entry of them), are

    "squared"          (1 / 2BC) sum (f - y)^2      as in lnsim/images/erf_network.py
    "cross_entropy"    -(1 / B) sum log softmax(f)_label

What is recorded is of clean labels, in eval mode.  A run depends on its Plan, its data and the
network it starts from; not on when it records, nor (on the CPU, bit for bit) on having been stopped
and resumed, nor on torch's generators: what the network draws (dropout) is addressed by the plan's
seed and the step, and both gradients of SAM see the same draws (randomness.py).  Of a network only
parameters and buffers are kept; one that keeps numbers elsewhere can be trained, but not resumed.

Several arms (values of tau, seeds) are calls on one `Data`, placed once, in a row or in a thread
each: images and compiled code are shared.  In threads, networks that may draw take turns at their
steps.  Under torchrun see distributed.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lnsim.run.loop import drive, record_steps
from lnsim.run.record import Status
from lnsim.run.resume import check_before, count_kept
from lnsim_torch.distributed import group, synchronised
from lnsim_torch.samples import Data, place
from lnsim_torch.training.augment import crop_and_flip
from lnsim_torch.training.batches import MOST_CLASSES, Batch, batches
from lnsim_torch.training.evaluation import evaluate, inputs, outputs, summed_loss, sums
from lnsim_torch.training.plan import PLAIN, Execution, Plan
from lnsim_torch.training.progress import of_training
from lnsim_torch.training.randomness import RECORD, STEP, Randomness
from lnsim_torch.training.state import buffers_kept, check_kept, put_back, tensors, to_array

__all__ = ["Data", "Execution", "Plan", "Result", "evaluate", "place", "smoothed", "train"]

MEASURES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
"""What is recorded beside `step`, and beside what `observe` gives."""

Observe = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True)
class Result:
    """What a run gave, in plain arrays: a Trajectory can hold them, and an .npz file.

    records: `step` and, of the same shape (records,), MEASURES, `smoothed_test_accuracy`, and what
    was observed.  state: all that is needed to go on.  status: OK, STOPPED, or DIVERGED at the
    record where a loss was not finite; that record is left out.
    """

    records: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    status: Status


def train(
    network: nn.Module,
    data: Data,
    plan: Plan,
    execution: Execution = PLAIN,
    *,
    observe: Observe | None = None,
    progress: bool | str | Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    each: Callable[[], object] | None = None,
    checkpoint: Callable[[Result], object] | None = None,
    checkpoint_every: float = 60.0,
    resume: Result | None = None,
) -> Result:
    """Trains `network`, in place, on `data` (see `place`), and leaves it there in eval mode.

    Recorded at steps 0, record_every, ..., and the last, with what `observe(network, step)` gives;
    what that draws is seeded as what the network draws.
    `progress`: True for a bar, a text for a bar with this label, or a function called with the
    steps done.  `stop` is asked at every record, `each` is called after every step, and may raise;
    `checkpoint` is called with the result so far, at the first record and then at one when
    `checkpoint_every` seconds have passed.  `resume`: a result of the same plan that ended earlier,
    of which only `steps` may have been changed; the network must be of the same kind, its weights
    are replaced.

    Raises ValueError or TypeError for bad input, and ValueError where memory does not suffice.
    """
    if not isinstance(data, Data):
        raise TypeError(f"data must be images that `place` has placed, got {type(data).__name__}")
    # Also where the caller has turned gradients off.
    with _naming_memory(data, plan), torch.inference_mode(False), torch.enable_grad():
        run = _Run(network, data, plan, execution, observe)
        step = 0 if resume is None else run.restore(resume)
        leader = group().rank == 0
        shown = of_training(progress if leader else None, run.images_a_step, plan.steps, step)
        with synchronised(network), shown as reports:
            run.show = reports.record

            def report(step: int) -> None:
                reports.step(step)
                if each is not None:
                    each()

            # What one process decides, all do.
            return drive(
                run, step, plan.steps, report=report,
                stop=None if stop is None else lambda: group().any(stop(), data.device),
                checkpoint=checkpoint if leader else None, checkpoint_every=checkpoint_every,
            )  # fmt: skip


def smoothed(values: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """Exponential moving average along `values` : (R,), each weighted `smoothing` times the next.

    The weights add up to 1 from the start, so that the first value has no more than its share.
    """
    result, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = smoothing * total + value, smoothing * weight + 1.0
        result[i] = total / weight
    return result


class _Run:
    """A network in training: what moves it, and what is known of it."""

    diverged_at: int | None = None

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        plan: Plan,
        execution: Execution,
        observe: Observe | None,
    ) -> None:
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        _check(self.parameters, data, plan, execution)
        check_kept(network)
        self.network, self.data, self.plan, self.execution = network, data, plan, execution
        self.randomness = Randomness(network, plan.seed, data.device)
        network.to(data.device)
        if execution.channels_last:
            _check_layout(network, data.device)
            network.to(memory_format=torch.channels_last)
        self.dtype = self.parameters[0].dtype
        with self.randomness.of(RECORD, 0), buffers_kept(network):
            _check_outputs(network, data, self.dtype)
        # One code for each size of batch: they are few.
        self.forward = torch.compile(network, dynamic=False) if execution.compile else network
        self.optimizer = torch.optim.SGD(
            self.parameters, plan.lr, plan.momentum, weight_decay=plan.weight_decay
        )
        self.measured = data.train.spaced(plan.train_measured)
        n = len(data.train)
        full = plan.batch_size in (0, n)
        self.images_a_step = n if full else n / math.ceil(n / plan.batch_size)
        # The full batch is the same in every step, unless it is augmented.
        self.whole = self._inputs(group().share(0, n)) if full and not plan.augment else None
        self.planned = record_steps(plan.steps, plan.record_every)
        self.rows: list[dict[str, float]] = []
        self._observe = observe
        self.show: Callable[[Mapping[str, float]], object] = lambda values: None

    def _inputs(self, chosen: Tensor | slice) -> Tensor:
        return inputs(self.data.train, chosen, self.dtype, self.execution)

    def events(self, step: int) -> list[int]:
        """The steps that are still to be recorded; what is drawn is drawn from `step` on."""
        self._batches = self._draws(step)
        return self.planned[len(self.rows) :]

    def advance(self, step: int, target: int) -> Iterator[int]:
        """Trains, step by step."""
        self.network.train()
        for at in range(step, target):
            self._descend(next(self._batches), at)
            yield at + 1

    def observe(self, step: int) -> bool:
        """Takes down MEASURES and what the caller observes; nothing where a loss is not finite."""
        self.network.eval()
        with self.randomness.of(RECORD, step):
            values = self._measure()
            if not all(map(math.isfinite, values.values())):
                self.diverged_at = step
                return False
            seen = self._observe(self.network, step) if self._observe else {}
        self.rows.append({"step": step, **values, **seen})
        self.show(values)
        return True

    def _draws(self, step: int) -> Iterator[Batch]:
        """The batches from `step` on."""
        plan, data = self.plan, self.data
        return batches(
            data.train.labels, data.classes, size=plan.batch_size, seed=plan.seed, tau=plan.tau,
            flip=plan.flip, signs=plan.sigma > 0, moved=plan.augment, step=step, device=data.device,
        )  # fmt: skip

    def _descend(self, batch: Batch, step: int) -> None:
        """Takes step number `step`."""
        size = len(batch.samples)
        mine = batch.part(group().share(0, size))
        x = self._inputs(mine.samples) if self.whole is None else self.whole
        if mine.moved is not None:
            x = crop_and_flip(x, mine.moved)
        noise = None if mine.signs is None else self.plan.sigma * mine.signs
        with self.randomness.of(STEP, step):
            self._gradient(x, mine.labels, noise, size)
        if self.plan.rho > 0:
            climbed = _climbed(self.network, self.parameters, self.plan.rho)
            with climbed, self.randomness.of(STEP, step):
                self._gradient(x, mine.labels, noise, size)
        self.optimizer.param_groups[0]["lr"] = self.plan.lr_at(step)
        self.optimizer.step()

    def _gradient(self, x: Tensor, labels: Tensor, noise: Tensor | None, size: int) -> None:
        """Leaves the gradient of the mean loss, over all `size` samples, in the parameters."""
        self.optimizer.zero_grad()
        f = outputs(self.forward, x, self.execution)
        (summed_loss(f, labels, self.plan.loss, noise) / size).backward()
        group().add_up(_gradients(self.parameters))

    def _measure(self) -> dict[str, float]:
        """MEASURES of the network as it is.  All is added up on the device, and read once."""
        sets = (self.measured, self.data.test)
        with buffers_kept(self.network):
            totals = torch.stack(
                [sums(self.forward, s, self.plan.loss, self.dtype, self.execution) for s in sets]
            )
        group().add_up([totals])
        (train_loss, train_right), (test_loss, test_right) = totals.tolist()
        n, n_test = map(len, sets)
        means = (train_loss / n, test_loss / n_test, train_right / n, test_right / n_test)
        return dict(zip(MEASURES, means, strict=True))

    def result(self, status: Status) -> Result:
        """The records so far, and the state after `status.step` steps."""
        rows = self.rows
        names = rows[0] if rows else ("step", *MEASURES)
        records = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
        records["step"] = records["step"].astype(np.int64)
        accuracy = records["test_accuracy"]
        records["smoothed_test_accuracy"] = smoothed(accuracy, self.plan.smoothing)
        state = {name: to_array(tensor) for name, tensor in self._tensors().items()}
        state |= {"step": np.array(status.step), "steps": np.array(self.plan.steps)}
        return Result(records, state, status)

    def restore(self, earlier: Result) -> int:
        """Takes over the state of `earlier`, and its records as far as planned; gives its step."""
        step = earlier.status.step
        check_before(earlier.status, self.plan.steps)
        _check_schedule(earlier, self.plan)
        names = [name for name in earlier.records if name != "smoothed_test_accuracy"]
        columns = [earlier.records[name].tolist() for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        planned = set(self.planned)
        rows = [row for row in rows if row["step"] in planned]
        self.rows = rows[: count_kept([row["step"] for row in rows], self.planned, step)]
        held = self._tensors()
        for name in earlier.state:
            if name.startswith("network.") and name not in held:
                raise ValueError(f"cannot resume: the network has no {name!r} of the earlier run")
        put_back(earlier.state, held)
        return step

    def _tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name."""
        held = {f"network.{name}": tensor for name, tensor in tensors(self.network).items()}
        if self.plan.momentum > 0:
            for i, p in enumerate(self.parameters):
                state = self.optimizer.state[p]
                held[f"momentum.{i}"] = state.setdefault("momentum_buffer", torch.zeros_like(p))
        return held


@contextmanager
def _climbed(network: nn.Module, parameters: list[Tensor], rho: float) -> Iterator[None]:
    """Inside, the parameters are `rho` further along their gradient; afterwards as before.

    Running statistics too are as before: they are those of the first pass.
    """
    with torch.no_grad():
        before = [p.clone() for p in parameters]
        gradients = _gradients(parameters)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        factor = rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        moving = [p for p in parameters if p.grad is not None]
        torch._foreach_add_(moving, torch._foreach_mul(gradients, factor))
    with buffers_kept(network):
        yield
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


@contextmanager
def _naming_memory(data: Data, plan: Plan) -> Iterator[None]:
    """Says what to lower where memory does not suffice."""
    try:
        yield
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        size = plan.batch_size or len(data.train)
        raise ValueError(
            f"not enough memory on {data.device} for batch_size {size}:"
            " lower batch_size, or the network's width"
        ) from error


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check(parameters: list[Tensor], data: Data, plan: Plan, execution: Execution) -> None:
    """Refuses what does not go together."""
    if not parameters:
        raise ValueError("network must have parameters that require grad, and has none")
    if any(p.is_inference() for p in parameters):
        raise ValueError("network must be made outside inference_mode: it cannot be trained")
    execution.check(data.device.type)
    n, processes = len(data.train), group().size
    if plan.batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} samples, got {plan.batch_size}")
    if (plan.batch_size or n) < processes:
        raise ValueError(
            f"batch_size must be at least the {processes} processes, got {plan.batch_size or n}"
        )
    if plan.sigma > 0 and data.classes > MOST_CLASSES:
        raise ValueError(f"sigma must be 0 with over {MOST_CLASSES} classes, got {plan.sigma}")
    if plan.augment and data.train.images.ndim != 4:
        raise ValueError(
            "augment needs images (N, height, width, channels),"
            f" got shape {tuple(data.train.images.shape)}"
        )


def _check_layout(network: nn.Module, device: torch.device) -> None:
    """Refuses what crashes: oneDNN in torch 2.13 and 2.15 writes past the end of its memory.

    It does so in the backward pass of strided 1x1 convolutions of few channels, channels last.
    """
    for name, module in network.named_modules():
        strided = isinstance(module, nn.Conv2d) and max(module.stride) > max(module.kernel_size)
        if strided and device.type == "cpu":
            raise ValueError(
                f"channels_last must be off on cpu: {name!r} is a strided 1x1 convolution"
            )


@torch.no_grad()
def _check_outputs(network: nn.Module, data: Data, dtype: torch.dtype) -> None:
    """Refuses a network that does not take the images, or has other outputs than classes."""
    x = data.train.inputs(slice(0, 1), dtype)
    try:
        f = network.eval()(x)
    except RuntimeError as error:
        if _out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"network does not take images {tuple(x.shape[1:])}: {reason}") from error
    if f.shape != (1, data.classes):
        raise ValueError(
            f"network must give {data.classes} outputs, one a class, got {tuple(f.shape[1:])}"
        )


def _check_schedule(earlier: Result, plan: Plan) -> None:
    """Refuses to go on by a schedule that was made for another number of steps."""
    steps = int(earlier.state.get("steps", plan.steps))
    if plan.schedule != "constant" and steps != plan.steps:
        raise ValueError(
            f"cannot resume: the schedule {plan.schedule} was of {steps} steps, not {plan.steps}"
        )
