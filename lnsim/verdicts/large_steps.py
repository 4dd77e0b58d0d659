"""The claims about large steps: the catapult of Lewkowycz et al. 2020, beyond the paper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnsim.experiments.large_steps import CATAPULT, DIVERGED, MONOTONE, UNSETTLED, Map
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory.catapult import DIVERGES, RISES, recursion
from lnsim.verdicts import judge
from lnsim.verdicts.judge import Verdict

FIRST = 10
"""Steps in which a run and the recursion are compared; chaos amplifies rounding later on."""


def one_sample(run: Trajectory) -> list[Verdict]:
    """The law on one sample: the recursion, and three phases with boundaries at any width."""
    source = "large steps"
    ends = Map(run)
    return [
        _follows(source, ends),
        *_phases(source, ends),
        judge.judge(
            "it diverges from eta = 4/lambda_0 on, at every width", source, "about",
            DIVERGES, ends.diverges,
            "between the first that diverges and the one before, in eta lambda_0; within a cell",
            within=ends.cell / DIVERGES, note=f"cells of {ends.cell:.3g}",
        ),
        _flatter(source, ends),
    ]  # fmt: skip


def regression(run: Trajectory) -> list[Verdict]:
    """The same on the paper's data, where the boundaries are approximate."""
    source = "large steps, regression"
    ends = Map(run)
    bounded = ends.multiples[ends.kinds != DIVERGED]
    return [
        *_phases(source, ends),
        judge.judge(
            "it diverges from about eta = 4/lambda_0 on", source, "about",
            DIVERGES, ends.diverges,
            "between the first that diverges and the one before, in eta lambda_0; within 15%",
            within=0.15,
            note=f"the last that does not diverge is at {bounded.max(initial=0.0):.4g};"
            f" cells of {ends.cell:.3g}",
        ),
        _flatter(source, ends),
    ]  # fmt: skip


def _follows(source: str, ends: Map) -> Verdict:
    """The run against the recursion, over its first steps."""
    steps = ends.trajectory.steps
    steps = steps[steps <= FIRST]
    path = recursion(ends.start_prediction, ends.curvature, ends.rates, int(steps[-1]))
    with np.errstate(over="ignore", invalid="ignore"):
        predicted = 0.5 * np.square(path.f[:, steps])
        measured = np.atleast_2d(ends.trajectory["train_loss"])[:, : steps.size]
        largest = np.maximum.accumulate(predicted, axis=1)
        deviation = np.abs(measured - predicted) / largest
    landing = ends.multiples < DIVERGES
    return judge.judge(
        "the loss follows the recursion in f and lambda to nine digits",
        source, "at most", 1e-9, float(deviation[landing].max(initial=0.0)),
        f"largest deviation over the largest loss so far, in {int(steps[-1])} steps, of all"
        " eta < 4/lambda_0",
        vacuous=_idle(ends) or ("" if landing.any() else "no learning rate is below 4/lambda_0"),
    )  # fmt: skip


def _phases(source: str, ends: Map) -> list[Verdict]:
    """Monotone below 2/lambda_0, a catapult up to where it diverges."""
    below = ends.kinds[ends.multiples < RISES]
    between = (ends.multiples > RISES) & (ends.multiples < DIVERGES) & (ends.kinds != DIVERGED)
    risen = ends.kinds[between]
    peak = ends.peak[ends.kinds == CATAPULT].max(initial=0.0)
    count = int(np.count_nonzero(ends.kinds == UNSETTLED))
    return [
        judge.judge(
            "below eta = 2/lambda_0 the loss falls monotonically", source, "at least",
            1.0, _share(below == MONOTONE),
            f"share of {below.size} learning rates whose loss never rises by 1% of its start",
            vacuous=_idle(ends) or ("" if below.size else "no learning rate is below"),
        ),
        judge.judge(
            "between 2/lambda_0 and 4/lambda_0 it rises and comes down", source, "at least",
            1.0, _share(risen == CATAPULT),
            f"share of {risen.size} learning rates, of those that do not diverge, whose loss rises"
            " by 1% of its start and ends below it",
            vacuous=_idle(ends) or ("" if risen.size else "no learning rate is between"),
            note=f"up to {peak:.3g} times its start; {count} unsettled",
        ),
    ]  # fmt: skip


def _flatter(source: str, ends: Map) -> Verdict:
    """The minimum that was found is stable: its sharpness is at most 2/eta."""
    product = ends.last_sharpness * ends.multiples / ends.curvature
    product = product[np.isin(ends.kinds, (MONOTONE, CATAPULT)) & np.isfinite(product)]
    return judge.judge(
        "where it converges, the sharpness at the end is at most 2/eta", source, "at most",
        RISES, float(product.max(initial=0.0)),
        "sharpness at the end times eta, largest of all that converge",
        vacuous=_idle(ends) or ("" if product.size else "none converges"),
    )  # fmt: skip


def _idle(ends: Map) -> str:
    """Why a run without a step says nothing, or ""."""
    return "" if ends.trajectory.status.step else "no step was taken"


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if chosen.size else float("nan")
