"""The gradient of a step, where sharpness-aware minimisation perturbs by micro-batches.

A batch of B samples is divided, in its order, into micro-batches of m.  For each, with L its mean
loss, the gradient is taken at weights that its own gradient has moved (m-SAM; Foret et al. 2021,
Andriushchenko and Flammarion 2022),

    g = (1 / B) sum over micro-batches of m grad L(theta + rho grad L / |grad L|)

or, un-normalised, at theta + rho grad L.  m = B is SAM as it is usually written.  The last batch of
an epoch may end in a smaller micro-batch.

Of K processes (distributed.py) each takes whole micro-batches where K m divides B: process r those
in samples r B / K ... (r + 1) B / K - 1.  It perturbs by their gradients without asking the others.
Otherwise all processes share every micro-batch, and sum its gradients.  Either way K processes
equal one, up to rounding; so K processes that each perturb by its own share of the batch equal one
process with m = B / K.

Batch norm normalises by the micro-batch.  The running statistics move once a step, as in a step
without SAM: by the mean of what every micro-batch would have made of those before the step, taken
at the weights before they are moved.  Other buffers of floating-point numbers do the same; one of
integers or booleans has the value that the first micro-batch leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lnsim_torch.distributed import group
from lnsim_torch.training.recipe import Recipe
from lnsim_torch.training.state import buffers_restored


class MicroBatch(NamedTuple):
    """Samples that are perturbed together.

    mine : the positions in the batch of those that this process takes.  size : the number of all of
    them.  divisor : what their summed loss is divided by in the gradient of the step; infinite
    where the micro-batch counts for nothing.  is_first : whether it is the batch's first, and
    counts.  draws : the number of this share of the step's random draws.
    """

    mine: slice
    size: int
    divisor: float
    is_first: bool
    draws: int


AddGradient = Callable[[float], object]
"""Adds to the parameters' gradients those of a summed loss, divided by the argument."""


