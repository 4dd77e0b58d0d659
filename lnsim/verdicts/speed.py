"""The rows of `theory` on the speed of SAM and of label noise along the interpolators (sam.py).

For label noise they give the radius of one-sample SAM that is as fast, for SAM the label noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lnsim.experiments.case import Case
from lnsim.theory import sam
from lnsim.theory.kicks import Descent, Sharp

TITLE = "SAM as fast as label noise (sam.py)"


def rows(case: Case) -> list[tuple[str, float]]:
    """Labels and predictions, NaN where there is none; no rows for a dynamics without theory."""
    problem, network = case.start.problem, case.start.network
    try:
        of_steps = case.dynamics.at(0)[0].kicks()
        start = sam.fitted(problem.X, case.start.theta_star, network.W, network.a)
        rest = sam.at_rest(problem.X, case.start.theta_star)
    except (ValueError, ArithmeticError):
        return []
    if isinstance(of_steps, Sharp):
        sharp = of_steps
        return [
            ("sigma_eff: as fast, labels fitted", _number(lambda: sam.matched_noise(start, sharp))),
            ("sigma_eff: as fast at rest", _number(lambda: sam.matched_noise(rest, sharp))),
        ]
    if isinstance(of_steps, Descent) and of_steps.sigma > 0:
        noise = of_steps
        return [
            ("rho: as fast, labels fitted", _number(lambda: sam.matched_radius(start, noise))),
            (
                "rho: |W|_F^2 to 1/e in this time",
                _number(lambda: sam.radius_over_phase(problem, network, noise)),
            ),
            ("rho: as fast at rest", _number(lambda: sam.matched_radius(rest, noise))),
        ]
    return []


def _number(of: Callable[[], float]) -> float:
    try:
        return of()
    except (ValueError, ArithmeticError):
        return math.nan
