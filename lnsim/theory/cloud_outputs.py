"""Quantities of the network with C outputs by the law of the cloud, from course_outputs.py.

To second order in the boosts z : (C, r), of mean zbar and covariance Z : (C, r, C, r),

    E[M] = M(0) G (I + S(zbar) + diag(E[z^T z], E[z z^T])/2),

about which w_i fluctuates by z^T A_i and A_i by z w_i, A_i : (C,) what goes out of neuron i.  With
P, q, Theta of E[M] the second moments are E[W^T W] = P + E[z^T q z], E[A A^T] = q + E[z P z^T], and
Theta has the covariance C.  The formulas are those of cloud_network.py with these, but for

Kernel.  K = I (x) X W^T W X^T + A A^T (x) X X^T fluctuates through D = Theta^T z + z^T Theta and
    N = Theta z^T + z Theta^T.  With Gamma = X^T X and u = Theta Gamma the mean of the square
    C tr(D Gamma D Gamma) + 2 tr N tr(D Gamma^2) + |N|^2 tr Gamma^2 is

        2 C E[tr(z u^T z u^T) + tr(z Gamma z^T Theta u^T)] + 8 E[<Theta, z> <u Gamma, z>]
        + 2 tr Gamma^2 E[|z Theta^T|^2 + tr(z Theta^T z Theta^T)].

Flatness.  tr H over its least value 2 sqrt(C tr Sigma) n, n = |Theta Sigma^1/2|_*.  The mean of 1/n
    is that over the 2 C r points Theta +- sqrt(C r) L_j, L L^T = C, about the mean of Theta, exact
    to second order; so is that of the effective rank of Theta where its singular values are far
    from 0.  n changes by <U V^T Sigma^1/2, D>, U and V the singular vectors of Theta Sigma^1/2, and
    tr H by 2 <C Theta Sigma + tr Sigma Theta, z>: E[D z] = T Z gives their covariance.  n is not
    smooth where a singular value of Theta* is 0; there the quotient was 1 to 3% too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory import course_outputs, flatness
from lnsim.theory.axes import Data, boosts
from lnsim.theory.cloud_network import mean_power, norm_squared
from lnsim.theory.course_outputs import Course
from lnsim.theory.setting import Lifted

_POINTS = 2_000_000
"""Most numbers in the points at which one nuclear norm is averaged, at a time."""


@dataclass(frozen=True)
class Mean(Lifted):
    """The mean network at every time.  Arrays are in the principal axes of the data."""

    problem: Any
    network: Any
    data: Data
    M: FloatArray  # [W | A^T] at the start, (m, r + C)
    course: Course

    def at(self, chosen: Any) -> Mean:
        """The mean network at some of the times, an array of their indices."""
        return replace(self, course=self.course.at(chosen))

    @cached_property
    def theta_star(self) -> FloatArray:
        """Theta*, (C, d)."""
        return np.atleast_2d(self.problem.theta_star)

    @cached_property
    def target(self) -> FloatArray:
        """Theta* in the principal axes, (C, r)."""
        return np.asarray(self.theta_star @ self.data.basis)

    @property
    def rank(self) -> int:
        """r."""
        return self.target.shape[1]

    @cached_property
    def inner(self) -> FloatArray:
        """E[z^T z], (T, r, r)."""
        return np.asarray(np.einsum("tcicj->tij", self.course.Z))

    @cached_property
    def outer(self) -> FloatArray:
        """E[z z^T], (T, C, C)."""
        return np.asarray(np.einsum("tcidi->tcd", self.course.Z))

    @cached_property
    def G(self) -> FloatArray:
        """G with E[M] = M(0) G, (T, r + C, r + C)."""
        second = boosts(self.course.zbar)
        second[:, : self.rank, : self.rank] = self.inner / 2
        second[:, self.rank :, self.rank :] = self.outer / 2
        return self.course.G + self.course.G @ second

    @cached_property
    def moments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """P, q and A W of E[M], (T, r, r), (T, C, C), (T, C, r)."""
        return course_outputs.moments(self.gram, self.G, self.rank)

    @cached_property
    def theta(self) -> FloatArray:
        """The mean predictor in the span of the inputs, to second order in z, (T, C, r)."""
        Z, zbar = self.course.Z, self.course.zbar
        P, q, _ = self.moments
        theta = self.target + self.course.delta
        shift = q @ zbar + zbar @ P + (self.outer @ theta + theta @ self.inner) / 2
        return np.asarray(theta + shift + np.einsum("tcjai,taj->tci", Z, theta))

    @cached_property
    def moved(self) -> FloatArray:
        """E[D z] = T Z, D = T[z], (T, C, r, C, r)."""
        states = zip(*self.moments[:2], self.course.Z, strict=True)
        return np.stack([course_outputs.tangent(P, q, Z) for P, q, Z in states])

    @cached_property
    def squares(self) -> FloatArray:
        """E[W^T W], (T, r, r)."""
        P, q, _ = self.moments
        return np.asarray(P + np.einsum("tcd,tcidj->tij", q, self.course.Z))

    @cached_property
    def second(self) -> FloatArray:
        """E[A A^T], (T, C, C)."""
        P, q, _ = self.moments
        return np.asarray(q + np.einsum("tij,tcidj->tcd", P, self.course.Z))

    @cached_property
    def size(self) -> FloatArray:
        """E|A|_F^2, (T,)."""
        return np.trace(self.second, axis1=1, axis2=2)

    @cached_property
    def variance(self) -> FloatArray:
        """The variance of tr(Theta z^T), Theta = A W of E[M], (T,)."""
        along = self.moments[2]
        return np.asarray(np.einsum("tci,tcidj,tdj->t", along, self.course.Z, along, optimize=True))

    @cached_property
    def spread(self) -> FloatArray:
        """The covariance of the inputs' weights summed over the outputs, (T, r, r)."""
        return np.asarray(np.einsum("tcicj->tij", self.course.C))


