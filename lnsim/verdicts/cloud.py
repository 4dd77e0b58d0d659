"""The claims of the law of the cloud: predicted courses and times, held against seeds of a run.

The law predicts means over the noise.  A course is judged by the mean over the seeds of measured
over predicted values, averaged over the records of a window; the windows halve the run again and
again, so that early ones are short, and the largest deviation counts.  Times are those of the mean
course over the seeds, as a single run, which fluctuates more, is at a level too early; where a
course is flat they are far more sensitive than it is, and the note says how far it is off.

Statistics.  Seeds are independent, so the spread of their window means gives the standard error of
the mean, however the records of a run are correlated.  What fluctuates most is a loss.  It is a sum
over modes of squared normal numbers, whose relative standard deviation is sqrt(2 sum_i p_i^2), p_i
the share of mode i: at the figures' setting 0.32 at the start, where 20 modes have equal shares,
and 0.74 at rest, where one mode has half of it.  2,000 records of 8 seeds give the first of 6
windows 8 x 62 and the last 8 x 1,000 numbers, nearly independent where records are further apart
than a mode takes to relax, and so standard errors of about 1.4% and 0.8%: less than a third of the
5% allowed.  Where one is more than a third, the rule allows two of them more, and the note has it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.experiments.case import Case
from lnsim.run.times import WITHIN, Times, of_course
from lnsim.simulation.trajectory import Trajectory
from lnsim.verdicts import judge
from lnsim.verdicts.claims import of_run
from lnsim.verdicts.judge import Verdict

WINDOWS = 6
RESAMPLES = 100
"""Draws of the seeds, with replacement, whose spread is the standard error of a time."""
TIMES_WITHIN = 0.05


@dataclass(frozen=True)
class Curve:
    """A predicted course: what it is, and the deviation allowed, a share or else absolute."""

    name: str
    says: str
    bound: float
    relative: bool = True


CURVES = (
    Curve("norm_mean", "mean |w_i|", 0.01),
    Curve("norm_squared", "|W|_F^2", 0.02),
    Curve("alignment_mean", "mean |<w_i, theta*>|", 0.02),
    Curve("cosine_mean", "mean |cos(w_i, theta*)|", 0.02, relative=False),
    Curve("ntk_distance", "the distance of the tangent kernel from its start", 0.03),
    Curve("train_loss", "the training loss", 0.05),
    Curve("test_loss", "the test loss", 0.05),
    Curve("linearized_train_loss", "the training loss of the linearised twin", 0.05),
    Curve("linearized_test_loss", "the test loss of the linearised twin", 0.05),
    Curve("hessian_trace", "tr H", 0.02),
)

TIMES = {
    "first_escape": "the first neuron leaves the lazy regime",
    "median_escape": "half of the neurons have left the lazy regime",
    "last_escape": "the last neuron leaves the lazy regime",
    "half_norm": "mean |w_i| is half of its start",
    "alignment": "mean |cos(w_i, theta*)| is half of its way to 1",
    "convergence": "mean |cos(w_i, theta*)| is nine tenths of its way to 1",
    "rest": f"|W|_F^2 is within {WITHIN:.0%} of its value at rest",
}


COURSE_OF = {
    "half_norm": "norm_mean",
    "alignment": "cosine_mean",
    "convergence": "cosine_mean",
    "rest": "norm_squared",
}
"""The course by which a time is defined."""


def law_of_the_cloud(case: Case, source: str) -> list[Verdict]:
    """The times and the courses of `case`, whose run has at least two seeds."""
    return [*times(case, source), *courses(case, source)]


def courses(case: Case, source: str) -> list[Verdict]:
    """A claim for each of CURVES."""
    run, prediction = of_run(case), case.prediction
    verdicts = []
    for curve in CURVES:
        worst, allowed, note = math.nan, curve.bound, ""
        vacuous = case.unpredicted
        if prediction is not None:
            worst, allowed, note = _worst(run, curve, prediction[curve.name])
            vacuous = "" if math.isfinite(worst) else "nothing to compare"
        size = f"{curve.bound:.0%}" if curve.relative else f"{curve.bound:g}"
        kind = "relative deviation" if curve.relative else "deviation"
        verdicts.append(
            judge.judge(
                f"{curve.says} over time", source, "at most", allowed, worst,
                f"largest {kind} of a mean over {_seeds(run)} seeds and a"
                f" window, of {WINDOWS} that halve the run; at most {size}, {judge.ALLOWANCE}",
                note=note, vacuous=vacuous,
            )
        )  # fmt: skip
    return verdicts


def windows(records: int) -> list[slice]:
    """The records after the first in windows that halve the run again and again, latest last."""
    edges = [0, *((records - 1) >> k for k in reversed(range(WINDOWS)))]
    return [slice(a + 1, b + 1) for a, b in itertools.pairwise(edges) if a < b]


def _worst(run: Trajectory, curve: Curve, predicted: FloatArray) -> tuple[float, float, str]:
    """The largest deviation of a window beside what is allowed, this, and where it is."""
    measured = np.atleast_2d(run[curve.name])
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = measured / predicted - 1 if curve.relative else measured - predicted
    worst = (math.nan, curve.bound, "")
    for window in windows(len(run.steps)):
        values = deviation[:, window].mean(axis=1)
        mean, error = abs(float(values.mean())), _standard_error(values)
        allowed = judge.allowance(curve.bound, error)
        if not mean / allowed <= worst[0] / worst[1]:
            first, last = run.steps[window][[0, -1]]
            note = f"in steps {first:,} to {last:,}; the standard error is {error:.2g}"
            worst = (mean, allowed, note)
    return worst


def _standard_error(of_seeds: FloatArray) -> float:
    return float(of_seeds.std(ddof=1) / math.sqrt(len(of_seeds)))


def times(case: Case, source: str) -> list[Verdict]:
    """A claim for each of TIMES; vacuous, with the reason, where a time is not predicted."""
    run, predicted = of_run(case), case.predicted_times
    measured, errors = of_seeds(case)
    verdicts = []
    for name, says in TIMES.items():
        time, step, error = (math.nan, *(vars(t)[name] for t in (measured, errors)))
        vacuous = case.whole if isinstance(case.whole, str) else case.whole.beyond
        if predicted is not None:
            time = vars(predicted)[name]
            if math.isfinite(time):
                vacuous = "" if time <= run.status.step else "the run ends before"
            elif math.isinf(time):
                vacuous = "it is predicted never to happen"
            elif not vacuous:
                assert not isinstance(case.whole, str)
                vacuous = case.whole.prediction.unescaped
        share = error / time
        within = judge.allowance(TIMES_WITHIN, share if math.isfinite(share) else 0.0)
        verdicts.append(
            judge.judge(
                f"the step at which {says}", source, "about", time,
                step if math.isfinite(step) else math.nan,
                f"of the {'mean course' if name in COURSE_OF else 'median escape of each neuron'}"
                f" over {_seeds(run)} seeds; within {TIMES_WITHIN:.0%}, {judge.ALLOWANCE}",
                within=within, vacuous=vacuous,
                note="; ".join([*_there(case, name, time), *_error(share)]),
            )
        )  # fmt: skip
    return verdicts


def _there(case: Case, name: str, time: float) -> list[str]:
    """How far a measured course is from the predicted one at the predicted step."""
    run = of_run(case)
    if name not in COURSE_OF or not time <= run.status.step or isinstance(case.whole, str):
        return []
    course, quantity = case.whole.prediction, COURSE_OF[name]
    measured = np.interp(time, run.steps, np.atleast_2d(run[quantity]).mean(axis=0))
    predicted = np.interp(time, course.times, course[quantity])
    return [f"what is measured at the predicted step differs by {measured / predicted - 1:+.2%}"]


def _error(share: float) -> list[str]:
    return [f"the standard error is {share:.2%}"] if math.isfinite(share) else []


def _seeds(run: Trajectory) -> int:
    return len(np.atleast_2d(run["norm_mean"]))


def of_seeds(case: Case) -> tuple[Times, Times]:
    """The times of the mean course over the seeds of a run, and their standard errors."""
    run, count = of_run(case), _seeds(of_run(case))
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    values = [list(vars(_of_mean(case, run, chosen)).values()) for chosen in draws]
    with np.errstate(invalid="ignore"):  # of what a draw does not reach
        errors = np.std(np.array(values), axis=0) * math.sqrt(count / (count - 1))
    return _of_mean(case, run, np.arange(count)), Times(*errors.tolist())


def _of_mean(case: Case, run: Trajectory, chosen: NDArray[np.int64]) -> Times:
    """The times of the mean course over these seeds; of each neuron the median escape."""

    def series(name: str) -> FloatArray:
        values = np.atleast_2d(run[name])[chosen]
        if name != "lazy_escape":
            return np.asarray(values.mean(axis=0))
        return np.asarray(np.median(np.where(values < 0, np.inf, values), axis=0))

    return of_course(run.steps, series, case.stationary[0])
