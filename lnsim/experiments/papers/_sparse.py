"""The sparse regression of Andriushchenko et al. 2022 and 2023, and a figure of test losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lnsim.models.diagonal import Diagonal, diagonal_init
from lnsim.models.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lnsim.simulation.trajectory import Trajectory


def start(samples: int, dim: int, nonzeros: int, scale: float = 0.1) -> tuple[Problem, Diagonal]:
    """The problem and the network u = `scale`, v = 0.

    The data are drawn, as in both papers, from NumPy's legacy generator after seed(0): X, 1,000
    test inputs, and theta*, whose entries from `nonzeros` on are 0 and whose norm is 1.
    """
    draws = np.random.RandomState(0)
    X = draws.multivariate_normal(np.zeros(dim), np.eye(dim), samples)
    X_test = draws.multivariate_normal(np.zeros(dim), np.eye(dim), 1000)
    theta_star = draws.randn(dim)
    theta_star[nonzeros:] = 0.0
    theta_star = np.abs(theta_star) / np.linalg.norm(theta_star)
    problem = Problem(X, X @ theta_star, theta_star, X_test, X_test @ theta_star)
    return problem, diagonal_init(dim, scale)


def test_losses(runs: Mapping[str, Trajectory]) -> Figure:
    """The test loss of each arm over the steps."""
    from lnsim.figures.published import over_steps

    return over_steps(runs, {name: run["test_loss"] for name, run in runs.items()}, "test loss")
