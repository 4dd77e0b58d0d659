"""Power laws: ordinary least squares of log y on log x, with Student's interval for the exponent.

With y = c x^k exp(noise), log y = log c + k log x + noise is linear: k is the slope, and where the
noise is normal and of one size, (estimate - k)/(standard error) follows Student's t with n - 2
degrees of freedom.

The same points test whether a straight line is adequate: with q the part of (log x)^2 that is
orthogonal to 1 and log x, the residual has slope c = <q, residual>/<q, q> along q.  If the interval
for c, with n - 3 degrees of freedom, excludes 0, the points bend, and the interval for k cannot be
trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lnsim.base import checks
from lnsim.base.checks import FloatArray

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Largest departure from a line, in logarithms, that counts as rounding."""


@dataclass(frozen=True)
class PowerLaw:
    """y = factor x^exponent; `low` and `high` bound the exponent with probability CONFIDENCE.

    `bends`: in logarithms the points depart from a line by more than their noise.
    """

    exponent: float
    low: float
    high: float
    factor: float
    bends: bool

    def __call__(self, x: ArrayLike) -> FloatArray:
        """The fitted y at x, (n,) -> (n,)."""
        return self.factor * np.asarray(x, dtype=np.float64) ** self.exponent


def power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """The power law through x : (n,), y : (n,), all above 0.

    Raises ValueError for fewer than 3 points, or if all x are equal.
    """
    xs, ys = checks.array("x", x, 1), checks.array("y", y, 1)
    checks.shape("y", ys, xs.shape, f"x has {xs.size} points")
    checks.real("x", xs, above=0.0)
    checks.real("y", ys, above=0.0)
    if xs.size < 3 or np.ptp(xs) == 0.0:
        raise ValueError(f"a power law needs 3 points with different x, got {xs.size}")
    log_x, log_y = np.log(xs), np.log(ys)
    middle = log_x.mean()
    t = log_x - middle
    spread = float(t @ t)
    slope = float(t @ log_y) / spread
    level = float(log_y.mean())
    residual = log_y - level - slope * t
    reach = _reach(residual, xs.size - 2, spread)
    factor = math.exp(level - slope * middle)
    return PowerLaw(slope, slope - reach, slope + reach, factor, _bends(t, residual))


def _reach(residual: FloatArray, freedom: int, spread: float) -> float:
    """Half of Student's interval for a slope along points whose sum of squares is `spread`."""
    from scipy.special import stdtrit

    error = math.sqrt(float(residual @ residual) / freedom / spread)
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error


def _bends(t: FloatArray, residual: FloatArray) -> bool:
    """Whether `residual` : (n,) has a slope along the curvature of t : (n,), which has mean 0."""
    square = t**2
    q = square - square.mean() - float(t @ square) / float(t @ t) * t
    spread = float(q @ q)
    if t.size < 4 or spread <= 1e-12 * float(square @ square):  # two different x cannot bend
        return False
    slope = float(q @ residual) / spread
    noise = max(ROUNDING / math.sqrt(spread), _reach(residual - slope * q, t.size - 3, spread))
    return abs(slope) > noise
