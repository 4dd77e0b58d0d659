"""When every neuron leaves the lazy regime: |w_i(t) - w_i(0)| > 1/sqrt(m) (Definition 1).

The neurons are looked at four times an octave, whatever is recorded, and the time of escape is
interpolated between the two looks around it.  A look needs what a neuron has moved only where it
may have left, and what it had moved at the look before only where it has.

In reduced coordinates (models/reduction.py) neuron i has moved by q_i^T D, D = R_W(t) - R_W(0) of
shape (p, r) and q_i row i of Q, so with F = D D^T, (p, p),

    |w_i(t) - w_i(0)|^2 = q_i^T F q_i <= |q_i|^2 |F|_2,
    |F|_2 <= (tr F^4)^(1/4) <= |F|_F <= tr F.

Neurons are taken in the order of falling |q_i|, so that a look ends at the first that cannot have
left: early looks cost |D|_F^2 = tr F, and nothing for each neuron.  The rest are screened in single
precision, several at a time; what may have left within its error is taken again in double, each
with the same operations, so that no number depends on the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base import threads
from lnsim.base.checks import FloatArray
from lnsim.simulation.observables import Frame
from lnsim.simulation.snapshots import watch_steps

SHARED = 1 << 22
"""Numbers p m of a look above which the neurons of one replica are shared among threads."""


class Watch(ABC):
    """The times of escape, escape : (S, m), -1 where a neuron is still inside."""

    def __init__(self, replicas: int, neurons: int, last_step: int) -> None:
        self.steps = {t for t in watch_steps(last_step) if t <= last_step and neurons}
        self.escape = np.full((replicas, neurons), -1.0)
        self.inside = np.full(replicas, neurons, dtype=np.int64)
        self.step: NDArray[np.int64] = np.zeros(replicas, dtype=np.int64)

    @property
    def any_inside(self) -> bool:
        """Whether a neuron has not left."""
        return bool(self.inside.any())

    @abstractmethod
    def look(self, step: int, weights: list[FloatArray], asked: NDArray[np.bool_]) -> None:
        """Notes which neurons of the replicas `asked` : (S,) left by `step`."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is needed to go on, by the name that a file has it under; not copied."""
        return {"watched_step": self.step, "escape": self.escape}

    def restore(self, earlier: Mapping[str, NDArray[Any]]) -> None:
        """Takes the values of `earlier`.  Raises ValueError for a run of another form."""
        for name, value in self.arrays().items():
            if name not in earlier or earlier[name].shape != value.shape:
                raise ValueError(f"cannot resume: the earlier run has another {name}")
            value[...] = earlier[name]
        self.inside[:] = (self.escape < 0).sum(axis=1)


class PlainWatch(Watch):
    """Of any model: every look takes what all neurons have moved from the model's view."""

    def __init__(self, frame: Any, replicas: int, last_step: int, scale: Any) -> None:
        super().__init__(replicas, frame.units if frame.lazy_radius else 0, last_step)
        self._frame, self._scale = frame, scale
        self._moved = np.zeros(self.escape.shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See Watch."""
        return super().arrays() | {"watched_moved": self._moved}

    def look(self, step: int, weights: list[FloatArray], asked: NDArray[np.bool_]) -> None:
        """See Watch."""
        replicas = np.flatnonzero(asked & (self.inside > 0))

        def some(part: slice) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # of what is about to diverge
                for s in replicas[part].tolist():
                    scale = np.array([self._scale(step, s)])
                    own = [array[s : s + 1] for array in weights]
                    none = np.full((1, 0), np.nan)
                    view = self._frame.view(own, scale, none, np.array([s]))
                    self._note(s, step, view.displacements[0])

        threads.in_blocks(some, replicas.size)

    def _note(self, s: int, step: int, moved: FloatArray) -> None:
        escape, radius = self.escape[s], self._frame.lazy_radius
        escaped = (escape < 0) & (moved > radius)
        before = self._moved[s, escaped]
        share = (radius - before) / (moved[escaped] - before)
        escape[escaped] = self.step[s] + (step - self.step[s]) * share
        self.inside[s] -= np.count_nonzero(escaped)
        self.step[s], self._moved[s] = step, moved


class ReducedWatch(Watch):
    """Of the two-layer network in reduced coordinates, M = Q R."""

    def __init__(self, frame: Frame, replicas: int, last_step: int) -> None:
        reduction = frame.reduction
        assert reduction.Q is not None
        super().__init__(replicas, len(reduction.Q), last_step)
        self._radius = float(frame.lazy_radius)
        size = np.einsum("mp,mp->m", reduction.Q, reduction.Q)
        self._order = np.argsort(-size, kind="stable")
        self._Q, self._size = reduction.Q, size[self._order]
        self._tiles: NDArray[np.float32] | None = None
        self._start = reduction.W
        self._before = np.repeat(reduction.W[None], replicas, axis=0)
        # Of a run that another version began: what its neurons had moved at its last look.
        self._older = np.empty((0, 0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See Watch."""
        return super().arrays() | {"watched_W": self._before}

    def restore(self, earlier: Mapping[str, NDArray[Any]]) -> None:
        """See Watch.  Files of earlier versions have `watched_moved` in place of `watched_W`."""
        if "watched_W" not in earlier and "watched_moved" in earlier:
            self._older = np.ascontiguousarray(earlier["watched_moved"])
            earlier = {**earlier, "watched_W": self._before}
        super().restore(earlier)

    def look(self, step: int, weights: list[FloatArray], asked: NDArray[np.bool_]) -> None:
        """See Watch."""
        # Imported here, as Numba takes most of a second to import.
        from lnsim.simulation.watch_loop import look, tiles_of

        replicas = np.flatnonzero(asked & (self.inside > 0))
        if self._tiles is None:
            self._tiles = tiles_of(self._Q, self._order)
        W, tiles = weights[0], len(self._tiles)
        arrays = (
            self._Q, self._tiles, self._size, self._order, W, self._start, self._before,
            self._older, self._radius, step, self.step, self.escape, self.inside,
        )  # fmt: skip

        def some(of: NDArray[np.int64], part: slice, whole: bool) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # of what is about to diverge
                look(of, part.start, part.stop, whole, *arrays)

        if self._Q.size * replicas.size < SHARED or replicas.size >= threads.number():
            everyone = slice(0, tiles)
            threads.in_blocks(lambda part: some(replicas[part], everyone, True), replicas.size)
        else:
            threads.in_blocks(lambda part: some(replicas, part, False), tiles)
            self.inside[replicas] = (self.escape[replicas] < 0).sum(axis=1)
            self.step[replicas] = step
            self._before[replicas] = W[replicas]
        if self._older.size and replicas.size:
            self._older = np.empty((0, 0))


def watch_of(frame: Any, replicas: int, last_step: int, scale: Any, decays: bool) -> Watch:
    """The watch of a run; scale(step, s) is what is left of the weights that are not trained."""
    if isinstance(frame, Frame) and frame.reduction.Q is not None and not decays:
        return ReducedWatch(frame, replicas, last_step)
    return PlainWatch(frame, replicas, last_step, scale)
