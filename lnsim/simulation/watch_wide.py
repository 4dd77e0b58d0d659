"""The watch of a wide two-layer network, whose Q is not formed (models/tall.py).

Such a network is most of the memory, so its neurons have one order alone.  With the singular
vectors D = sum_k s_k u_k v_k^T of what the reduced weights have moved, s_k falling, and y_ik =
s_k <q_i, u_k>,

    |w_i(t) - w_i(0)|^2 = sum_k y_ik^2 <= sum_{k < K} y_ik^2 + s_K^2 |q_i|^2 <= s_0^2 |q_i|^2.

The last bound spares a look where it keeps the neuron of the largest |q_i| inside.  The other costs
a product of the weights with K = FIRST columns, and is close: while a network is lazy, D is nearly
a(0) times one vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.models.tall import Columns, forms
from lnsim.simulation.observables import Frame
from lnsim.simulation.watch import PlainWatch, ReducedWatch, Watch

FIRST = 4
"""K."""


class WideWatch(ReducedWatch):
    """See the head of the file."""

    def __init__(self, frame: Frame, replicas: int, last_step: int) -> None:
        of = frame.reduction
        assert isinstance(of.Q, Columns)
        Watch.__init__(self, replicas, len(of.Q), last_step)
        self._radius = float(frame.lazy_radius)
        self._columns, self._size = of.Q, forms(of.Q, np.eye(of.Q.shape[1]))
        self._largest = float(self._size.max())
        self._start, self._before = of.W, np.repeat(of.W[None], replicas, axis=0)
        self._older = np.empty((0, 0))  # see ReducedWatch

    def look(self, step: int, weights: list[FloatArray], asked: NDArray[np.bool_]) -> None:
        """See Watch."""
        for s in np.flatnonzero(asked & (self.inside > 0)).tolist():
            now = weights[0][s]
            if np.isfinite(now).all():  # else it is about to diverge
                self._note(s, step, now - self._start)
            self.inside[s] = np.count_nonzero(self.escape[s] < 0)
            self.step[s], self._before[s] = step, now
        self._older = np.empty((0, 0))

    def _note(self, s: int, step: int, D: FloatArray) -> None:
        from lnsim.simulation.wide_loop import look_at_rows  # as in ReducedWatch

        U, singular, _ = np.linalg.svd(D, full_matrices=False)
        if self._largest * singular[0] ** 2 <= self._radius**2:
            return
        Q, rank = self._columns, D.shape[1]
        first = Q.inverse @ (U[:, :FIRST] * singular[:FIRST])
        rest = float(singular[FIRST]) ** 2 if len(singular) > FIRST else 0.0
        change, before = (Q.inverse @ each for each in (D, self._before[s] - self._start))
        times = float(self.step[s]), float(step)

        def some(rows: slice) -> None:
            escape = self.escape[s, rows]
            if not (escape < 0).any():
                return
            W, a = Q.W[rows], Q.A[0, rows]
            y = W @ first[:rank] + np.outer(a, first[rank])
            older = self._older[s, rows] if self._older.size else self._older.ravel()
            look_at_rows(
                W, a, self._size[rows], y, rest, change, before, older, self._radius, *times, escape
            )

        Q.by_blocks(some)


def watch_of(frame: Any, replicas: int, last_step: int, scale: Any, decays: bool) -> Watch:
    """The watch of a run; scale(step, s) is what is left of the weights that are not trained."""
    if isinstance(frame, Frame) and frame.reduction.Q is not None and not decays:
        return (WideWatch if frame.wide else ReducedWatch)(frame, replicas, last_step)
    return PlainWatch(frame, replicas, last_step, scale)
