"""The law of the cloud: every recorded quantity of a run from its start and the data alone.

Training multiplies M = [W | a] from the right, so one matrix G(t), (r + 1, r + 1), carries every
neuron: M(t) = M(0) G(t) exp(S(z)).  course.py has the equations for its mean course and for the
covariance Z of the fast fluctuation z; modes.py derives the drift; full_sam.py has those of SAM
over all samples, which has no draws.  The equations have no fitted parameter, and no step is
simulated save the first some hundred of full-batch SAM.  To second order in z

    E[M] = M(0) G (I + S(zbar) + diag(Z, tr Z)/2),

about which w_i fluctuates by a_i z and a_i by w_i.z, with z normal of covariance Z.  The quantities
follow from these moments: those of the network in cloud_network.py, those of the neurons in
cloud_neurons.py.

    from lnsim.theory import cloud
    prediction = cloud.predict(problem, network, SGD(1e-3, LabelNoise(4.0)), times)
    prediction["norm_mean"], prediction["train_loss"], prediction["lazy_escape"]

It covers the squared loss, labels X theta_star, and the dynamics that say so (`Dynamics.kicks`).
With an A : (C, m) in place of a the quantities are those of course_outputs.py, cloud_outputs.py and
cloud_outputs_neurons.py, by the same names.  There only label noise SGD is covered, not SAM, whose
kick to C outputs is not a function of one normal variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.theory import (
    cloud_network,
    cloud_neurons,
    cloud_outputs,
    cloud_outputs_neurons,
    course,
    course_outputs,
    escape,
    full_sam,
    kicks,
)
from lnsim.theory.setting import Dynamics, Network, Problem, Setting

LAZY = ("lazy_escape", "lazy_fraction")
"""What escape.py predicts."""


@dataclass(frozen=True)
class Formulas:
    """What is computed from a mean network: of one output, or of several."""

    network: Mapping[str, Callable[[Any], FloatArray]]
    of_trained_part: tuple[str, ...]  # left out where W has a part off the inputs
    over_time: Callable[[Any], dict[str, FloatArray]]
    neurons: Callable[[Any, int, Any], tuple[FloatArray, FloatArray, FloatArray]]


ONE_OUTPUT = Formulas(
    cloud_network.FORMULAS,
    cloud_network.OF_TRAINED_PART,
    cloud_neurons.over_time,
    cloud_neurons.neurons,
)
OUTPUTS = Formulas(
    cloud_outputs.FORMULAS,
    cloud_outputs.OF_TRAINED_PART,
    cloud_outputs_neurons.over_time,
    cloud_outputs_neurons.neurons,
)


@dataclass(frozen=True)
class Prediction:
    """The predicted course at `times` : (T,), asked by the names of the record's arrays.

    `names` are those of the network and of the mean over neurons, each (T,); "lazy_escape" is (m,).
    `paths` and `cloud` are of single neurons.  Each is computed when first asked for.  `expansion`
    : (T,) is the small parameter, (4) of modes.py; `fitted` the step by which the labels are fitted
    and the noise is quasi-stationary.
    """

    times: FloatArray
    mean: cloud_network.Mean | cloud_outputs.Mean = field(repr=False)
    formulas: Formulas = field(default=ONE_OUTPUT, repr=False)
    _known: dict[str, FloatArray] = field(default_factory=dict, repr=False)

    @property
    def expansion(self) -> FloatArray:
        return self.mean.course.expansion

    @property
    def fitted(self) -> float:
        return self.mean.course.fitted

    @property
    def names(self) -> list[str]:
        """The quantities over time that can be asked for."""
        lazy = [] if self._start is None else ["lazy_fraction"]
        return [*self._network, *cloud_neurons.FORMULAS, *lazy]

    @cached_property
    def _start(self) -> Setting | None:
        """The start, where the escape of its neurons is covered (escape.py)."""
        if not isinstance(self.mean, cloud_network.Mean):
            return None
        start = self.mean.start
        return start if escape.covers(start) else None

    @cached_property
    def escape(self) -> escape.Escape | None:
        """The escape of every neuron up to the last time, where it is covered (escape.py)."""
        if self._start is None:
            return None
        return escape.first_passage(self._start, int(self.times[-1]))

    @cached_property
    def unescaped(self) -> str:
        """Why the escape of neurons is not predicted, or ""."""
        if self.escape is None:
            return "it is derived for one output and label noise SGD with one sample a step"
        if self.escape.excess == math.inf:
            return (
                "the variance of the loss is infinite, which makes medians too early: take a"
                " smaller lr"
            )
        return ""

    def _reason(self, name: str) -> str:
        """Why a quantity cannot be asked for."""
        if name in LAZY:
            return self.unescaped
        if name.startswith(("tracked_", "cloud_")):
            return "single neurons are asked of `paths` and `cloud`"
        if name in cloud_network.FORMULAS:
            return (
                "it is not derived for several outputs, or where the inputs do not span the space"
            )
        return nearest(name, self.names)

    @cached_property
    def _network(self) -> dict[str, Callable[[Any], FloatArray]]:
        whole = not self.mean.has_rest
        return {
            name: formula
            for name, formula in self.formulas.network.items()
            if whole or name not in self.formulas.of_trained_part
        }

    def __getitem__(self, name: str) -> FloatArray:
        """A quantity, (T,), or (m,) for lazy_escape.  Raises KeyError for one that is unknown.

        lazy_escape has the medians over the noise, -1 after the last time; `unescaped` says where
        there is none, and lazy_fraction is NaN.
        """
        if name not in self._known:
            if name in cloud_neurons.FORMULAS:
                self._known.update(self.formulas.over_time(self.mean))
            elif name in self._network:
                self._known[name] = self._network[name](self.mean)
            elif name == "lazy_escape" and self.escape is not None and not self.unescaped:
                self._known[name] = self.escape.median
            elif name == "lazy_fraction" and self._start is not None:
                self._known[name] = np.full(len(self.times), np.nan)
                if not self.unescaped:
                    self._known[name] = escape.share_inside(self._start, self.times)
            else:
                raise KeyError(f"no prediction of {name!r}: {self._reason(name)}")
        return self._known[name]

    def at(self, chosen: Any) -> Prediction:
        """The prediction at some of its times, an array of their indices, ascending."""
        return Prediction(self.times[chosen], self.mean.at(chosen), self.formulas)

    def paths(self, neurons: Any) -> dict[str, FloatArray]:
        """tracked_norm, tracked_alignment, tracked_second_layer of these neurons, (T, k) each.

        `neurons` : (k,) are their numbers, whole ones: TypeError for others.
        """
        chosen = np.asarray(neurons)
        if chosen.dtype.kind not in "iu":
            raise TypeError(f"neurons must be whole numbers, got {neurons!r}")
        rows = [self.formulas.neurons(self.mean, k, chosen) for k in range(len(self.times))]
        names = ("tracked_norm", "tracked_alignment", "tracked_second_layer")
        return {name: np.stack([row[j] for row in rows]) for j, name in enumerate(names)}

    def cloud(self, k: int) -> tuple[FloatArray, FloatArray]:
        """The expected norm and alignment of every neuron at the k-th time, (m,) each."""
        norms, alignments, _ = self.formulas.neurons(self.mean, k, None)
        return norms, alignments


def predict(problem: Problem, network: Network, dynamics: Dynamics, times: Any) -> Prediction:
    """The mean course of `dynamics` from `network` at `times` : (T,), steps that ascend from >= 0.

    The cost depends on n and d, and little on the last time; that of the neurons' quantities grows
    as T m d^2.  Raises ValueError where the theory does not cover the problem or the dynamics,
    where its small parameter exceeds 1, and if lr is too large for a stationary loss;
    ArithmeticError if the start cannot be followed.
    """
    steps = checks.array("times", times, 1)
    if steps[0] < 0 or not np.all(np.diff(steps) > 0):
        raise ValueError("times must ascend, from 0 or later")
    start = Setting.of(problem, network, dynamics)
    data, target, M, of_steps = start.data, start.target, start.M, start.kicks
    if start.scalar:
        if isinstance(of_steps, kicks.FullSharp):
            followed = full_sam.follow(data, target, M, of_steps, steps)
        else:
            followed = course.follow(data, target, M, of_steps, steps)
        return Prediction(steps, cloud_network.Mean(problem, network, data, of_steps, M, followed))
    if not isinstance(of_steps, kicks.Descent):
        raise ValueError(
            f"the theory of the cloud with a second layer (C, m) is of SGD with label noise, got"
            f" {type(dynamics).__name__}: SAM kicks C outputs along e/|grad l|, e their residuals,"
            f" and the mean of that is not derived"
        )
    of_outputs = course_outputs.follow(data, target, M, of_steps, steps)
    return Prediction(steps, cloud_outputs.Mean(problem, network, data, M, of_outputs), OUTPUTS)
