"""Large steps on one sample: the exact recursion of the catapult, and its three phases.

The network f = x a^T v of m neurons, one input of square s = x^2 and label y, loss r^2/2 with
r = f - y, is trained by gradient descent with learning rate eta.  Its tangent kernel is
lambda = s (|a|^2 + |v|^2).  A step

    a' = a - eta r x v,     v' = v - eta r x a

gives a'^T v' = a^T v - eta r x (|a|^2 + |v|^2) + (eta r x)^2 a^T v and
|a'|^2 + |v'|^2 = (1 + (eta r x)^2) (|a|^2 + |v|^2) - 4 eta r x a^T v, so that

    r'      = r (1 - eta lambda + eta^2 s r f),
    lambda' = lambda + eta s r (eta r lambda - 4 f).                                          (1)

Two numbers describe a network of any width.  Of more inputs than one only the part of the weights
along x moves.  With f = u^T v x / sqrt(m) (Lewkowycz et al. 2020, arXiv 2003.02218), put
a = u m^(-1/4) and v m^(-1/4) here: f is the same, and so is eta lambda with eta/sqrt(m) for eta.

Phases, for s = 1 and y = 0.  With k = eta lambda and p = eta f, (1) is

    p' = p (1 - k + p^2),     k' = k + p^2 (k - 4),     so     4 - k' = (4 - k)(1 + p^2).     (2)

As |a^T v| <= (|a|^2 + |v|^2)/2, |p| <= k/2 at every step.

k_0 < 4: k falls and stays at least 0, and by (2) the product of all 1 + p_t^2 is at most
4/(4 - k_0): p goes to 0, the run converges, whatever the width, to the curvature
4 - k = (4 - k_0) prod (1 + p_t^2).  On the way |f| <= lambda_0/2.

k_0 > 4: k grows.  Where p^2 < k - 2, |p| grows, so p does not go to 0 (unless it meets 0 exactly,
which almost no start does), and k grows without bound: the run diverges.

The loss rises at a step if |1 - k + p^2| > 1, that is if k > 2 + p^2 (as p^2 <= k^2/4 < k).  If it
does not rise at the first step and p_0^2 <= 1, it never does: then k_0 <= 2 + p_0^2, and
k_1 <= 2 - p_0^2 + p_0^4 <= 2, where k falls on.  So with g = f_0/lambda_0 the loss rises from

    eta lambda_0 = 2 + (eta lambda_0)^2 g^2 = (1 - sqrt(1 - 8 g^2)) / (2 g^2)                 (3)

on, about 2 + 4 g^2.  From the start of Lewkowycz et al., E[f_0^2] = 1 and lambda_0 is about
2 sqrt(m) here, so this is 2 + 1/m: the width moves the lower boundary alone.  At the end k <= 2,
for else p would grow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import MOST_STEPS, FloatArray, Scalar

RISES, DIVERGES = 2.0, 4.0
"""Values of eta lambda_0 from which on the loss of a wide network rises, and diverges."""


class Path(NamedTuple):
    """f and lambda at steps 0, 1, ..., each (steps + 1,); of S learning rates (S, steps + 1)."""

    f: FloatArray
    curvature: FloatArray


def recursion(
    f: float, curvature: float, lr: Scalar, steps: int, *, label: float = 0.0, square: float = 1.0
) -> Path:
    """Equation (1) from f_0 = `f` and lambda_0 = `curvature`; `label` = y, `square` = s.

    Of a run that diverges the numbers become infinite, then NaN.  Raises ValueError or TypeError
    for values out of range.
    """
    eta = np.asarray(checks.real("lr", lr, above=0.0))
    steps = checks.integer("steps", steps, 0, MOST_STEPS)
    s = checks.number("square", square)
    path = np.empty((2, steps + 1, *eta.shape))
    path[0, 0], path[1, 0] = checks.number("f", f), checks.number("curvature", curvature)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps):
            now, level = path[:, t]
            r = now - label
            path[0, t + 1] = label + r * (1.0 - eta * level + eta**2 * s * r * now)
            path[1, t + 1] = level + eta * s * r * (eta * r * level - 4.0 * now)
    return Path(*np.moveaxis(path, 1, -1))


def rise_boundary(f: float, curvature: float) -> float:
    """eta lambda_0 from which on the loss rises, for s = 1 and y = 0: equation (3).

    NaN where p_0^2 > 1 there, which (3) does not cover: f_0^2 > lambda_0^2 / 9.
    """
    squared = (f / curvature) ** 2
    if squared > 1.0 / 9.0:
        return math.nan
    # The form of (3) that keeps its digits as f_0 goes to 0.
    return 4.0 / (1.0 + math.sqrt(1.0 - 8.0 * squared))
