"""The law of modes: |W(t)|_F^2 under label noise SGD from the initial weights and the data alone.

It needs no simulation and no fitted parameter; the paper does not contain it.  All times are in
steps.  Losses are clean training losses, half the mean squared residual.

What is whose
    That label noise drifts along the interpolators to the flattest one, where tr H =
    tr(W Sigma W^T) + |a|^2 tr Sigma is least, is known: Blanc et al. 2020 (arXiv 1904.09080);
    Damian, Ma, Lee 2021 (arXiv 2106.06530); Li, Wang, Arora 2021 (arXiv 2110.06914).  The limiting
    flow, -(lr sigma)^2/4 grad tr H a step, gives the rates lr^2 sigma^2 lambda_i, the leading
    order of (2) with L = 0.  Ziyin et al. 2023 and 2024 (arXiv 2308.06671, 2402.07193) have the
    balance of the noise, which gives the ratio s/b of the stationary state.  Wen, Ma, Li 2022
    (arXiv 2211.05729) have it that one-sample SAM lowers tr H, and so goes the same way, and
    full-batch SAM the largest eigenvalue of H.  Ours are the term 2L beside sigma^2, the closure
    (1) for L, the second order in z, and the matching with the first transient.

The recursion
    P = W^T W, q = |a|^2, theta = W^T a, A = P + q I, delta = theta - theta_star.  One step uses
    the gradient g = (1/B) sum_k r_k x_k, r = delta.x - epsilon, and moves the stacked weights
    M = [W | a] by M <- M (I - lr S(g)), S(g) = [[0, g], [g^T, 0]].  Hence, exactly,
        P     <- P - lr (theta g^T + g theta^T) + lr^2 q g g^T
        q     <- q - 2 lr theta.g + lr^2 g^T P g
        theta <- theta - lr A g + lr^2 (theta.g) g
    With Sigma = E[x x^T] over the n samples, drawn uniformly with replacement,
        E[g] = Sigma delta,   N = E[g g^T] = (Q + sigma^2 Sigma - D)/B + D,
        Q = E[(delta.x)^2 x x^T],   D = Sigma delta delta^T Sigma.

Fast: fluctuations of theta about theta_star
    At frozen A, delta <- delta - lr A g is linear.  Its stationary covariance C solves
        A Sigma C + C Sigma A = lr A N A,   N = N(C),                                         (1)
    a linear equation in C, exact in lr: Q keeps the fourth moments of the samples.  Multiplied by
    A^-1 its trace is the excess loss L = tr(Sigma C)/2 = (lr/4) tr(A N).  With N replaced by
    (sigma^2 + 2L) Sigma (that is, B = 1 and x.Cx by its mean) this is the closed form
        L = (lr sigma^2/4) tr(A Sigma) / (1 - (lr/2) tr(A Sigma)),   C = (lr/2)(sigma^2 + 2L) A.

Slow: the weights along the interpolating manifold
    I - lr S is a Lorentz boost exp(-lr S) times the contraction I - lr^2 S^2/2, S^2 = diag(g g^T,
    |g|^2).  Boosts conserve W W^T - a a^T, and gradient flow consists of boosts; only the
    contraction is irreversible.  So write M = Mbar exp(S(z)), with Mbar on the manifold theta =
    theta_star and z a small fast vector.  Each step contracts Mbar by (lr^2/2) K, the mean of
    exp(S(z)) diag(N, nu) exp(-S(z)), nu = tr N, and a boost l keeps theta on the manifold.
    To second order in z, with Z = E[z z^T] and zbar = E[z],
        K = [[K_W, w], [-w^T, K_a]],   K_W = N + (Z N + N Z)/2 - nu Z,
        K_a = nu (1 + tr Z) - tr(Z N),   w = (nu I - N) zbar,
    and from Gbar = Mbar^T Mbar, with P, q, A now those of Mbar, the law is
        dP/dt = -(lr^2/2)(K_W P + P K_W - theta_star w^T - w theta_star^T)
                + lr^2 (theta_star l^T + l theta_star^T)
        dq/dt = -lr^2 (K_a q + w.theta_star) + 2 lr^2 l.theta_star                            (2)
        A l   = (K_W theta_star + K_a theta_star + P w - q w)/2, so that theta stays.
    Leading order is Z = 0, zbar = 0.  There the part of P not along theta_star decays as
    -(lr^2/2)(N P + P N): mode i at rate lr^2 (sigma^2 + 2L) lambda_i, the law of modes.  The small
    parameter of the expansion is the ratio of contraction to relaxation rates, averaged over modes,
        (lr/2) nu tr((A Sigma)^-1)/d,                                                         (4)
    so the corrections need Z and zbar at leading order only.  As delta = A z, and C = c A with
    c = lr nu/(2 tr Sigma), Z = c A^-1.  The mean of delta must not drift: E[A Sigma delta] = lr N
    theta_star.  A moves with delta (delta_P = theta_star z^T + z theta_star^T, delta_q = 2
    theta_star.z), which gives A Sigma E[delta] = -c (tr Sigma + Sigma) theta_star, and the second
    order of theta in z, E[delta] = A zbar + (3 Z + tr Z) theta_star/2, then gives zbar.
    A recorded norm is that of M, not Mbar: both tr P and q exceed their manifold values by
        2 theta_star.zbar + tr(A Z).                                                          (3)

Start and end
    The boosts that first carry theta(0) to theta_star are, in the mean, gradient flow; its limit
    is the initial state of (2).  The curve is the solution of (2) plus that of gradient flow less
    their common value (matched asymptotics).  Weights outside the span of the data do not change,
    nor does their share of |W|_F^2.  At leading order (2) is stationary at the rank-one state
    P = s^2 u u^T, u = theta_star/|theta_star|, q = b^2, s b = |theta_star|,
    s^2/b^2 = tr Sigma/(u^T Sigma u).

Where it fails: lr so large that (1) has no positive solution (near lr tr(A Sigma) = 2; refused),
and (4) not small: strong noise, weak theta_star, or inputs of nearly vanishing variance in some
direction (n close to d).  It does not cover momentum or sampling without replacement.

How it is solved
    (2) is stiff near its end: the rank-one part turns back to theta_star at rate lr^2 nu, tr Sigma
    times the rates above.  integrator.py solves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, scaled
from lnsim.theory.course import check_start, end_of_fit
from lnsim.theory.integrator import integrate
from lnsim.theory.interpolation import hermite, pchip
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold import Drift, descent_covariance, drift


def quasi_stationary_loss(A: ArrayLike, Sigma: ArrayLike, lr: float, sigma: float) -> float:
    """Excess loss (lr sigma^2/4) tr(A Sigma)/(1 - (lr/2) tr(A Sigma)) that label noise sustains.

    The closed form below equation (1), for one sample per step.  A = W^T W + |a|^2 I : (d, d),
    Sigma = X^T X/n : (d, d).  Infinite if lr tr(A Sigma) >= 2: there is no stationary state.
    """
    Descent(lr, sigma)
    tangent, covariance = checks.array("A", A, 2), checks.array("Sigma", Sigma, 2)
    checks.shape("Sigma", covariance, tangent.shape, "the shape of A")
    trace = float(np.sum(tangent * covariance.T))
    if lr * trace >= 2:
        return math.inf
    return lr * sigma**2 * trace / (4 - 2 * lr * trace)


def quasi_stationary_covariance(
    X: ArrayLike, A: ArrayLike, lr: float, sigma: float, batch_size: int = 1
) -> FloatArray:
    """Stationary covariance C of theta - theta_star at frozen A, the solution of equation (1).

    X : (n, d), A = W^T W + |a|^2 I : (d, d), positive definite.  Returns (d, d), zero outside the
    span of the data.  The loss is tr(Sigma C)/2.  ValueError if lr is too large for a solution.
    """
    inputs = checks.array("X", X, 2)
    dynamics = Descent(lr, sigma, batch_size)
    tangent = checks.array("A", A, 2)
    checks.shape("A", tangent, (inputs.shape[1],) * 2, f"X has {inputs.shape[1]} columns")
    data = Data.of(inputs)
    alpha, vectors = np.linalg.eigh(scaled(data.basis.T @ tangent @ data.basis, data.root))
    if alpha[0] <= 0:
        raise ValueError("A must be positive definite on the span of the data")
    _, covariance = descent_covariance(data, (alpha, vectors), dynamics, tolerance=1e-12)
    return data.basis @ scaled(covariance, 1 / data.root) @ data.basis.T


PARTS = slice(None, -1), slice(-1, None)
"""P and q in the state of (2)."""


@dataclass(frozen=True)
class ModeCurve:
    """The law of modes, integrated: each : (T,).

    norm_squared         |W|_F^2
    second_layer_squared |a|^2
    loss                 quasi-stationary training loss, valid after the first transient
    expansion            the small parameter (4); at 0.2, 0.4 and 0.7 the largest error observed in
                         norm_squared was 1.5%, 5% and 10%; above 1 it predicts nothing
    """

    steps: FloatArray
    norm_squared: FloatArray
    second_layer_squared: FloatArray
    loss: FloatArray
    expansion: FloatArray


def integrate_modes(
    X: ArrayLike, theta_star: ArrayLike, W: ArrayLike, a: ArrayLike,
    lr: float, sigma: float, times: ArrayLike, batch_size: int = 1,
) -> ModeCurve:  # fmt: skip
    """The mean course of label noise SGD from W : (m, d), a : (m,): equations (1) to (3).

    X : (n, d) with labels X theta_star, theta_star : (d,), `times` : (T,) steps, ascending from 0.
    The cost does not depend on the width, and little on T and the last step.
    ValueError for a wrong shape or range, if lr is too large for a quasi-stationary state, and if
    (4) is so large that (2) cannot be solved.
    """
    inputs, first = checks.array("X", X, 2), checks.array("W", W, 2)
    target, second = checks.array("theta_star", theta_star, 1), checks.array("a", a, 1)
    dim = inputs.shape[1]
    checks.shape("theta_star", target, (dim,), f"X has {dim} columns")
    checks.shape("W", first, (len(first), dim), f"X has {dim} columns")
    checks.shape("a", second, (len(first),), f"W has {len(first)} rows")
    dynamics = Descent(lr, sigma, batch_size)
    steps = checks.array("times", times, 1)
    if steps[0] < 0 or not np.all(np.diff(steps) > 0):
        raise ValueError("times must ascend, from 0 or later")

    data = Data.of(inputs)
    target, inside = data.basis.T @ target, first @ data.basis
    outside = float(np.sum(first**2) - np.sum(inside**2))
    base, course = gradient_flow(data, target, inside, second, lr, steps)

    at = partial(law, data, target, dynamics)
    grid, states, laws = integrate(at, base, steps[-1] + 1, PARTS)  # not empty
    slopes = np.stack([each.slope for each in laws], axis=1)
    norms = hermite(grid, _norms(states), _norms(slopes), steps).T + course
    drifts = [each.drift for each in laws]
    smooth = np.array([[d.spread, d.loss, d.expansion, d.relaxation] for d in drifts])
    spread, loss, expansion, relaxation = pchip(grid, smooth, steps).T
    spread *= -np.expm1(-2 * steps * relaxation)
    return ModeCurve(steps, outside + norms[0] + spread, norms[1] + spread, loss, expansion)


@dataclass(frozen=True)
class Law:
    """Equation (2) at one state."""

    slope: FloatArray  # d(P, q)/dt, (r^2 + 1,)
    drift: Drift

    @property
    def stiffness(self) -> float:
        """The largest rate in (2), per step."""
        return self.drift.stiffness

    @property
    def expansion(self) -> float:
        """Equation (4)."""
        return self.drift.expansion


def law(data: Data, target: FloatArray, dynamics: Descent, state: FloatArray) -> Law:
    """Equations (1) to (3) at the state (P, q), in the principal axes."""
    P, q = _unpack(state)
    at = drift(data, target, dynamics, P, q)
    half = np.outer(target, at.hold + at.w / 2) - at.K_W @ P / 2
    dq = 2 * at.hold @ target - at.K_a * q - at.w @ target
    return Law(dynamics.lr**2 * np.append(half + half.T, dq), at)


def gradient_flow(
    data: Data, target: FloatArray, W: FloatArray, a: FloatArray, lr: float, steps: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The first transient: its limit (P, q) on the manifold, and (tr P, q) less their limits.

    Returns (r^2 + 1,) and (2, T).
    """
    from scipy.integrate import solve_ivp

    P, q = W.T @ W, float(a @ a)

    def slope(_: float, state: FloatArray) -> FloatArray:
        weights, delta = np.split(state, [-len(target)])
        P, q = _unpack(weights)
        g = data.spectrum * delta
        half = -lr * np.outer(target + delta, g)
        return np.concatenate(
            [(half + half.T).ravel(), [2 * np.trace(half)], -lr * (P @ g + q * g)]
        )

    rates = np.linalg.eigvalsh(scaled(P + q * np.eye(len(target)), data.root))
    if rates[0] <= 0:
        raise ValueError("W^T W + |a|^2 I must be positive definite on the span of the data")
    slowest = lr * float(max(rates[0], 1e-3 * rates[-1]))  # slower modes break (4) in any case
    end = end_of_fit(slowest)
    check_start(W.T @ a, target)
    early = steps[steps < end]
    start = np.concatenate([P.ravel(), [q], W.T @ a - target])
    flow = solve_ivp(slope, (0.0, end), start, t_eval=np.append(early, end), rtol=1e-6, atol=1e-8)
    if not flow.success:
        raise ArithmeticError(f"the first transient could not be integrated: {flow.message}")
    states = flow.y[: -len(target)]
    course = np.zeros((2, len(steps)))
    course[:, : len(early)] = (_norms(states) - _norms(states[:, -1:]))[:, :-1]
    return states[:, -1], course


def _unpack(state: FloatArray) -> tuple[FloatArray, float]:
    rank = math.isqrt(len(state) - 1)
    return state[:-1].reshape(rank, rank), float(state[-1])


def _norms(states: FloatArray) -> FloatArray:
    """tr P and q of states : (r^2 + 1, T); returns (2, T)."""
    rank = math.isqrt(len(states) - 1)
    return np.stack([states[: -1 : rank + 1].sum(axis=0), states[-1]])
