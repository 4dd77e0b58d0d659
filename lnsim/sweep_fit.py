"""Power laws: ordinary least squares of log y on log x, with Student's interval for the exponent.

With y = c x^k exp(noise), log y = log c + k log x + noise is linear: k is the slope, and where the
noise is normal and of one size, (estimate - k)/(standard error) follows Student's t with n - 2
degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lnsim import _checks
from lnsim._checks import FloatArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """y = factor x^exponent; `low` and `high` bound the exponent with probability CONFIDENCE."""

    exponent: float
    low: float
    high: float
    factor: float

    def __call__(self, x: ArrayLike) -> FloatArray:
        """The fitted y at x, (n,) -> (n,)."""
        return self.factor * np.asarray(x, dtype=np.float64) ** self.exponent


def power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """The power law through x : (n,), y : (n,), all above 0.

    Raises ValueError for fewer than 3 points, or none of whose x differ.
    """
    xs, ys = _checks.array("x", x, 1), _checks.array("y", y, 1)
    _checks.shape("y", ys, xs.shape, f"x has {xs.size} points")
    _checks.real("x", xs, above=0.0)
    _checks.real("y", ys, above=0.0)
    if xs.size < 3 or np.ptp(xs) == 0.0:
        raise ValueError(f"a power law needs 3 points of different x, got {xs.size}")
    from scipy.special import stdtrit

    log_x, log_y = np.log(xs), np.log(ys)
    middle = log_x.mean()
    t = log_x - middle
    spread = float(t @ t)
    slope = float(t @ log_y) / spread
    level = float(log_y.mean())
    residual = log_y - level - slope * t
    error = math.sqrt(float(residual @ residual) / (xs.size - 2) / spread)
    reach = float(stdtrit(xs.size - 2, 0.5 + CONFIDENCE / 2)) * error
    return PowerLaw(slope, slope - reach, slope + reach, math.exp(level - slope * middle))
