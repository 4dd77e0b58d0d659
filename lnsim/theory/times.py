"""When things happen, by the law of the cloud and in a run, by one definition.

    escapes      neuron i is lazy until |w_i(t) - w_i(0)| > 1/sqrt(m) (Definition 1): first neuron,
                 median neuron, last neuron
    half norm    the mean of |w_i| has fallen to half of its start
    alignment, convergence      mean |cos(w_i, theta_star)| has come half, and nine tenths, of its
                 way from its start to 1 (run/phases.py)
    rest         |W|_F^2 is within 5% of that of the stationary state (paper.stationary_norms)

Each is the first such step, interpolated between those at which the course is known.

A predicted course is followed on steps of its own, log-spaced, whatever the length of a run: until
it is at rest, or as far as its premises hold.  How far that may be follows from the slowest rate at
which the noise contracts W^T W, lr^2 times the least eigenvalue of K_W (manifold.py), at the start
and at rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base.checks import MOST_STEPS, FloatArray
from lnsim.run.phases import reached
from lnsim.theory import cloud, course, paper
from lnsim.theory.axes import Data
from lnsim.theory.course import BeyondExpansion
from lnsim.theory.manifold import Drift, drift

WITHIN = 0.05
"""|W|_F^2 is at rest within this share of its stationary value."""
KNOTS = 300
"""Steps at which a course is known: neighbours differ by 2 to 8%, and a time by far less."""
DECAYS = 40.0
"""A course is followed for this many of the slowest times of contraction at first."""
QUIET = 1e-2
"""It is over when |W|_F^2, relatively, and mean |cos| change less in its last three quarters."""
FURTHER, BEFORE, ATTEMPTS = 8.0, 0.8, 5
"""Otherwise it is followed further; or to a step before that at which the theory fails."""


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
        return step if math.isfinite(step) or np.isnan(values).all() else math.inf

    escape = quantity("lazy_escape")
    escape = np.where(escape < 0, np.inf, escape)
    norm, cosine = quantity("norm_mean"), quantity("cosine_mean")
    half, most = (float(cosine[0] + share * (1 - cosine[0])) for share in (0.5, 0.9))
    from_rest = np.abs(quantity("norm_squared") / at_rest - 1)
    return Times(
        first_escape=float(escape.min()),
        median_escape=float(np.median(escape)),
        last_escape=float(escape.max()),
        half_norm=first(-norm, -float(norm[0]) / 2),
        alignment=first(cosine, half),
        convergence=first(cosine, most),
        rest=first(-from_rest, -WITHIN),
    )


@dataclass(frozen=True)
class Foretold:
    """The predicted times; NaN for what happens after step `until`, `beyond` which says why."""

    times: Times
    until: float = math.inf
    beyond: str = ""


def foretell(
    problem: cloud.Problem, network: cloud.Network, dynamics: cloud.Dynamics, at_rest: float
) -> Foretold:
    """The times of `dynamics` from `network`; `at_rest` is the stationary |W|_F^2.

    Raises ValueError or ArithmeticError as cloud.predict does.
    """
    end, times, until, beyond = _horizon(problem, network, dynamics), None, math.inf, ""
    for _ in range(ATTEMPTS):
        steps = np.unique(np.append(0.0, np.geomspace(1.0, end, KNOTS)).round())
        try:
            prediction = cloud.predict(problem, network, dynamics, steps)
        except (ValueError, ArithmeticError) as error:
            beyond = str(error)
            before = error.time if isinstance(error, BeyondExpansion) else end / 2
            end = before * BEFORE
            if end < 1.0 or (times is not None and end <= until):
                break
            continue
        times, until = of_course(steps, prediction.__getitem__, at_rest), end
        if beyond or _settled(steps, prediction) or end > MOST_STEPS:
            break
        end *= FURTHER
    if times is None:
        raise ValueError(beyond)
    if not beyond:
        return Foretold(times)
    known = {name: t if math.isfinite(t) else math.nan for name, t in vars(times).items()}
    return Foretold(Times(**known), until, beyond)


def _horizon(problem: cloud.Problem, network: cloud.Network, dynamics: cloud.Dynamics) -> float:
    """The step up to which a course is followed at first."""
    if problem.theta_star is None:
        raise ValueError("the theory of the cloud needs theta_star: the problem has none")
    data, of_steps = Data.of(problem.X), dynamics.kicks()
    target = data.basis.T @ problem.theta_star
    M = np.column_stack([network.W @ data.basis, network.a])
    P, q, _ = course.moments(M.T @ M, np.eye(M.shape[1]))
    start = drift(data, target, of_steps, P, q)
    rates = [_contraction(of_steps.lr, start)]
    first, second = paper.stationary_norms(target, np.diag(data.spectrum))
    try:
        P = first * np.outer(target, target) / (target @ target)
        rates.append(_contraction(of_steps.lr, drift(data, target, of_steps, P, second)))
    except ValueError:  # no stationary loss there: the course ends before
        pass
    slow = max((DECAYS / rate for rate in rates if rate > 0), default=0.0)
    return min(max(slow, 2 * course.FITTED / start.slowest), float(MOST_STEPS))


def _contraction(lr: float, state: Drift) -> float:
    """The slowest rate per step at which the noise contracts W^T W."""
    return lr**2 * float(np.linalg.eigvalsh(state.K_W)[0])


def _settled(steps: FloatArray, prediction: cloud.Prediction) -> bool:
    """Whether nothing moves in the last three quarters of the course."""
    last = np.array([steps[-1] / 4, steps[-1]])
    norm, cosine = (np.interp(last, steps, prediction[n]) for n in ("norm_squared", "cosine_mean"))
    return bool(abs(norm[1] / norm[0] - 1) < QUIET and abs(cosine[1] - cosine[0]) < QUIET)
