"""The step at which every neuron leaves the lazy regime: its first passage, without simulation.

Neuron i is lazy while |w_i(t) - w_i(0)| <= 1/sqrt(m) (Definition 1).  The record's `lazy_escape`
is the first step at which it is seen not to be, by a watch that looks at four steps an octave and
interpolates (simulation/watch.py).  `predict` gives the median of it over the noise, for every
neuron, from the initial weights and the data alone; nothing is fitted.  The paper bounds the last
of these times (Theorem 2); the prediction is ours.

    from lnsim.theory import escape
    escape.predict(problem, network, SGD(1e-3, noise=LabelNoise(4.0)), steps=20_000).median

The displacement has a mean and fluctuations (displacement.py, fit_noise.py), which are of the order
of the radius at the time of escape.  The mean contraction alone gives times from right to ten times
too late.  What else counts:
  - The mean course (course.py): the fit of the labels, then the drift along the interpolators.
  - The fast fluctuation a_i z.  A path may pass at a look at which z is large.
  - The rotation of the inputs that the area of z's path leaves: as the paths of z and dz do not
    commute, w_i diffuses across itself.  At the figures' setting it is a sixth of |D|^2.
  - The rotation that noise leaves while the labels are fitted, which neurons keep for good.
  - The contraction, a sum of few large terms.
passage.py takes the first passage over the looks, by a sum over fixed paths.

What it leaves out.  Laws are taken from their first moments; fluctuations of z are of first order
about the mean course, which holds while the small parameter, (4) of modes.py, is small; `excess` is
a second one: where it is infinite, so is the variance of the loss, and the median is too early.
docs/escape.md has both, and the errors, at 54 settings.

It covers label noise SGD with one sample a step, and any law of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.theory import course
from lnsim.theory.cloud_network import Mean
from lnsim.theory.displacement import Displacements
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold import drift
from lnsim.theory.passage import Watch
from lnsim.theory.setting import Dynamics, Network, Problem, Setting

FIT_TIMES = 64
"""Times between the first step and the end of the fit at which its noise is followed."""


@dataclass(frozen=True)
class Escape:
    """The predicted escape of m neurons.

    median: of `lazy_escape` over the noise, in steps, -1 where it is after the last step; (m,)
    expansion: the largest small parameter, (4) of modes.py, up to the last of them
    excess: that of the fourth moment of the residuals over a normal law's, relatively; infinite
        where the variance of the loss is (displacement.py): then the medians are too early; -inf
        without label noise
    """

    median: FloatArray
    expansion: float
    excess: float


def predict(
    problem: Problem, network: Network, dynamics: Dynamics, steps: int,
    seed: int = 0,
) -> Escape:  # fmt: skip
    """The escape of every neuron from `network` within `steps` steps of `dynamics`.

    The cost grows with m, and hardly with `steps`: about 1 s at m = 1,000, d = 20, 15 s at d = 100.
    `seed` is of the order of the fixed paths: another moves a median by 7% of the standard
    deviation of runs.
    Raises ValueError where the theory does not cover the problem or the dynamics, where its small
    parameter exceeds 1, and if lr is too large for a stationary loss.
    """
    steps = checks.integer("steps", steps, 1, checks.MOST_STEPS)
    return first_passage(_start(problem, network, dynamics), steps, seed)


def covers(start: Setting) -> bool:
    """Whether the theory of escape covers it."""
    return start.scalar and isinstance(start.kicks, Descent) and start.kicks.batch_size == 1


def first_passage(start: Setting, steps: int, seed: int = 0) -> Escape:
    """As `predict`, from a start that is covered."""
    looks = np.array(looks_of(max(steps, 1)), dtype=np.float64)
    mean = _mean(start, looks)
    path = Displacements(mean, looks)
    radius = 1 / math.sqrt(len(mean.M))
    watch = Watch(len(mean.M), radius, len(mean.target), seed)
    last = 0.0
    for last in path:
        watch.look(last, path.law(watch.waiting, radius), path.memory)
        if not watch.waiting.size:
            break
    median = watch.median()
    median[np.isinf(median)] = -1.0
    return Escape(
        median, float(mean.course.expansion[mean.course.times <= last].max()), path.excess
    )


def lazy_fraction(problem: Problem, network: Network, dynamics: Dynamics, times: Any) -> FloatArray:
    """The expected share of neurons with |w_i - w_i(0)| <= 1/sqrt(m) at `times` : (T,), ascending.

    This is the record's lazy_fraction: of the neurons at the time itself, whenever they first
    left.  Raises as `predict` does.
    """
    at = checks.array("times", times, 1)
    if at[0] < 0 or not np.all(np.diff(at) > 0):
        raise ValueError("times must ascend, from 0 or later")
    return share_inside(_start(problem, network, dynamics), at)


def share_inside(start: Setting, at: FloatArray) -> FloatArray:
    """As `lazy_fraction`, from a start that is covered."""
    looks = np.array(looks_of(math.floor(at[-1])), dtype=np.float64)
    mean = _mean(start, np.union1d(at, looks))
    path = Displacements(mean, np.union1d(at, looks))
    everyone, radius = np.arange(len(mean.M)), 1 / math.sqrt(len(mean.M))
    share, wanted = {0.0: 1.0}, set(at.tolist())
    for time in path:
        if time in wanted:
            share[time] = float(path.law(everyone).inside(radius, len(mean.target)).mean())
    return np.array([share[time] for time in at.tolist()])


def looks_of(steps: int) -> list[int]:
    """The steps up to `steps` at which the record looks for lazy escape: four an octave."""
    looks = {int(2 ** (k / 4)) for k in range(4 * steps.bit_length())}
    return sorted(look for look in looks if look <= steps)


def _start(problem: Problem, network: Network, dynamics: Dynamics) -> Setting:
    start = Setting.of(problem, network, dynamics)
    if not covers(start):
        raise ValueError(
            "the theory of escape is of one output and SGD with one sample a step, got a second"
            f" layer of shape {network.a.shape} and {dynamics!r}"
        )
    return start


def _mean(start: Setting, at: FloatArray) -> Mean:
    """The mean course at 0, at `at`, and at enough times between while the labels are fitted."""
    data, M, kicks = start.data, start.M, start.kicks
    P, q, _ = course.moments(M.T @ M, np.eye(M.shape[1]))
    fitted = course.end_of_fit(drift(data, start.target, kicks, P, q).slowest)
    fastest = kicks.lr * float(data.spectrum @ np.diag(P) + q * data.spectrum.sum())
    fit = np.geomspace(min(0.3 / fastest, fitted / 2), fitted, FIT_TIMES)
    times = np.unique(np.concatenate([[0.0], fit[fit < min(fitted, at[-1])], at]))
    followed = course.follow(data, start.target, M, kicks, times)
    return Mean(start.problem, start.network, data, kicks, M, followed)