class Division:
    """How the batches of a run on `samples` are divided into micro-batches, among its processes.

    `is_dealt`: each process takes whole micro-batches.  `is_whole`: a batch is not divided.
    """

    def __init__(self, recipe: Recipe, samples: int) -> None:
        self._processes = group()
        batch = recipe.batch_size or samples
        self._size = recipe.perturbed_together(samples, self._processes.size)
        self._to_a_process = batch // self._processes.size
        self.is_whole = self._size == batch
        self.is_dealt = batch % (self._processes.size * self._size) == 0

    def micro_batches(self, batch: int) -> list[MicroBatch]:
        """Those micro-batches of a batch of this many samples in which this process has a part."""
        return self._dealt(batch) if self.is_dealt else self._shared(batch)

    def _dealt(self, batch: int) -> list[MicroBatch]:
        m, begin = self._size, self._processes.rank * self._to_a_process
        end = min(begin + self._to_a_process, batch)
        parts = []
        for start in range(begin, end, m):
            stop = min(start + m, end)
            mine = slice(start, stop)
            parts.append(MicroBatch(mine, stop - start, batch, start == 0, start // m))
        if not parts:
            # At the end of an epoch a process may be left without samples.  The first micro-batch,
            # counted for nothing, gives it gradients and buffers to add to the others'.
            first = min(m, batch)
            parts.append(MicroBatch(slice(0, first), first, math.inf, False, 0))
        return parts

    def _shared(self, batch: int) -> list[MicroBatch]:
        rank, processes = self._processes
        parts = []
        for i, start in enumerate(range(0, batch, self._size)):
            stop = min(start + self._size, batch)
            mine = self._processes.share(start, stop)
            parts.append(MicroBatch(mine, stop - start, batch, i == 0, i * processes + rank))
        return parts


class StepGradient:
    """The gradient by which a run on `samples` trains the `parameters` of `network`."""

    def __init__(
        self, network: nn.Module, parameters: list[Tensor], recipe: Recipe, samples: int
    ) -> None:
        self._network, self._parameters, self._recipe = network, parameters, recipe
        self.division = Division(recipe, samples)

    def set(self, batch: int, prepare: Callable[[MicroBatch], AddGradient]) -> None:
        """Sets the parameters' gradients to those of a step on a batch of this many samples.

        `prepare` fetches a micro-batch, and returns what adds the gradient of its loss.
        """
        division = self.division
        self._take_gradients()
        statistics = None if division.is_whole else _Statistics(self._network)
        for micro_batch in division.micro_batches(batch):
            add_gradient = prepare(micro_batch)
            if self._recipe.rho == 0:
                add_gradient(micro_batch.divisor)
            elif statistics is None:
                self._add_perturbed(micro_batch, add_gradient)
            else:
                with statistics.moved_by(micro_batch):
                    self._add_perturbed(micro_batch, add_gradient)
        group().add_up(self._gradients())
        if statistics is not None:
            statistics.move(over_processes=division.is_dealt)

    def _add_perturbed(self, micro_batch: MicroBatch, add_gradient: AddGradient) -> None:
        """Adds the gradient of a micro-batch's loss at the weights that its gradient has moved."""
        before = self._take_gradients()
        add_gradient(micro_batch.size)
        if not self.division.is_dealt:
            group().add_up(self._gradients())
        with self._ascended():
            for p, gradient in zip(self._parameters, before, strict=True):
                p.grad = gradient
            add_gradient(micro_batch.divisor)

    @contextmanager
    def _ascended(self) -> Iterator[None]:
        """Inside, the parameters are moved along their gradient by `rho`; afterwards as before.

        The running statistics stay those of the first pass.
        """
        with torch.no_grad():
            before = [p.clone() for p in self._parameters]
            gradients = self._gradients()
            factor: Tensor | float = self._recipe.rho
            if self._recipe.normalized:
                norm = torch.stack(torch._foreach_norm(gradients)).norm()
                factor = torch.where(norm > 0, factor / norm, 0.0)
            moving = [p for p in self._parameters if p.grad is not None]
            torch._foreach_add_(moving, torch._foreach_mul(gradients, factor))
        with buffers_restored(self._network):
            yield
        with torch.no_grad():
            for p, value in zip(self._parameters, before, strict=True):
                p.copy_(value)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _take_gradients(self) -> list[Tensor | None]:
        """The parameters' gradients, which they have no more."""
        taken = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        return taken


class _Statistics:
    """The buffers of `network` in a step, in which every micro-batch begins with the same ones."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._changes: dict[str, Tensor] = {}

    @contextmanager
    def moved_by(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Inside, the micro-batch may move the buffers, which `move` counts; then as before."""
        before = {name: b.clone() for name, b in self._network.named_buffers()}
        with buffers_restored(self._network):
            yield
            with torch.no_grad():
                for name, after in self._network.named_buffers():
                    if name not in before:
                        raise ValueError(
                            f"network must have its buffer {name!r} from the start to be trained in"
                            " micro-batches"
                        )
                    self._count(name, before[name], after, micro_batch)

    def _count(self, name: str, before: Tensor, after: Tensor, micro_batch: MicroBatch) -> None:
        if after.is_floating_point():
            dtype, weight = torch.float64, micro_batch.size / micro_batch.divisor
        else:
            dtype, weight = torch.int64, int(micro_batch.is_first)
        # Where nothing changed, even of infinite values, the change is 0.
        change = torch.where(after == before, 0, after.to(dtype) - before.to(dtype)) * weight
        self._changes[name] = self._changes[name] + change if name in self._changes else change

    @torch.no_grad()
    def move(self, *, over_processes: bool) -> None:
        """Moves the buffers, by what the micro-batches of this process, or of all, have counted."""
        if over_processes:
            for dtype in (torch.float64, torch.int64):
                changes = [c for c in self._changes.values() if c.dtype == dtype]
                if changes:
                    group().add_up(changes)
        for name, buffer in self._network.named_buffers():
            buffer.copy_(buffer.to(self._changes[name].dtype) + self._changes[name])
