"""The whole course of training by the law of the cloud, on steps of its own.

It is followed on log-spaced steps until nothing moves any more, or as far as the premises hold,
whatever the length of a run.  How far that may be follows from the slowest rate at which the noise
contracts W^T W, lr^2 times the least eigenvalue of K_W (manifold.py), at the start and at rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lnsim.base.checks import MOST_STEPS, FloatArray
from lnsim.theory import cloud, course, full_sam, kicks, paper
from lnsim.theory.axes import direction
from lnsim.theory.course import BeyondExpansion
from lnsim.theory.manifold import Drift, drift
from lnsim.theory.setting import Dynamics, Network, Problem, Setting

KNOTS = 300
"""Steps at which the course is known: neighbours differ by 2 to 8%."""
DECAYS = 40.0
"""It is followed for this many of the slowest times of contraction at first."""
QUIET = 1e-2
"""It is over when |W|_F^2, relatively, and mean |cos| change less in its last three quarters."""
FURTHER, BEFORE, ATTEMPTS = 8.0, 0.8, 5
"""Otherwise it is followed further; or to a step before that at which the theory fails."""


@dataclass(frozen=True)
class Whole:
    """The course; `until` is the step up to which the theory holds, `beyond` why no further."""

    prediction: cloud.Prediction
    until: float = math.inf
    beyond: str = ""


def whole(problem: Problem, network: Network, dynamics: Dynamics) -> Whole:
    """The whole course of `dynamics` from `network`, of one output: ValueError for several.

    Raises the errors of cloud.predict.
    """
    end, until, prediction, beyond = _horizon(problem, network, dynamics), math.inf, None, ""
    for _ in range(ATTEMPTS):
        steps = np.unique(np.append(0.0, np.geomspace(1.0, end, KNOTS)).round())
        try:
            prediction = cloud.predict(problem, network, dynamics, steps)
        except (ValueError, ArithmeticError) as error:
            beyond = str(error)
            fails = error.time if isinstance(error, BeyondExpansion) else end / 2
            end = BEFORE * fails
            if end < 1.0 or (prediction is not None and end <= until):
                break
            continue
        until = end
        if beyond or _settled(prediction) or FURTHER * end > MOST_STEPS:
            break
        end *= FURTHER
    if prediction is None:
        raise ValueError(beyond)
    return Whole(prediction, until, beyond) if beyond else Whole(prediction)


def _horizon(problem: Problem, network: Network, dynamics: Dynamics) -> float:
    """The step up to which a course is followed at first."""
    start = Setting.of(problem, network, dynamics)
    if not start.scalar:
        raise ValueError("the whole course is of one output: a must have shape (m,)")
    data, target, of_steps = start.data, start.target, start.kicks
    if isinstance(of_steps, kicks.FullSharp):
        return min(DECAYS / full_sam.slowest(data, of_steps), float(MOST_STEPS))
    P, q, _ = course.moments(start.M.T @ start.M, np.eye(start.M.shape[1]))
    state = drift(data, target, of_steps, P, q)
    rates = [_contraction(of_steps.lr, state)]
    first, second = paper.stationary_norms(target, np.diag(data.spectrum))
    try:
        unit = direction(target)
        P = first * np.outer(unit, unit)
        rates.append(_contraction(of_steps.lr, drift(data, target, of_steps, P, second)))
    except ValueError:  # no stationary loss there: the course ends before; or theta_star is 0
        pass
    slow = max((DECAYS / rate for rate in rates if rate > 0), default=0.0)
    return min(max(slow, 2 * course.FITTED / max(state.slowest, 1e-300)), float(MOST_STEPS))


def _contraction(lr: float, state: Drift) -> float:
    """The slowest rate per step at which the noise contracts W^T W."""
    return lr**2 * float(np.linalg.eigvalsh(state.K_W)[0])


def _settled(prediction: cloud.Prediction) -> bool:
    """Whether nothing moves in the last three quarters of the course."""
    steps = prediction.times
    ends: FloatArray = np.array([steps[-1] / 4, steps[-1]])
    norm, cosine = (np.interp(ends, steps, prediction[n]) for n in ("norm_squared", "cosine_mean"))
    return bool(abs(norm[1] / norm[0] - 1) < QUIET and abs(cosine[1] - cosine[0]) < QUIET)
