"""One training loop for every network: GD, SGD and SAM, with or without label noise.

A step takes a batch (batches.py), whose labels may be flipped (the paper's Algorithm 1) or whose
targets may have noise, and moves the weights against the gradient g of the mean loss,

    theta <- theta - lr g(theta)                                 GD, SGD
    theta <- theta - lr g(theta + rho g(theta) / |g(theta)|)       SAM, both on the same batch

with momentum and weight decay as in torch.optim.SGD (sam.py has SAM's other forms).  The losses of
outputs f : (B, C) and one-hot targets y (plus noise, sigma times +-1, on every entry) are

    "squared"          (1 / 2BC) sum (f - y)^2      as in lnsim/images/erf_network.py
    "cross_entropy"    -(1 / B) sum log softmax(f)_label

Records use clean labels and eval mode.  A run depends on its Recipe, its data, its initial network
and, where processes perturb each by its own share, their number.  It does not depend on when it
records, on whether it was stopped and resumed (on the CPU, bit for bit), or on the state of torch's
generators: the recipe's seed and the step determine what the network draws (dropout), and both
gradients of SAM use the same draws (randomness.py).  A checkpoint holds parameters and buffers
only; a network with state elsewhere can be trained, but not resumed.

Several arms (values of tau, seeds) are calls of `train` on one `Data`, one after the other or each
in its own thread: they share images and compiled code.  In threads, networks that may draw random
numbers take their steps in turn.  For torchrun see distributed.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
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
from lnsim_torch.training import fused
from lnsim_torch.training.augment import crop_and_flip
from lnsim_torch.training.batches import Batch, batches
from lnsim_torch.training.checks import (
    check_layout,
    check_outputs,
    check_run,
    memory_errors_explained,
)
from lnsim_torch.training.evaluation import evaluate, inputs, outputs, summed_loss, sums
from lnsim_torch.training.progress import training_progress
from lnsim_torch.training.randomness import RECORD, STEP, Randomness
from lnsim_torch.training.recipe import PLAIN, Execution, Recipe
from lnsim_torch.training.sam import AddGradient, MicroBatch, StepGradient
from lnsim_torch.training.state import (
    buffers_restored,
    check_no_extra_state,
    restore_tensors,
    tensors,
    to_array,
)

__all__ = ["Data", "Execution", "Recipe", "Result", "evaluate", "place", "smoothed", "train"]

MEASURES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
"""The quantities of every record, besides `step` and the values that `observe` returns."""

Observe = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True)
class Result:
    """The result of a run in plain arrays, as a Trajectory or an .npz file can hold them.

    records: `step`, MEASURES, `smoothed_test_accuracy` and the values of `observe`, each
    (records,).  state: everything needed to resume.  status: OK, STOPPED, or DIVERGED at the record
    where a loss was not finite; that record is omitted.
    """

    records: Mapping[str, NDArray[Any]]
    state: Mapping[str, NDArray[Any]]
    status: Status


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
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

    Records steps 0, record_every, ..., and the last one, with the values that
    `observe(network, step)` returns; its random draws are seeded like those of the network.
    `progress`: True for a bar, a string for a bar with this label, or a function called with the
    number of steps done.  `stop` is asked at every record.  `each` is called after every step, and
    may raise.  `checkpoint` is called with the result so far at the first record, and then at the
    first record after every `checkpoint_every` seconds.  `resume`: an earlier result of the same
    recipe, except for `steps`; the network must have the same architecture, and its weights are
    replaced.

    Raises ValueError or TypeError for bad input, and ValueError where memory runs out.
    """
    if not isinstance(data, Data):
        raise TypeError(f"data must be the Data that `place` returns, got {type(data).__name__}")
    # Gradients are on even if the caller has turned them off.
    with memory_errors_explained(data, recipe), torch.inference_mode(False), torch.enable_grad():
        run = _Run(network, data, recipe, execution, observe)
        step = 0 if resume is None else run.restore(resume)
        leader = group().rank == 0
        shown = training_progress(
            progress if leader else None, run.images_per_step, recipe.steps, step
        )
        shared = not run.gradient.division.is_dealt
        with synchronised(network) if shared else nullcontext(), shown as reports:
            run.show = reports.record

            def report(step: int) -> None:
                reports.step(step)
                if each is not None:
                    each()

            # All processes stop if one of them is asked to.
            return drive(
                run, step, recipe.steps, report=report,
                stop=None if stop is None else lambda: group().any(stop(), data.device),
                checkpoint=checkpoint if leader else None, checkpoint_every=checkpoint_every,
            )  # fmt: skip


