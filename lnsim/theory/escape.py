"""The step at which every neuron leaves the lazy regime: its first passage, without simulation.

(Docstring to come.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.theory import cloud, course
from lnsim.theory.axes import Data
from lnsim.theory.cloud_network import Mean
from lnsim.theory.displacement import Displacements
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold import drift
from lnsim.theory.passage import Watch

FIT_TIMES = 64
"""Times between the first step and the end of the fit at which its noise is followed."""


@dataclass(frozen=True)
class Escape:
    """The predicted escape of m neurons.

    median: of `lazy_escape` over the noise, in steps, -1 where it is after the last step; (m,)
    expansion: the largest small parameter, (4) of modes.py, up to the last look that mattered
    heavy: whether the loss has no variance (displacement.py): then the median is too early
    """

    median: FloatArray
    expansion: float
    heavy: bool


def predict(
    problem: cloud.Problem, network: cloud.Network, dynamics: cloud.Dynamics, steps: int,
    seed: int = 0,
) -> Escape:  # fmt: skip
    steps = checks.integer("steps", steps, 1, checks.MOST_STEPS)
    looks = np.array(looks_of(steps), dtype=np.float64)
    mean = _mean(problem, network, dynamics, looks)
    path = Displacements(mean)
    dims = len(mean.target)
    watch = Watch(len(mean.M), 1 / math.sqrt(len(mean.M)), dims, seed)
    wanted = set(looks.tolist())
    memory, last = 1.0, 0
    for k in range(1, len(mean.course.times)):
        time = path.advance()
        memory *= path.memory
        if time in wanted:
            watch.look(time, path.law(watch.waiting), memory)
            memory = 1.0
        last = k
        if not watch.waiting.size:
            break
    median = watch.median()
    median[np.isinf(median)] = -1.0
    return Escape(median, float(mean.course.expansion[: last + 1].max()), path.heavy)


def lazy_fraction(
    problem: cloud.Problem, network: cloud.Network, dynamics: cloud.Dynamics, times: Any
) -> FloatArray:
    at = checks.array("times", times, 1)
    if at[0] < 0 or not np.all(np.diff(at) > 0):
        raise ValueError("times must ascend, from 0 or later")
    mean = _mean(problem, network, dynamics, at)
    path = Displacements(mean)
    everyone = np.arange(len(mean.M))
    share = {0.0: 1.0}
    radius = 1 / math.sqrt(len(mean.M))
    wanted = set(at.tolist())
    for _ in range(1, len(mean.course.times)):
        time = path.advance()
        if time in wanted:
            share[time] = float(path.law(everyone).inside(radius, len(mean.target)).mean())
    return np.array([share[time] for time in at.tolist()])


def looks_of(steps: int) -> list[int]:
    """The steps up to `steps` at which the record looks for lazy escape: four an octave."""
    looks = {int(2 ** (k / 4)) for k in range(4 * steps.bit_length())}
    return sorted(look for look in looks if look <= steps)


def _mean(
    problem: cloud.Problem, network: cloud.Network, dynamics: cloud.Dynamics, at: FloatArray
) -> Mean:
    """The mean course at 0, at `at`, and at enough times between while the labels are fitted."""
    kicks = dynamics.kicks()
    if not isinstance(kicks, Descent) or kicks.batch_size != 1:
        raise ValueError(f"the theory of escape is of SGD with one sample a step, got {dynamics!r}")
    data = Data.of(problem.X)
    M = np.column_stack([network.W @ data.basis, network.a])
    P, q, _ = course.moments(M.T @ M, np.eye(M.shape[1]))
    slowest = drift(data, data.basis.T @ problem.theta_star, kicks, P, q).slowest
    fitted = course.FITTED / slowest
    fastest = kicks.lr * float(data.spectrum @ np.diag(P) + q * data.spectrum.sum())
    fit = np.geomspace(min(0.3 / fastest, fitted / 2), fitted, FIT_TIMES)
    times = np.unique(np.concatenate([[0.0], fit[fit < min(fitted, at[-1])], at]))
    return cloud.predict(problem, network, dynamics, times).mean
