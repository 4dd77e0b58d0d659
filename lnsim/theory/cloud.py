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

It covers one output under the squared loss, labels X theta_star, and the dynamics that say so
(`Dynamics.kicks`).  For C outputs the product from the right still holds (models/two_layer.py), but
the fluctuation of the predictor then has a covariance of (C d)^2 numbers, whose equations are not
derived here: it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.theory import cloud_network, cloud_neurons, course, full_sam, kicks
from lnsim.theory.axes import Data
from lnsim.theory.cloud_network import Mean

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
class Prediction:
    """The predicted course at `times` : (T,), asked by the names of the record's arrays.

    `names` are those of the network and of the mean over neurons, each (T,); "lazy_escape" is (m,).
    `paths` and `cloud` are of single neurons.  Each is computed when first asked for.  `expansion`
    : (T,) is the small parameter, (4) of modes.py; `fitted` the step by which the labels are fitted
    and the noise is quasi-stationary.
    """

    times: FloatArray
    mean: Mean = field(repr=False)
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
    def _network(self) -> dict[str, Callable[[Mean], FloatArray]]:
        whole = not self.mean.has_rest
        return {
            name: formula
            for name, formula in cloud_network.FORMULAS.items()
            if whole or name not in cloud_network.OF_TRAINED_PART
        }

    def __getitem__(self, name: str) -> FloatArray:
        """A quantity, (T,), or (m,) for lazy_escape.  Raises KeyError for one that is unknown."""
        if name not in self._known:
            if name in cloud_neurons.FORMULAS:
                self._known.update(cloud_neurons.over_time(self.mean))
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
        return cloud_neurons.paths(self.mean, np.asarray(neurons, dtype=np.int64))

    def cloud(self, k: int) -> tuple[FloatArray, FloatArray]:
        """The expected norm and alignment of every neuron at the k-th time, (m,) each."""
        norms, alignments, _ = cloud_neurons.neurons(self.mean, k)
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
    if problem.y.ndim != 1 or network.a.ndim != 1:
        raise ValueError("the theory of the cloud is of one output: a must have shape (m,)")
    theta_star = problem.theta_star
    if theta_star is None:
        raise ValueError("the theory of the cloud needs theta_star: the problem has none")
    error = float(np.abs(problem.X @ theta_star - problem.y).max())
    if error > CONSISTENT * max(float(np.abs(problem.y).max()), 1e-300):
        raise ValueError(
            f"the theory of the cloud needs labels that theta_star interpolates: they differ from"
            f" X theta_star by up to {error:.3g}"
        )
    data = Data.of(problem.X)
    M = np.column_stack([network.W @ data.basis, network.a])
    of_steps = dynamics.kicks()
    target = data.basis.T @ theta_star
    if isinstance(of_steps, kicks.FullSharp):
        followed = full_sam.follow(data, target, M, of_steps, steps)
    else:
        followed = course.follow(data, target, M, of_steps, steps)
    return Prediction(steps, Mean(problem, network, data, of_steps, M, followed))
