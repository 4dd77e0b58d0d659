"""The mean cosine of a run at those of its records that the times of the phases depend on.

The times (run/phases.py) are of the first records at which c(t), the mean of |cos(w_i, theta*)|
over the neurons, is at least a level; each is interpolated from the record before.  Most records
can be seen to be below the level without the m cosines.  Let w_i be the neurons where c was last
computed, s any number other than 0, and s w_i + d_i the neurons now.  The |cos| with theta* is that
of the angle, at most pi/2, between two lines.  If phi is the angle between the lines of s w_i and
s w_i + d_i, their angles with theta* differ by at most phi, and their |cos| by at most sin(phi),
which is reached where one of them is pi/2.  And sin(phi) <= |d_i|/|s w_i|.  With Cauchy and Schwarz

    |c(t) - c| <= 1/m sum_i |d_i|/|s w_i| <= |D|_F/|s| sqrt(h/m),    h = 1/m sum_i 1/|w_i|^2.

The best s = <W(t), W>/|W|_F^2 leaves |D|_F^2 = |W(t)|_F^2 - s^2 |W|_F^2, all of it in reduced
coordinates: the evenly shrinking neurons of Phase I do not enter.  c is computed at the records at
which this bound reaches the level, by the formula of every run, and where it has passed the level
at the record before too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.run.phases import SHARES, level
from lnsim.simulation.observables import Frame, View, cosine_mean

ROUNDING = 1e-12
"""Relative error that the bound allows for: of |W(t)|_F^2, and of the level."""


class Passages:
    """Fills in the mean cosines of S replicas, values : (S, records), from record 1 on."""

    def __init__(self, frame: Frame, replicas: int, values: FloatArray) -> None:
        self._frame, self._values = frame, values
        reduction = frame.reduction
        self._rest = float(frame.rest_norm_squared.sum())
        start = [np.repeat(array[None], replicas, axis=0) for array in (reduction.W, reduction.a)]
        cosine, spread, size = self._computed(self._view([each[:1] for each in start], np.ones(1)))
        self._levels = [level(cosine[0], share) for share in SHARES]
        self._passed = np.zeros(replicas, dtype=np.int64)
        while self._levels and cosine[0] >= self._levels[0]:
            del self._levels[0]
        # Where the cosines of a replica were last computed, and of the record before this.
        self._W, self._scale = start[0].copy(), np.ones(replicas)
        self._cosine, self._spread, self._size = (
            np.repeat(each, replicas) for each in (cosine, spread, size)
        )
        self._before, self._before_scale = start, np.ones(replicas)

    def note(
        self, record: int, replicas: NDArray[np.int64], weights: list[FloatArray], scale: FloatArray
    ) -> None:
        """Takes the reduced networks of `replicas` : (k,) at `record`; scale : (k,)."""
        open_ = self._passed[replicas] < len(self._levels)
        replicas, scale = replicas[open_], scale[open_]
        weights = [array[open_] for array in weights]
        due = ~(self._highest(replicas, weights[0], scale) < self._next(replicas))
        if due.any():
            self._look(record, replicas[due], [array[due] for array in weights], scale[due])
        for before, now in zip(self._before, weights, strict=True):
            before[replicas] = now
        self._before_scale[replicas] = scale

    def _next(self, replicas: NDArray[np.int64]) -> FloatArray:
        """The next level of each."""
        return np.array(self._levels)[self._passed[replicas]] if self._levels else np.empty(0)

    def _highest(self, replicas: NDArray[np.int64], W: FloatArray, scale: FloatArray) -> FloatArray:
        """What the mean cosine of each is below."""
        size = _squares(W) + scale**2 * self._rest
        W_then, scale_then = self._W[replicas], self._scale[replicas]
        common = np.einsum("bpr,bpr->b", W, W_then) + scale * scale_then * self._rest
        share = common / self._size[replicas]
        left = np.maximum(size - share * common, 0.0) + ROUNDING * size
        moved = np.sqrt(left * self._spread[replicas] / self._frame.width) / np.abs(share)
        return (self._cosine[replicas] + moved) * (1.0 + ROUNDING)

    def _look(
        self, record: int, replicas: NDArray[np.int64], weights: list[FloatArray], scale: FloatArray
    ) -> None:
        """Computes the cosines; of replicas that have passed a level those of the record before."""
        cosine, spread, size = self._computed(self._view(weights, scale))
        self._values[replicas, record] = cosine
        self._W[replicas], self._scale[replicas] = weights[0], scale
        self._cosine[replicas], self._spread[replicas] = cosine, spread
        self._size[replicas] = size
        passing = cosine >= self._next(replicas)
        late = replicas[passing & np.isnan(self._values[replicas, record - 1])]
        if late.size:
            before = self._view([each[late] for each in self._before], self._before_scale[late])
            self._values[late, record - 1] = cosine_mean(before)
        self._passed[replicas[passing]] = [
            sum(c >= each for each in self._levels) for c in cosine[passing]
        ]

    def _view(self, weights: list[FloatArray], scale: FloatArray) -> View:
        W, a = weights
        return View(self._frame, W, a, scale, np.empty((len(scale), 0)))

    def _computed(self, view: View) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The mean cosine, h of the module's docstring, and |W|_F^2 of every network."""
        with np.errstate(divide="ignore"):
            spread = np.mean(view.norms**-2.0, axis=1)
        size = _squares(view.reduced_W) + view.scale**2 * self._rest
        return cosine_mean(view), spread, size


def _squares(W: FloatArray) -> FloatArray:
    """|W|_F^2 of each of W : (B, p, r)."""
    return np.einsum("bpr,bpr->b", W, W)
