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

And the contraction itself is a sum of random steps, -(lr^2/2)(g g^T P + P g g^T) each, whose spread
about its mean adds up (`_walk`).  It counts while few steps have been taken: it then grows as the
number of steps, and the square of the mean change as its square.

The mean of a norm |v| is that of the gamma law of |v|^2 with its mean and variance.  The sharpness
depends on z through the residuals too; its mean is over the 2 r points z = zbar +- sqrt(r) L_j,
L L^T = Z, exact to second order in z.

Weights outside the span of the inputs do not move; `rest` is W less its part there, and the
predictor off the inputs is rest^T a.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory import course, flatness, full_sam, kicks
from lnsim.theory.axes import Data, boost, finite_boost
from lnsim.theory.course import Course
from lnsim.theory.setting import Lifted, Setting

SHARPNESSES = 48
"""Times at which the sharpness is computed; between them its logarithm is interpolated."""


@dataclass(frozen=True)
class Mean(Lifted):
    """The mean network at every time.  Arrays are in the principal axes of the data."""

    problem: Any
    network: Any
    data: Data
    dynamics: kicks.Dynamics
    M: FloatArray  # [W | a] at the start, (m, r + 1)
    course: Course

    @property
    def start(self) -> Setting:
        """Its start."""
        return Setting(self.problem, self.network, self.data, self.dynamics, self.M, self.target)

    def at(self, chosen: Any) -> Mean:
        """The mean network at some of the times, an array of their indices."""
        return replace(self, course=self.course.at(chosen))

    @cached_property
    def target(self) -> FloatArray:
        """theta_star in the principal axes, (r,)."""
        return np.asarray(self.data.basis.T @ self.problem.theta_star)

    @cached_property
    def G(self) -> FloatArray:
        """G with E[M] = M(0) G, (T, r + 1, r + 1)."""
        Z, zbar = self.course.Z, self.course.zbar
        second = boost(zbar)
        second[:, :-1, :-1] = Z / 2
        second[:, -1, -1] = np.trace(Z, axis1=1, axis2=2) / 2
        return self.course.G + self.course.G @ second

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
        start, times = (self.data, self.target, self.gram), self.course.times
        if isinstance(self.dynamics, kicks.FullSharp):
            return full_sam.follow_twin(*start, self.dynamics, times)
        return course.follow_twin(*start, self.dynamics, times)


def norm_squared(mean: Any) -> FloatArray:
    """Of a Mean of one output or of several."""
    of_rest = float(np.sum(mean.rest**2)) if mean.has_rest else 0.0
    return np.asarray(np.trace(mean.squares, axis1=1, axis2=2) + of_rest)


def second_layer_norm(mean: Mean) -> FloatArray:
    Z, G = mean.course.Z, mean.G
    across = mean.gram @ G[:, :, -1, None]
    along = (np.swapaxes(G[:, :, :-1], 1, 2) @ across)[:, :, 0]  # W^T a
    variance = 4 * np.einsum("ti,tij,tj->t", along, Z, along)
    return mean_power(mean.second, variance)


def train_loss(mean: Mean) -> FloatArray:
    return _loss(mean.data.spectrum, mean.course)


def _loss(spectrum: FloatArray, course: Course) -> FloatArray:
    square = np.einsum("tii->ti", course.C) + course.delta**2
    return np.maximum(0.5 * square @ spectrum, 0.0)  # where C is 0 but for rounding


def test_loss(mean: Mean) -> FloatArray:
    """NaN without a test set."""
    return _off_sample(mean, *_predictor(mean), mean.course)


def linearized_train_loss(mean: Mean) -> FloatArray:
    return _loss(mean.data.spectrum, mean.twin)


def linearized_test_loss(mean: Mean) -> FloatArray:
    """NaN without a test set."""
    basis, twin = mean.data.basis, mean.twin
    theta, spread = (mean.target + twin.delta) @ basis.T, basis[None]
    if mean.has_rest:
        # a - a(0) = W(0) A(0)^-1 (theta - theta(0)) in the linearised network.
        P, q, start = course.moments(mean.gram, np.eye(len(mean.gram)))
        response = mean.rest.T @ mean.M[:, :-1] @ np.linalg.inv(P + q * np.eye(len(P)))
        moved = mean.target + twin.delta - start
        theta = theta + mean.rest.T @ mean.network.a + moved @ response.T
        spread = spread + response
    return _off_sample(mean, theta, spread, twin)


def interpolator_distance(mean: Mean) -> FloatArray:
    theta, spread = _predictor(mean)
    away = theta - mean.problem.theta_star
    covariance = spread @ mean.course.C @ np.swapaxes(spread, 1, 2)
    square = np.trace(covariance, axis1=1, axis2=2) + np.sum(away**2, axis=1)
    variance = 2 * np.einsum("tij,tij->t", covariance, covariance)
    variance += 4 * np.einsum("ti,tij,tj->t", away, covariance, away)
    return mean_power(square, variance)


