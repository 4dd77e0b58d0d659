"""SAM against its theory: the rows of `theory` on its speed, and the claim about full batches.

The rows give the radius of one-sample SAM that is as fast as the label noise, and of SAM the label
noise that is as fast (theory/sam.py).  The claim is about the course of the largest eigenvalue
under full-batch SAM (theory/full_sam.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lnsim.experiments._synthetic import series
from lnsim.experiments.case import Case
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import sam
from lnsim.theory.kicks import Descent, Sharp
from lnsim.verdicts import judge
from lnsim.verdicts.judge import Verdict

WITHIN = 0.02
"""Largest relative deviation of lambda_max and |W|_F^2 from the law of full-batch SAM."""
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


def full_batch(run: Trajectory) -> Verdict:
    """The course of a run of full-batch SAM against its law."""
    case, worst, note = Case.of_run(run), math.nan, ""
    if case.prediction is not None:
        parts = {
            name: judge.worst_deviation(series(run, key), case.prediction[key])
            for name, key in (("lambda_max", "sharpness"), ("|W|_F^2", "norm_squared"))
        }
        name = max(parts, key=lambda each: parts[each][0])
        worst, record = parts[name]
        note = f"of {name} at step {int(run.steps[record]):,}"
    return judge.judge(
        "under full-batch SAM lambda_max falls by steepest descent along the interpolators",
        judge.BEYOND, "at most", WITHIN, worst,
        "largest relative deviation of lambda_max and |W|_F^2 from their law, over all records",
        note=note, vacuous=case.unpredicted,
    )  # fmt: skip
