"""The start of a run as the theory of its course sees it, after a check that it is covered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.theory import kicks
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


class Lifted:
    """What a network in the principal axes has besides: the part of W off the inputs."""

    network: Any
    data: Data
    M: FloatArray

    @cached_property
    def rest(self) -> FloatArray:
        """The part of W that does not move, (m, d)."""
        basis = self.data.basis
        return np.asarray(self.network.W - self.network.W @ basis @ basis.T)

    @property
    def has_rest(self) -> bool:
        """Whether the inputs do not span the whole space."""
        d, r = self.data.basis.shape
        return r < d

    @cached_property
    def gram(self) -> FloatArray:
        """M(0)^T M(0)."""
        return self.M.T @ self.M


@dataclass(frozen=True)
class Setting:
    """The data, and the network and the target in their principal axes, with C outputs."""

    problem: Any
    network: Any
    data: Data
    kicks: kicks.Dynamics
    M: FloatArray  # [W | a] or [W | A^T] at the start, (m, r + C)
    target: FloatArray  # theta_star, (r,), or (C, r)

    @classmethod
    def of(cls, problem: Problem, network: Network, dynamics: Dynamics) -> Setting:
        """Raises ValueError where the theory covers neither the problem nor the dynamics."""
        if problem.loss != "squared":
            raise ValueError(
                f"the theory of the cloud is of the squared loss, got {problem.loss!r}"
            )
        theta_star = problem.theta_star
        if theta_star is None:
            raise ValueError("the theory of the cloud needs theta_star: the problem has none")
        expected = (len(network.W), problem.X.shape[1])
        checks.shape("W", network.W, expected, f"X has {expected[1]} columns")
        one = problem.y.ndim == 1 and network.a.ndim == 1
        target = theta_star if one else np.atleast_2d(theta_star)
        y = problem.y if one else problem.y.reshape(len(problem.X), -1)
        second = network.a if one else np.atleast_2d(network.a)
        expected = (*target.shape[:-1], len(network.W))
        checks.shape("a", second, expected, f"y has shape {y.shape}")
        error = float(np.abs(problem.X @ target.T - y).max())
        if error > CONSISTENT * max(float(np.abs(y).max()), 1e-300):
            raise ValueError(
                f"the theory of the cloud needs labels that theta_star interpolates: they differ"
                f" from X theta_star by up to {error:.3g}"
            )
        data = Data.of(problem.X)
        M = np.column_stack([network.W @ data.basis, second.T])
        return cls(problem, network, data, dynamics.kicks(), M, target @ data.basis)

    @property
    def scalar(self) -> bool:
        """Whether the second layer is an a : (m,)."""
        return self.target.ndim == 1