def _predictor(mean: Mean) -> tuple[FloatArray, FloatArray]:
    """The mean predictor, (T, d), and its change with that in the span of the inputs, (T, d, r)."""
    basis = mean.data.basis
    theta, spread = mean.theta @ basis.T, basis[None]
    if mean.has_rest:
        # rest^T a fluctuates by rest^T W z, and z = A^-1 (theta - E theta).
        across = mean.rest.T @ mean.M
        theta = theta + mean.G[:, :, -1] @ across.T
        spread = spread + across @ mean.G[:, :, :-1] @ np.linalg.inv(mean.A)
    return theta, spread


def _off_sample(mean: Mean, theta: FloatArray, spread: FloatArray, course: Course) -> FloatArray:
    """Half the mean squared residual on the test set, (T,)."""
    X, y = mean.problem.X_test, mean.problem.y_test
    if X is None:
        return np.full(len(course.times), np.nan)
    metric = X.T @ X / len(X)
    of_noise = np.einsum("tij,tij->t", np.swapaxes(spread, 1, 2) @ metric @ spread, course.C)
    # |theta - theta_test|^2 in the metric, for labels that may be none of a linear function's.
    of_mean = np.einsum("ti,ij,tj->t", theta, metric, theta) - 2 * theta @ (X.T @ y / len(X))
    of_mean += float(y @ y) / len(y)
    return np.asarray(0.5 * (of_mean + of_noise))


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
        + _walk(mean, gram)
    )
    return np.asarray(np.sqrt(square) / np.linalg.norm(start @ gram @ start @ gram, "nuc") ** 0.5)


def _walk(mean: Mean, gram: FloatArray) -> FloatArray:
    """The summed variance of tr(D Gamma D Gamma)^(1/2) by the steps of the contraction, (T,).

    A step changes A by -(lr^2/2)(g g^T P + P g g^T), of size 2 (g.P Gamma g)^2 + 2 (g.Gamma g)
    (g.P Gamma P g) in this metric.  g is the mean of B independent e_k x_k, of second moment S:
    its fourth moments are those of one over B^3, and (B - 1)/B^3 times Wick's pairs of S.
    """
    x, lr, times = mean.data.samples, mean.dynamics.lr, mean.course.times
    share, _ = mean.dynamics.shares(len(x))
    rates = np.empty(len(times))
    for t, (P, A, C, delta) in enumerate(
        zip(mean.P, mean.A, mean.course.C, mean.course.delta, strict=True)
    ):
        variance = np.einsum("kr,kr->k", x @ C, x)
        kick = mean.dynamics.kick(x @ delta, variance, np.einsum("kr,kr->k", x @ A, x))
        across, twice = P @ gram, P @ gram @ P
        forms = [np.einsum("kr,kr->k", x @ form, x) for form in (across, gram, twice)]
        single = kick.fourth @ (forms[0] ** 2 + forms[1] * forms[2]) / len(x)
        S = (x.T * kick.square) @ x / len(x)
        crossed = (across + across.T) / 2 @ S
        pairs = np.trace(crossed) ** 2 + 2 * np.sum(crossed * crossed.T)
        pairs += np.sum(gram * S) * np.sum(twice * S) + 2 * np.sum((gram @ S) * (twice @ S).T)
        drift = share * (S @ P + P @ S) @ gram
        fourth = share**3 * single + share**2 * (1 - share) * pairs
        rates[t] = lr**4 / 4 * (2 * fourth - np.sum(drift * drift.T))
    spans = np.diff(times, prepend=0.0)
    middle = np.append(rates[0], (rates[1:] + rates[:-1]) / 2)
    return np.cumsum(spans * middle)


def hessian_trace(mean: Mean) -> FloatArray:
    spectrum = mean.data.spectrum
    first = np.einsum("tii,i->t", mean.squares, spectrum)
    return np.asarray(first + mean.second * spectrum.sum())


def flatness_gap(mean: Mean) -> FloatArray:
    """The least value's 1/sqrt(theta^T Sigma theta) is averaged over a gamma law, as a norm is."""
    spectrum, theta, C = mean.data.spectrum, mean.theta, mean.course.C
    square = (theta**2 + np.einsum("tii->ti", C)) @ spectrum
    along, inner = theta * spectrum, spectrum[:, None] * C
    variance = 4 * np.einsum("ti,tij,tj->t", along, C, along)
    variance += 2 * np.einsum("tij,tji->t", inner, inner)
    least = 2 * np.sqrt(spectrum.sum()) / mean_power(square, variance, -0.5)
    return np.asarray(hessian_trace(mean) / least)


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


def mean_power(mean: FloatArray, variance: FloatArray, power: float = 0.5) -> FloatArray:
    """E u^power for u of a gamma law of this mean and variance, (T,)."""
    from scipy.special import gammaln  # a slow import

    shape = mean**2 / np.where(variance > 0, variance, np.inf)
    spread = (shape > max(0.0, -power)) & (shape < 1e6)
    safe = np.where(spread, shape, 1.0)
    factor = np.exp(gammaln(safe + power) - gammaln(safe)) / safe**power
    return np.asarray(np.maximum(mean, 1e-300) ** power * np.where(spread, factor, 1.0))


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
