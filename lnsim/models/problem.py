"""Regression problems: what the network is to learn (paper.md, "Model and training")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.threads import one_blas_thread


@dataclass(frozen=True)
class Problem:
    """Training data, test data and the interpolator that alignment is measured against.

    X : (n, d) float64, y : (n,) float64; theta_star : (d,); X_test : (n_test, d), y_test :
    (n_test,).  Left out, `theta_star` is the least-squares solution of smallest norm; without
    test data there is no test loss.  Labels are clean: noise belongs to the dynamics.
    Raises TypeError or ValueError for wrong types, shapes that do not fit, NaN or infinity.
    """

    X: FloatArray
    y: FloatArray
    theta_star: FloatArray | None = None
    X_test: FloatArray | None = None
    y_test: FloatArray | None = None

    def __post_init__(self) -> None:
        X = checks.array("X", self.X, 2)
        y = checks.array("y", self.y, 1)
        samples, dim = X.shape
        checks.shape("y", y, (samples,), f"X has {samples} rows")
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", y)
        if self.theta_star is None:
            with one_blas_thread():
                theta_star = np.linalg.lstsq(X, y, rcond=None)[0]
        else:
            theta_star = checks.array("theta_star", self.theta_star, 1)
            checks.shape("theta_star", theta_star, (dim,), f"X has {dim} columns")
        object.__setattr__(self, "theta_star", theta_star)
        if (self.X_test is None) != (self.y_test is None):
            raise ValueError("X_test and y_test must be given together, or neither")
        if self.X_test is not None:
            X_test = checks.array("X_test", self.X_test, 2)
            y_test = checks.array("y_test", self.y_test, 1)
            checks.shape("X_test", X_test, (len(X_test), dim), f"X has {dim} columns")
            checks.shape("y_test", y_test, (len(X_test),), f"X_test has {len(X_test)} rows")
            object.__setattr__(self, "X_test", X_test)
            object.__setattr__(self, "y_test", y_test)

    @cached_property
    def gram(self) -> FloatArray:
        """X^T X / n, shape (d, d)."""
        return np.ascontiguousarray(self.X.T @ self.X) / self.samples

    @cached_property
    def moment(self) -> FloatArray:
        """X^T y / n, shape (d,)."""
        return self.X.T @ self.y / self.samples

    @cached_property
    def square(self) -> float:
        """y^T y / n."""
        return float(self.y @ self.y) / self.samples

    @property
    def samples(self) -> int:
        """n, the number of training samples."""
        return self.X.shape[0]

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.X.shape[1]


@one_blas_thread()
def gaussian_regression(
    samples: int,
    dim: int,
    seed: int = 0,
    *,
    theta_norm: float | None = None,
    test_samples: int = 1000,
) -> Problem:
    """The paper's data: x ~ N(0, I_d), y = <theta_star, x>, and a test set of the same law.

    theta_star ~ N(0, I_d), whose norm is about sqrt(d) (the paper leaves it open), rescaled to
    norm `theta_norm` where that is given.  Raises ValueError for values out of range.
    """
    samples = checks.integer("samples", samples, 1, checks.MOST_ENTRIES)
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    test_samples = checks.integer("test_samples", test_samples, 1, checks.MOST_ENTRIES)
    theta_star = streams.generator(seed, "theta_star").standard_normal(dim)
    if theta_norm is not None:
        norm = checks.real("theta_norm", theta_norm, above=0.0)
        theta_star *= norm / np.linalg.norm(theta_star)
    X = streams.generator(seed, "train").standard_normal((samples, dim))
    X_test = streams.generator(seed, "test").standard_normal((test_samples, dim))
    with np.errstate(over="ignore", invalid="ignore"):
        y, y_test = X @ theta_star, X_test @ theta_star
        squares = np.array([y @ y, y_test @ y_test])
    if not np.isfinite(squares).all():
        raise ValueError(
            f"theta_norm must be so small that squared labels are finite, got {theta_norm}"
        )
    return Problem(X, y, theta_star, X_test, y_test)
