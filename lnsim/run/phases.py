"""The steps at which the phases of a run begin, measured from its records.

Lazy escape.  Neuron i is lazy at step t while |w_i(t) - w_i(0)| <= 1/sqrt(m) (Definition 1).  Its
escape is the first time it is not, interpolated between the steps watched (four an octave, whatever
is recorded; snapshots.watch_steps).  The exit from the lazy regime begins with the first neuron's
escape and ends with the last one's.

Alignment and convergence.  Let c(t) be the mean |cos(w_i(t), theta_star)|.  Phase II, in which the
neurons align with the interpolator, begins by definition when c has come half of the way from c(0)
to 1, and has converged when c has come nine tenths; between two records c is interpolated.
The decay rate of |W|_F^2 in Phase I is minus the slope of log |W|_F^2 by least squares over the
records between the last escape and the alignment, per step; NaN with fewer than two of them.
(In the paper Phase II begins when all |w_i| and |a_i| are below sqrt(lr); with a stationary
|W|_F of about (|theta_star| sqrt(d))^(1/2) that never happens at the figures' setting.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.run.record import Record

SHARES = (0.5, 0.9)
"""How far c has come at the alignment and at the convergence, of its way up to 1."""


@dataclass(frozen=True)
class Phases:
    """Steps at which each phase began, NaN if it did not; shape (S,) for an ensemble."""

    first_escape: FloatArray
    last_escape: FloatArray
    alignment: FloatArray
    convergence: FloatArray
    decay_rate: FloatArray


def measure(trajectory: Record) -> Phases:
    """The phases of a run with neurons, for each replica, as defined in the module.

    Without theta_star there is no alignment: its times, and the rate, are NaN.
    """
    escape = trajectory["lazy_escape"].astype(np.float64)
    escape[escape < 0] = np.nan
    escaped = ~np.isnan(escape)
    first = np.where(
        escaped.any(axis=-1), np.min(escape, axis=-1, where=escaped, initial=np.inf), np.nan
    )
    last = np.max(escape, axis=-1)
    norm_squared = trajectory["norm_squared"]
    cosine = trajectory.arrays.get("cosine_mean", np.full(norm_squared.shape, np.nan))
    alignment, convergence = (
        reached(trajectory.steps, cosine, level(cosine[..., 0], share)) for share in SHARES
    )
    return Phases(
        first_escape=first,
        last_escape=last,
        alignment=alignment,
        convergence=convergence,
        decay_rate=_decay_rate(trajectory.steps, norm_squared, last, alignment),
    )


def _decay_rate(
    steps: NDArray[np.int64], norm_squared: FloatArray, begin: FloatArray, end: FloatArray
) -> FloatArray:
    """Minus the slope of log norm_squared, (..., records), between the steps begin and end."""
    rows = np.atleast_2d(norm_squared)
    result = np.full(len(rows), np.nan)
    for i, (row, low, high) in enumerate(zip(rows, *np.atleast_1d(begin, end), strict=True)):
        inside = (steps >= low) & (steps <= high) & (row > 0.0)
        if np.count_nonzero(inside) > 1:
            t, log = steps[inside].astype(np.float64), np.log(row[inside])
            t -= t.mean()
            result[i] = -(t @ log) / (t @ t)
    return result.reshape(norm_squared.shape[:-1])


def level(start: Any, share: float) -> Any:
    """What has come `share` of the way from `start` up to 1."""
    return start + share * (1.0 - start)


def reached(steps: Any, series: FloatArray, levels: FloatArray) -> FloatArray:
    """The first step at which each series, (..., records), is at least its level, (...).

    It is interpolated between the records before and after; NaN for a series that stays below.
    """
    rows = np.atleast_2d(series)
    result = np.full(len(rows), np.nan)
    for i, (row, level) in enumerate(zip(rows, np.atleast_1d(levels), strict=True)):
        above = np.flatnonzero(row >= level)
        if above.size and above[0] > 0:
            k = above[0]
            result[i] = np.interp(level, row[k - 1 : k + 1], steps[k - 1 : k + 1])
        elif above.size:
            result[i] = steps[0]
    return result.reshape(series.shape[:-1])
