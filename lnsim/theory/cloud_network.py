"""Quantities of the network by the law of the cloud, from the moments of cloud.py.

With P, q, theta from E[M], and w_i fluctuating by a_i z, a_i by w_i.z, the expected second moments
are

    E[W^T W] = P + q Z,   E|a|^2 = q + tr(Z P),   Cov[theta] = C.

Losses are means of squared residuals: half the trace of C in the metric of the samples, plus the
squared mean.  The tangent kernel's matrix A = W^T W + |a|^2 I fluctuates by theta z^T + z theta^T +
2 theta.z I.  With Gamma = X^T X the mean of |K_t - K_0|_F^2 = tr(D Gamma D Gamma) is that of the
mean D, plus

    2 theta^T Gamma Z Gamma theta + 2 tr(Gamma Z) theta^T Gamma theta + 8 theta^T Z Gamma^2 theta
    + 4 theta^T Z theta tr Gamma^2.

A mean of a norm |v| with E|v|^2 = s is taken as sqrt(s) (1 - Var|v|^2/(8 s^2)).  The sharpness
depends on z through the residuals too; its mean is over the 2 r points z = zbar +- sqrt(r) L_j,
L L^T = Z, exact to second order in z.

Weights outside the span of the inputs do not move; `rest` is W less its part there, and the
predictor off the inputs is rest^T a.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory import course, flatness, kicks
from lnsim.theory.axes import Data, boost, finite_boost
from lnsim.theory.course import Course

SHARPNESSES = 48
"""Times at which the sharpness is computed; between them its logarithm is interpolated."""


@dataclass(frozen=True)
class Mean:
    """The mean network at every time.  Arrays are in the principal axes of the data."""

    problem: Any
    network: Any
    data: Data
    dynamics: kicks.Dynamics
    M: FloatArray  # [W | a] at the start, (m, r + 1)
    course: Course

    @cached_property
    def target(self) -> FloatArray:
        """theta_star in the principal axes, (r,)."""
        return np.asarray(self.data.basis.T @ self.problem.theta_star)

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
    def G(self) -> FloatArray:
        """G with E[M] = M(0) G, (T, r + 1, r + 1)."""
        Z, zbar = self.course.Z, self.course.zbar
        second = boost(zbar)
        second[:, :-1, :-1] = Z / 2
        second[:, -1, -1] = np.trace(Z, axis1=1, axis2=2) / 2
        return self.course.G + self.course.G @ second

    @cached_property
    def gram(self) -> FloatArray:
        """M(0)^T M(0)."""
        return self.M.T @ self.M

    @cached_property
    def _moments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        return course.moments(self.gram, self.G)

    @property
    def P(self) -> FloatArray:
        """W^T W of E[M], (T, r, r)."""
        return self._moments[0]

    @property
    def q(self) -> FloatArray:
        """|a|^2 of E[M], (T,)."""
        return self._moments[1]

    @cached_property
    def theta(self) -> FloatArray:
        """The mean predictor in the span of the inputs, (T, r)."""
        return np.asarray(self.target + self.course.delta)

    @cached_property
    def squares(self) -> FloatArray:
        """E[W^T W], (T, r, r)."""
        return np.asarray(self.P + self.q[:, None, None] * self.course.Z)

    @cached_property
    def second(self) -> FloatArray:
        """E|a|^2, (T,)."""
        return np.asarray(self.q + np.einsum("tij,tij->t", self.course.Z, self.P))

    @cached_property
    def A(self) -> FloatArray:
        """E[W^T W + |a|^2 I], (T, r, r)."""
        return np.asarray(self.squares + self.second[:, None, None] * np.eye(len(self.target)))

    @cached_property
    def twin(self) -> Course:
        """The course of the linearised twin: delta and C count."""
        of_start = course.follow_twin(
            self.data, self.target, self.gram, self.dynamics, self.course.times
        )
        return of_start


def norm_squared(mean: Mean) -> FloatArray:
    of_rest = float(np.sum(mean.rest**2)) if mean.has_rest else 0.0
    return np.asarray(np.trace(mean.squares, axis1=1, axis2=2) + of_rest)


def second_layer_norm(mean: Mean) -> FloatArray:
    Z, G = mean.course.Z, mean.G
    across = mean.gram @ G[:, :, -1, None]
    along = (np.swapaxes(G[:, :, :-1], 1, 2) @ across)[:, :, 0]  # W^T a
    variance = 4 * np.einsum("ti,tij,tj->t", along, Z, along)
    return mean_norm(mean.second, variance)


def train_loss(mean: Mean) -> FloatArray:
    return _loss(mean.data.spectrum, mean.course)


def _loss(spectrum: FloatArray, course: Course) -> FloatArray:
    square = np.einsum("tii->ti", course.C) + course.delta**2
    return np.asarray(0.5 * square @ spectrum)


def test_loss(mean: Mean) -> FloatArray:
    """NaN without a test set."""
    steps = len(mean.course.times)
    to_rest = None
    if mean.has_rest:
        # rest^T a fluctuates by rest^T W z, z = A^-1 (theta - E theta).
        across = mean.rest.T @ mean.M
        a, W = mean.G[:, :, -1], mean.G[:, :, :-1]
        to_rest = a @ across.T, across @ W @ np.linalg.inv(mean.A)
    return (
        _off_sample(mean, mean.course, to_rest)
        if mean.problem.X_test is not None
        else (np.full(steps, np.nan))
    )


def linearized_train_loss(mean: Mean) -> FloatArray:
    return _loss(mean.data.spectrum, mean.twin)


def linearized_test_loss(mean: Mean) -> FloatArray:
    """NaN without a test set."""
    if mean.problem.X_test is None:
        return np.full(len(mean.course.times), np.nan)
    to_rest = None
    if mean.has_rest:
        # a - a(0) = W(0) A(0)^-1 (theta - theta(0)) in the linearised network.
        P, q, start = course.moments(mean.gram, np.eye(len(mean.gram)))
        response = mean.rest.T @ mean.M[:, :-1] @ np.linalg.inv(P + q * np.eye(len(P)))
        moved = mean.target + mean.twin.delta - start
        at_start = mean.rest.T @ mean.network.a
        to_rest = at_start + moved @ response.T, response[None]
    return _off_sample(mean, mean.twin, to_rest)


def _off_sample(
    mean: Mean, course: Course, to_rest: tuple[FloatArray, FloatArray] | None
) -> FloatArray:
    """Half the mean squared residual on the test set, (T,).

    to_rest: of the predictor off the span of the inputs its mean, (T, d), and its change with the
    predictor in the span, (T or 1, d, r).
    """
    X, y, basis = mean.problem.X_test, mean.problem.y_test, mean.data.basis
    theta = (mean.target + course.delta) @ basis.T
    spread = basis[None]
    if to_rest is not None:
        theta = theta + to_rest[0]
        spread = spread + to_rest[1]
    residuals = theta @ X.T - y
    metric = X.T @ X / len(X)
    of_noise = np.einsum("tij,tij->t", np.swapaxes(spread, 1, 2) @ metric @ spread, course.C)
    return np.asarray(0.5 * ((residuals**2).mean(axis=1) + of_noise))


def interpolator_distance(mean: Mean) -> FloatArray:
    C, delta = mean.course.C, mean.course.delta
    square = np.trace(C, axis1=1, axis2=2) + np.sum(delta**2, axis=1)
    variance = 2 * np.einsum("tij,tij->t", C, C) + 4 * np.einsum("ti,tij,tj->t", delta, C, delta)
    return mean_norm(square, variance)


def ntk_distance(mean: Mean) -> FloatArray:
    X = mean.data.samples
    gram, Z, theta = X.T @ X, mean.course.Z, mean.theta
    P, q, _ = course.moments(mean.gram, np.eye(len(mean.gram)))
    start = P + q * np.eye(len(P))
    change = (mean.A - start) @ gram
    along = theta @ gram
    square = (
        np.einsum("tij,tji->t", change, change)
        + 2 * np.einsum("ti,tij,tj->t", along, Z, along)
        + 2 * np.einsum("ij,tij->t", gram, Z) * np.einsum("ti,ti->t", along, theta)
        + 8 * np.einsum("ti,tij,tj->t", theta, Z, along @ gram)
        + 4 * np.einsum("ti,tij,tj->t", theta, Z, theta) * np.sum(gram**2)
    )
    return np.asarray(np.sqrt(square) / np.linalg.norm(start @ gram @ start @ gram, "nuc") ** 0.5)


def hessian_trace(mean: Mean) -> FloatArray:
    spectrum = mean.data.spectrum
    first = np.einsum("tii,i->t", mean.squares, spectrum)
    return np.asarray(first + mean.second * spectrum.sum())


def flatness_gap(mean: Mean) -> FloatArray:
    spectrum, theta, C = mean.data.spectrum, mean.theta, mean.course.C
    square = (theta**2 + np.einsum("tii->ti", C)) @ spectrum
    along = theta * spectrum
    relative = 4 * np.einsum("ti,tij,tj->t", along, C, along) / square**2
    least = 2 * np.sqrt(spectrum.sum() * square)
    return np.asarray(hessian_trace(mean) / least * (1 + 3 / 8 * relative))


def kernel_alignment(mean: Mean) -> FloatArray:
    X, y = mean.data.samples, mean.problem.y
    X, y = X - X.mean(axis=0), y - y.mean()
    product = mean.A @ (X.T @ X)
    moment = X.T @ y
    size = np.sqrt(np.einsum("tij,tji->t", product, product)) * float(y @ y)
    return np.asarray(
        np.einsum("i,tij,j->t", moment, mean.A, moment) / np.where(size, size, np.nan)
    )


def effective_rank(mean: Mean) -> FloatArray:
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(mean.P), 0.0))
    return flatness.effective_rank(singular[:, ::-1])


def balancedness(mean: Mean) -> FloatArray:
    """Boosts conserve W W^T - a a^T, so z does not matter."""
    G = mean.course.G
    product = np.swapaxes(G, 1, 2) @ mean.gram @ G
    product[:, :, -1] *= -1.0
    return np.asarray(np.sqrt(np.einsum("tij,tji->t", product, product)))


def gradient_noise(mean: Mean) -> FloatArray:
    X, C, delta = mean.data.samples, mean.course.C, mean.course.delta
    total = np.zeros(len(C))
    for t, A in enumerate(mean.A):
        second = C[t] + np.outer(delta[t], delta[t])
        square = np.einsum("kr,kr->k", X @ second, X)
        total[t] = (square * np.einsum("kr,kr->k", X @ A, X)).mean()
        total[t] -= np.sum(second * (mean.data.spectrum[:, None] * A * mean.data.spectrum))
    return total


def sharpness(mean: Mean) -> FloatArray:
    times = mean.course.times
    last = len(times) - 1
    early = np.geomspace(1, max(last, 1), SHARPNESSES // 2)
    grid = np.concatenate([[0], early, np.linspace(0, last, SHARPNESSES // 2)])
    chosen = np.unique(np.minimum(grid.round().astype(int), last))
    values = np.array([_sharpness(mean, t) for t in chosen])
    at = np.log1p(times)
    return np.asarray(np.exp(np.interp(at, at[chosen], np.log(np.maximum(values, 1e-300)))))


def _sharpness(mean: Mean, t: int) -> float:
    course_, rank = mean.course, len(mean.target)
    values, vectors = np.linalg.eigh(course_.Z[t])
    columns = (vectors * np.sqrt(rank * np.maximum(values, 0.0))).T
    z = course_.zbar[t] + np.concatenate([columns, -columns])
    G = course_.G[t] @ finite_boost(z)
    P, q, theta = course.moments(mean.gram, G)
    residual = (theta - mean.target) * mean.data.spectrum
    root = np.diag(mean.data.root)
    return float(flatness.sharpness(P, theta, np.asarray(q), residual, root).mean())


def mean_norm(square: FloatArray, variance: FloatArray) -> FloatArray:
    """E|v| from E|v|^2 and Var|v|^2, to second order."""
    safe = np.maximum(square, 1e-300)
    return np.asarray(np.sqrt(square) * (1 - np.minimum(variance / (8 * safe**2), 0.5)))


FORMULAS: dict[str, Callable[[Mean], FloatArray]] = {
    function.__name__: function
    for function in (
        train_loss, test_loss, linearized_train_loss, linearized_test_loss, norm_squared,
        second_layer_norm, interpolator_distance, ntk_distance, sharpness, hessian_trace,
        flatness_gap, kernel_alignment, effective_rank, balancedness, gradient_noise,
    )
}  # fmt: skip
"""Each gives one number for every time, (T,)."""

OF_TRAINED_PART = ("effective_rank", "balancedness")
"""Those that would need the part of W off the inputs too."""