def smoothed(values: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """Exponential moving average of `values` : (R,), with weights smoothing^k / sum.

    k counts back from the latest value.  The weights add up to 1 from the start.
    """
    result, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = smoothing * total + value, smoothing * weight + 1.0
        result[i] = total / weight
    return result


class _Run:
    """A network in training, with its optimizer, its batches and its records."""

    diverged_at: int | None = None

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        recipe: Recipe,
        execution: Execution,
        observe: Observe | None,
    ) -> None:
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        check_run(self.parameters, data, recipe, execution)
        check_no_extra_state(network)
        self.network, self.data, self.recipe, self.execution = network, data, recipe, execution
        self.randomness = Randomness(network, recipe.seed, data.device)
        network.to(data.device)
        if execution.channels_last:
            check_layout(network, data.device)
            network.to(memory_format=torch.channels_last)
        self.dtype = self.parameters[0].dtype
        with self.randomness.of(RECORD, 0), buffers_restored(network):
            check_outputs(network, data, self.dtype)
        # Compiled once for each batch size: there are few.
        self.forward = torch.compile(network, dynamic=False) if execution.compile else network
        self.step_forward = self.forward if execution.compile else fused.forward_of(network)
        self.optimizer = torch.optim.SGD(
            self.parameters,
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            foreach=True,
        )
        self.measured = data.train.spaced(recipe.train_measured)
        n = len(data.train)
        full = recipe.batch_size in (0, n)
        self.images_per_step = n if full else n / math.ceil(n / recipe.batch_size)
        self.gradient = StepGradient(network, self.parameters, recipe, n)
        self.full_batch: Tensor | None = None
        if full and not recipe.augment and self.gradient.division.is_whole:
            # It is the same in every step.
            self.full_batch = self._inputs(group().share(0, n))
        self.steps_to_record = record_steps(recipe.steps, recipe.record_every)
        self.rows: list[dict[str, float]] = []
        self._observe = observe
        self.show: Callable[[Mapping[str, float]], object] = lambda values: None

    def _inputs(self, chosen: Tensor | slice) -> Tensor:
        return inputs(self.data.train, chosen, self.dtype, self.execution)

    def events(self, step: int) -> list[int]:
        """The steps that are still to be recorded; the batches begin at `step`."""
        self._batches = self._batches_from(step)
        return self.steps_to_record[len(self.rows) :]

    def advance(self, step: int, target: int) -> Iterator[int]:
        """Trains from `step` to `target`; yields the number of steps done after each step."""
        self.network.train()
        for current in range(step, target):
            self._descend(next(self._batches), current)
            yield current + 1

    def observe(self, step: int) -> bool:
        """Records MEASURES and the values of `observe`; False where a loss is not finite."""
        self.network.eval()
        with self.randomness.of(RECORD, step):
            values = self._measure()
            if not all(map(math.isfinite, values.values())):
                self.diverged_at = step
                return False
            observed = self._observe(self.network, step) if self._observe else {}
        self.rows.append({"step": step, **values, **observed})
        self.show(values)
        return True

    def _batches_from(self, step: int) -> Iterator[Batch]:
        recipe, data = self.recipe, self.data
        return batches(
            data.train.labels, data.classes, size=recipe.batch_size, seed=recipe.seed,
            tau=recipe.tau, flip=recipe.flip, signs=recipe.sigma > 0, moves=recipe.augment,
            step=step, device=data.device,
        )  # fmt: skip

    def _descend(self, batch: Batch, step: int) -> None:
        """Takes step number `step` on `batch`."""
        size = len(batch.samples)
        self.gradient.set(size, lambda micro_batch: self._prepared(batch, micro_batch, step))
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr_at(step)
        self.optimizer.step()

    def _prepared(self, batch: Batch, micro_batch: MicroBatch, step: int) -> AddGradient:
        """What adds the gradient of the loss on a micro-batch of the batch of this step."""
        share = batch.part(micro_batch.mine)
        x = self._inputs(share.samples) if self.full_batch is None else self.full_batch
        if share.moves is not None:
            x = crop_and_flip(x, share.moves)
        noise = None if share.signs is None else self.recipe.sigma * share.signs

        def add_gradient(divisor: float) -> None:
            with self.randomness.of(STEP, step, micro_batch.draws):
                f = outputs(self.step_forward, x, self.execution)
                loss = summed_loss(f, share.labels, self.recipe.loss, noise)
                (loss / divisor).backward()

        return add_gradient

    def _measure(self) -> dict[str, float]:
        """MEASURES of the network.  The sums stay on the device and are read once."""
        sets = (self.measured, self.data.test)
        with buffers_restored(self.network):
            totals = torch.stack(
                [sums(self.forward, s, self.recipe.loss, self.dtype, self.execution) for s in sets]
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
        records["smoothed_test_accuracy"] = smoothed(accuracy, self.recipe.smoothing)
        state = {name: to_array(tensor) for name, tensor in self._tensors().items()}
        state |= {"step": np.array(status.step), "steps": np.array(self.recipe.steps)}
        if self.recipe.perturbed_by_process:
            state["processes"] = np.array(group().size)
        return Result(records, state, status)

    def restore(self, earlier: Result) -> int:
        """Restores the state and the records of `earlier`; returns its step.

        Keeps only records at steps that this run records too.
        """
        step = earlier.status.step
        check_before(earlier.status, self.recipe.steps)
        _check_schedule(earlier, self.recipe)
        _check_processes(earlier, self.recipe)
        names = [name for name in earlier.records if name != "smoothed_test_accuracy"]
        columns = [earlier.records[name].tolist() for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        to_record = set(self.steps_to_record)
        rows = [row for row in rows if row["step"] in to_record]
        self.rows = rows[: count_kept([row["step"] for row in rows], self.steps_to_record, step)]
        current = self._tensors()
        for name in earlier.state:
            if name.startswith("network.") and name not in current:
                raise ValueError(f"cannot resume: the network has no {name!r} of the earlier run")
        restore_tensors(earlier.state, current)
        return step

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name."""
        by_name = {f"network.{name}": tensor for name, tensor in tensors(self.network).items()}
        if self.recipe.momentum > 0:
            for i, p in enumerate(self.parameters):
                state = self.optimizer.state[p]
                by_name[f"momentum.{i}"] = state.setdefault("momentum_buffer", torch.zeros_like(p))
        return by_name


def _check_schedule(earlier: Result, recipe: Recipe) -> None:
    """Raises ValueError if the learning rate was scheduled for another number of steps."""
    steps = int(earlier.state.get("steps", recipe.steps))
    if recipe.schedule != "constant" and steps != recipe.steps:
        raise ValueError(
            f"cannot resume: the {recipe.schedule} schedule was for {steps} steps,"
            f" not {recipe.steps}"
        )


def _check_processes(earlier: Result, recipe: Recipe) -> None:
    """Raises ValueError if another number of processes perturbed each by its own share."""
    processes = group().size
    before = int(earlier.state.get("processes", processes))
    if recipe.perturbed_by_process and before != processes:
        raise ValueError(
            f"cannot resume: {before} processes perturbed each by its own share, and now there are"
            f" {processes}"
        )
