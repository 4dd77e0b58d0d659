"""When things happen in a course, measured or predicted, by one definition.

    escapes      neuron i is lazy until |w_i(t) - w_i(0)| > 1/sqrt(m) (Definition 1): first neuron,
                 median neuron, last neuron
    half norm    the mean of |w_i| has fallen to half of its start
    alignment, convergence      mean |cos(w_i, theta_star)| has come half, and nine tenths, of its
                 way from its start to 1 (phases.py)
    rest         |W|_F^2 is within 5% of that of the stationary state (theory/paper.py)

Each is the first such step, interpolated between those at which the course is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.run.phases import SHARES, level, reached

WITHIN = 0.05
"""|W|_F^2 is at rest within this share of its stationary value."""


@dataclass(frozen=True)
class Times:
    """Steps; infinite for what does not happen, NaN for what is not known."""

    first_escape: float
    median_escape: float
    last_escape: float
    half_norm: float
    alignment: float
    convergence: float
    rest: float

    def without_never(self) -> Times:
        """The times of a course that ends before all has happened: NaN in place of infinite."""
        return Times(*(t if math.isfinite(t) else math.nan for t in vars(self).values()))


def of_course(steps: Any, series: Callable[[str], FloatArray], at_rest: float) -> Times:
    """The times of one course: `series` gives a quantity at `steps` : (T,) by its name.

    "lazy_escape" is (m,), negative or infinite for a neuron that stays lazy.  `at_rest` is the
    stationary |W|_F^2.  What `series` does not have, KeyError, is not known.
    """

    def quantity(name: str) -> FloatArray:
        try:
            return np.asarray(series(name), dtype=np.float64)
        except KeyError:
            return np.full(len(steps), np.nan)

    def first(values: FloatArray, level: float) -> float:
        step = float(reached(steps, values, np.asarray(level)))
        return math.inf if math.isnan(step) and not math.isnan(values[0]) else step

    escape = quantity("lazy_escape")
    escape = np.where(escape < 0, np.inf, escape)
    norm, cosine = quantity("norm_mean"), quantity("cosine_mean")
    half, most = (float(level(cosine[0], share)) for share in SHARES)
    from_rest = np.abs(quantity("norm_squared") - at_rest)
    return Times(
        first_escape=float(escape.min()),
        median_escape=float(np.median(escape)),
        last_escape=float(escape.max()),
        half_norm=first(-norm, -float(norm[0]) / 2),
        alignment=first(cosine, half),
        convergence=first(cosine, most),
        rest=first(-from_rest, -WITHIN * at_rest),
    )