def second_layer_norm(mean: Mean) -> FloatArray:
    return mean_power(mean.size, 4 * mean.variance)


def parameter_norm(mean: Mean) -> FloatArray:
    return mean_power(norm_squared(mean) + mean.size, 16 * mean.variance)


def train_loss(mean: Mean) -> FloatArray:
    square = np.einsum("tii->ti", mean.spread) + np.sum(mean.course.delta**2, axis=1)
    return np.asarray(0.5 * square @ mean.data.spectrum)


def test_loss(mean: Mean) -> FloatArray:
    """NaN without a test set."""
    X = mean.problem.X_test
    if X is None:
        return np.full(len(mean.course.times), np.nan)
    y = mean.problem.y_test.reshape(len(X), -1)
    theta, of_noise = _predictor(mean, X.T @ X / len(X))
    residuals = theta @ X.T - y.T
    return np.asarray(0.5 * ((residuals**2).sum(axis=1).mean(axis=1) + of_noise))


def _predictor(mean: Mean, metric: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The mean of Theta, (T, C, d), and of tr(D metric D^T), (T,), of its fluctuation D."""
    basis = mean.data.basis
    theta = (mean.target + mean.course.delta) @ basis.T
    square = np.einsum("tij,ij->t", mean.spread, basis.T @ metric @ basis)
    if mean.has_rest:
        # Off the inputs Theta is A rest, which fluctuates by z W^T rest.
        A, W = mean.M @ mean.G[:, :, mean.rank :], mean.M @ mean.G[:, :, : mean.rank]
        theta = theta + np.swapaxes(A, 1, 2) @ mean.rest
        response = np.swapaxes(W, 1, 2) @ mean.rest  # (T, r, d)
        of_both, of_rest = response @ metric @ basis, response @ metric
        square = square + 2 * np.einsum("tcicj,tji->t", mean.moved, of_both)
        square += np.einsum("tij,tji->t", mean.inner, of_rest @ np.swapaxes(response, 1, 2))
    return theta, square


def interpolator_distance(mean: Mean) -> FloatArray:
    C = mean.course.C
    theta, square = _predictor(mean, np.eye(mean.theta_star.shape[1]))
    away = theta - mean.theta_star
    inside = away @ mean.data.basis
    along = np.einsum("tci,tcidj,tdj->t", inside, C, inside, optimize=True)
    variance = 2 * np.sum(C**2, axis=(1, 2, 3, 4)) + 4 * along
    return mean_power(square + np.sum(away**2, axis=(1, 2)), variance)


def ntk_distance(mean: Mean) -> FloatArray:
    X, Z, theta = mean.data.samples, mean.course.Z, mean.theta
    gram, outputs = X.T @ X, len(mean.target)
    P, q, _ = course_outputs.moments(mean.gram, np.eye(len(mean.gram)), mean.rank)
    u = theta @ gram
    inner = np.einsum("ij,tcidj->tcd", gram, Z)

    def mean_of(pattern: str, *factors: FloatArray) -> FloatArray:
        return np.asarray(np.einsum(pattern, *factors, optimize=True))

    along = mean_of("tci,tcidj,tdj->t", theta, Z, u @ gram)
    of_kernel = mean_of("tciaj,tai,tcj->t", Z, u, u) + mean_of(
        "tcd,tcd->t", inner, theta @ np.swapaxes(u, 1, 2)
    )
    of_outputs = mean_of("tij,tci,tcj->t", mean.inner, theta, theta) + mean_of(
        "tciaj,tai,tcj->t", Z, theta, theta
    )
    square = (
        _kernel_square(mean.squares - P, mean.second - q, gram)
        + 2 * outputs * of_kernel
        + 8 * along
        + 2 * float(np.sum(gram**2)) * of_outputs
    )
    return np.asarray(np.sqrt(square / _kernel_square(P[None], q[None], gram)))


def _kernel_square(D: FloatArray, N: FloatArray, gram: FloatArray) -> FloatArray:
    """|I (x) X D X^T + N (x) X X^T|_F^2 of D : (T, r, r), N : (T, C, C), gram = X^T X; (T,)."""
    product = D @ gram
    return np.asarray(
        N.shape[1] * np.einsum("tij,tji->t", product, product)
        + 2 * np.einsum("tcc->t", N) * np.einsum("tij,ji->t", product, gram)
        + np.sum(N**2, axis=(1, 2)) * np.sum(gram**2)
    )


def hessian_trace(mean: Mean) -> FloatArray:
    spectrum = mean.data.spectrum
    first = np.einsum("tii,i->t", mean.squares, spectrum)
    return np.asarray(len(mean.target) * first + mean.size * spectrum.sum())


def flatness_gap(mean: Mean) -> FloatArray:
    spectrum, root, theta = mean.data.spectrum, mean.data.root, mean.theta
    inverses = [
        (1 / _singular(points * root).sum(axis=-1)).mean(axis=-1) for points in _around(mean)
    ]
    inverse = np.concatenate(inverses)
    left, _, right = np.linalg.svd(theta * root, full_matrices=False)
    of_norm = left @ right * root
    of_trace = 2 * (len(mean.target) * theta * spectrum + spectrum.sum() * theta)
    covariance = np.einsum("tci,tcidj,tdj->t", of_norm, mean.moved, of_trace, optimize=True)
    ratio = hessian_trace(mean) * inverse - covariance * inverse**2
    return np.asarray(ratio / (2 * math.sqrt(len(mean.target) * spectrum.sum())))


def predictor_rank(mean: Mean) -> FloatArray:
    ranks = [flatness.effective_rank(_singular(points)).mean(axis=-1) for points in _around(mean)]
    return np.concatenate(ranks)


def _around(mean: Mean) -> Iterator[FloatArray]:
    """Predictors of the mean and covariance of Theta, (T', 2 C r, C, r), some times T' at once."""
    size, times = mean.target.size, len(mean.theta)
    for part in np.array_split(np.arange(times), -(-times * 2 * size**2 // _POINTS)):
        values, vectors = np.linalg.eigh(mean.course.C[part].reshape(-1, size, size))
        columns = vectors * np.sqrt(size * np.maximum(values, 0.0))[:, None]
        moves = np.swapaxes(columns, 1, 2).reshape(len(part), size, *mean.target.shape)
        yield mean.theta[part, None] + np.concatenate([moves, -moves], axis=1)


def _singular(theta: FloatArray) -> FloatArray:
    """The singular values, descending, (..., min(C, r)), of theta : (..., C, r)."""
    if theta.shape[-2] > theta.shape[-1]:
        theta = np.swapaxes(theta, -1, -2)
    values = np.linalg.eigvalsh(theta @ np.swapaxes(theta, -1, -2))
    return np.sqrt(np.maximum(values, 0.0))[..., ::-1]


def kernel_alignment(mean: Mean) -> FloatArray:
    X, y = mean.data.samples, mean.problem.y.reshape(len(mean.data.samples), -1)
    X, y = X - X.mean(axis=0), y - y.mean(axis=0)
    # The kernel summed over the outputs is X A X^T.
    A = len(mean.target) * mean.squares + mean.size[:, None, None] * np.eye(mean.rank)
    product = A @ (X.T @ X)
    moment = X.T @ y
    size = np.sqrt(np.einsum("tij,tji->t", product, product)) * float(np.linalg.norm(y.T @ y))
    along = np.einsum("ic,tij,jc->t", moment, A, moment, optimize=True)
    return np.asarray(along / np.where(size, size, np.nan))


def effective_rank(mean: Mean) -> FloatArray:
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(mean.moments[0]), 0.0))
    return flatness.effective_rank(singular[:, ::-1])


def balancedness(mean: Mean) -> FloatArray:
    """Boosts conserve W W^T - A^T A, so z does not matter."""
    G = mean.course.G
    product = np.swapaxes(G, 1, 2) @ mean.gram @ G
    product[:, :, mean.rank :] *= -1.0
    return np.asarray(np.sqrt(np.einsum("tij,tji->t", product, product)))


def gradient_noise(mean: Mean) -> FloatArray:
    X, C, delta, spectrum = mean.data.samples, mean.course.C, mean.course.delta, mean.data.spectrum
    total = np.zeros(len(C))
    for t, (P, q) in enumerate(zip(mean.squares, mean.second, strict=True)):
        square = course_outputs.residual_squares(X, C[t], delta[t])
        size = np.einsum("kr,kr->k", X @ P, X)
        total[t] = np.einsum("kcc,k->", square, size) / len(X)
        total[t] += np.einsum("kcd,cd,k->", square, q, np.sum(X**2, axis=1)) / len(X)
        second = C[t] + delta[t][:, :, None, None] * delta[t]
        total[t] -= np.einsum("cicj,i,j,ij->", second, spectrum, spectrum, P)
        total[t] -= np.einsum("cidi,i,cd->", second, spectrum**2, q)
    return total


FORMULAS: dict[str, Callable[[Mean], FloatArray]] = {
    function.__name__: function
    for function in (
        train_loss, test_loss, norm_squared, second_layer_norm, parameter_norm,
        interpolator_distance, ntk_distance, hessian_trace, flatness_gap, kernel_alignment,
        effective_rank, predictor_rank, balancedness, gradient_noise,
    )
}  # fmt: skip
"""Each gives one number for every time, (T,)."""

OF_TRAINED_PART = ("effective_rank", "balancedness", "predictor_rank")
"""Those that would need the part of W off the inputs too."""
