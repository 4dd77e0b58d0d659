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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

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
    full_sam,
    kicks,
)
from lnsim.theory.axes import Data

CONSISTENT = 1e-8
"""Largest |X theta_star - y| over the largest |y| for labels that theta_star interpolates."""


class Problem(Protocol):
    """The data, as lnsim.Problem has them."""

    @property
    def loss(self) -> str: ...
    @property
    def X(self) -> FloatArray: ...
    @property
    def y(self) -> FloatArray: ...
    @property
    def theta_star(self) -> FloatArray | None: ...
    @property
    def X_test(self) -> FloatArray | None: ...
    @property
    def y_test(self) -> FloatArray | None: ...


class Network(Protocol):
    """The network at the start, as lnsim.Network has it."""

    @property
    def W(self) -> FloatArray: ...
    @property
    def a(self) -> FloatArray: ...


class Dynamics(Protocol):
    """A dynamics that says what its steps do in the mean, as those of lnsim.dynamics."""

    def kicks(self) -> kicks.Dynamics: ...


@dataclass(frozen=True)
class Formulas:
    """What is computed from a mean network: of one output, or of several."""

    network: Mapping[str, Callable[[Any], FloatArray]]
    of_trained_part: tuple[str, ...]  # left out where W has a part off the inputs
    over_time: Callable[[Any], dict[str, FloatArray]]
    paths: Callable[[Any, Any], dict[str, FloatArray]]
    neurons: Callable[[Any, int], tuple[FloatArray, FloatArray, FloatArray]]


ONE_OUTPUT = Formulas(
    cloud_network.FORMULAS,
    cloud_network.OF_TRAINED_PART,
    cloud_neurons.over_time,
    cloud_neurons.paths,
    cloud_neurons.neurons,
)
OUTPUTS = Formulas(
    cloud_outputs.FORMULAS,
    cloud_outputs.OF_TRAINED_PART,
    cloud_outputs_neurons.over_time,
    cloud_outputs_neurons.paths,
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
        return [*self._network, *cloud_neurons.FORMULAS]

    @cached_property
    def _network(self) -> dict[str, Callable[[Any], FloatArray]]:
        whole = not self.mean.has_rest
        return {
            name: formula
            for name, formula in self.formulas.network.items()
            if whole or name not in self.formulas.of_trained_part
        }

    def __getitem__(self, name: str) -> FloatArray:
        """A quantity, (T,), or (m,) for lazy_escape.  Raises KeyError for one that is unknown."""
        if name not in self._known:
            if name in cloud_neurons.FORMULAS:
                self._known.update(self.formulas.over_time(self.mean))
            elif name in self._network:
                self._known[name] = self._network[name](self.mean)
            else:
                raise KeyError(f"no prediction of {name!r}: {nearest(name, self.names)}")
        return self._known[name]

    def at(self, chosen: Any) -> Prediction:
        """The prediction at some of its times, an array of their indices, ascending."""
        return Prediction(self.times[chosen], self.mean.at(chosen))

    def paths(self, neurons: Any) -> dict[str, FloatArray]:
        """tracked_norm, tracked_alignment, tracked_second_layer of these neurons, (T, k) each."""
        return self.formulas.paths(self.mean, np.asarray(neurons, dtype=np.int64))

    def cloud(self, k: int) -> tuple[FloatArray, FloatArray]:
        """The expected norm and alignment of every neuron at the k-th time, (m,) each."""
        norms, alignments, _ = self.formulas.neurons(self.mean, k)
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
    if problem.loss != "squared":
        raise ValueError(f"the theory of the cloud is of the squared loss, got {problem.loss!r}")
    theta_star = problem.theta_star
    if theta_star is None:
        raise ValueError("the theory of the cloud needs theta_star: the problem has none")
    one = problem.y.ndim == 1 and network.a.ndim == 1
    target = theta_star if one else np.atleast_2d(theta_star)
    y = problem.y if one else problem.y.reshape(len(problem.X), -1)
    second = network.a if one else np.atleast_2d(network.a)
    checks.shape("a", second, (*target.shape[:-1], len(network.W)), f"y has shape {y.shape}")
    error = float(np.abs(problem.X @ target.T - y).max())
    if error > CONSISTENT * max(float(np.abs(y).max()), 1e-300):
        raise ValueError(
            f"the theory of the cloud needs labels that theta_star interpolates: they differ from"
            f" X theta_star by up to {error:.3g}"
        )
    data, of_steps = Data.of(problem.X), dynamics.kicks()
    M = np.column_stack([network.W @ data.basis, second.T])
    if one:
        theta_star = data.basis.T @ target
        if isinstance(of_steps, kicks.FullSharp):
            followed = full_sam.follow(data, theta_star, M, of_steps, steps)
        else:
            followed = course.follow(data, theta_star, M, of_steps, steps)
        return Prediction(steps, cloud_network.Mean(problem, network, data, of_steps, M, followed))
    if not isinstance(of_steps, kicks.Descent):
        raise ValueError(
            f"the theory of the cloud with a second layer (C, m) is of SGD with label noise, got"
            f" {type(dynamics).__name__}: SAM kicks C outputs along e/|grad l|, e their residuals,"
            f" and the mean of that is not derived"
        )
    of_outputs = course_outputs.follow(data, target @ data.basis, M, of_steps, steps)
    return Prediction(steps, cloud_outputs.Mean(problem, network, data, M, of_outputs), OUTPUTS)
