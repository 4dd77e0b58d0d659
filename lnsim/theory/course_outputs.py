"""The mean course of training with C outputs under label noise SGD: one matrix G(t) again.

As course.py, with M = [W | A^T] : (m, r + C) and boosts z : (C, r); manifold_outputs.py has the
notation, the derivation and the drift.

Fit.  With M(t) = M(0) G exp(S(z)), D = Theta - Theta* of M(0) G, and residuals of mean D x_k and
covariance (x_k.C_cc' x_k)_cc', C = T Z T, the first two moments of a step are

    dG/dt = -lr G S(gbar) - (lr^2/2) G K,   gbar = E[g] = D Sigma,
    dZ/dt = -lr (Sigma T Z + Z T Sigma) + lr^2 (N - gbar gbar),   N = E[g g] : (C, r, C, r).

The mean residuals mix the outputs, so that Z has all of its (C r)^2 numbers.  K is that of the
drift, for this N and Z.  Its zbar is that by which the mean of Theta is Theta of M(0) G,

    T[zbar] = -E[z Theta^T z + (z z^T Theta + Theta z^T z)/2]:

the terms of second order by which E[D] moves (manifold_outputs.py) are in dG/dt, as D settles where
gbar undoes the contraction, -T[gbar] = (lr/2) (Theta K_W + K_A Theta), which is the E[D] found
there.

After FITTED of the slowest times of relaxation Z is slaved, its rows are independent in the basis
of the eigenvectors of q, and

    dG/dt = -(lr^2/2) G K + lr^2 G S(hold)

from the G of the fit, moved onto Theta = Theta* by a boost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, boosts, finite_boosts
from lnsim.theory.course import at_times, check_expansion, check_start, end_of_fit, joined
from lnsim.theory.integrator import integrate
from lnsim.theory.interpolation import hermite, pchip
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold_outputs import Drift, Tangent, drift

MOST = 256
"""Largest C r: the covariance has (C r)^2 numbers at every time."""


@dataclass(frozen=True)
class Course:
    """The mean course at T times, in the principal axes of the data.

    The mean network is M(0) G (I + S(zbar) + diag(E[z^T z], E[z z^T])/2), the network at a moment
    M(0) G exp(S(z)) with z normal of mean zbar and covariance Z.
    """

    times: FloatArray  # (T,)
    G: FloatArray  # (T, r + C, r + C)
    delta: FloatArray  # A W - Theta* of M(0) G, (T, C, r)
    Z: FloatArray  # (T, C, r, C, r)
    zbar: FloatArray  # (T, C, r)
    C: FloatArray  # covariance of Theta, (T, C, r, C, r)
    expansion: FloatArray  # (T,)
    fitted: float  # the time at which the fit is over

    def at(self, chosen: Any) -> Course:
        """The course at some of its times, an array of their indices."""
        return at_times(self, chosen)


def follow(
    data: Data, target: FloatArray, M: FloatArray, dynamics: Descent, times: FloatArray
) -> Course:
    """The course from M = [W | A^T] : (m, r + C) to Theta* = `target` : (C, r).

    `times` : (T,) ascend.  The cost grows as n (C r)^2, and as the ratio of the fastest relaxation
    to the slowest; the last time hardly matters.

    Raises ValueError if there is no quasi-stationary state, if the small parameter exceeds
    LARGEST_EXPANSION of course.py up to the last time, if C r > MOST, or if the equations cannot
    be followed; ArithmeticError if the fit would not end.
    """
    if target.size > MOST:
        raise ValueError(
            f"the theory of the cloud follows a covariance of (C r)^2 numbers: outputs times rank"
            f" of the inputs must be at most {MOST}, got {target.shape[0]} x {target.shape[1]}"
        )
    gram, rank = M.T @ M, target.shape[1]
    P, q, theta = moments(gram, np.eye(len(gram)), rank)
    check_start(theta, target)
    first = drift(data, target, dynamics, P, q)
    check_expansion(first.expansion, 0.0)
    fitted = end_of_fit(first.slowest)
    early = times[times < fitted]
    fit = _fit(data, target, gram, dynamics, np.append(early, fitted))
    slow = _slow(data, target, gram, dynamics, fit, times[len(early) :])
    return joined(fit, slow)


def _fit(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: Descent, times: FloatArray
) -> Course:
    """The fit at `times`."""
    shape, rank, lr = target.shape, target.shape[1], dynamics.lr
    ends = np.cumsum([gram.size, target.size**2])

    def unpack(state: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        G, Z, delta = np.split(state, ends)
        Z = Z.reshape(*shape, *shape)
        # Rounding errors that are not symmetric would grow: they are left out.
        return G.reshape(gram.shape), (Z + _transposed(Z)) / 2, delta.reshape(shape)

    def law(state: FloatArray) -> _Law:
        G, Z, delta = unpack(state)
        gram_at = G.T @ gram @ G
        P, q, theta = gram_at[:rank, :rank], gram_at[rank:, rank:], gram_at[rank:, :rank]
        pull = delta * data.spectrum
        moved = tangent(P, q, Z)
        N = step_square(data, dynamics, _transposed(tangent(P, q, _transposed(moved))), delta)
        at = Tangent.of(data, P, q)
        K = contraction(N, Z, _centre(at, theta, Z))
        dG = -lr * G @ boosts(pull) - lr**2 / 2 * G @ K
        restored = data.spectrum[:, None, None] * moved
        noise = N - pull[:, :, None, None] * pull
        dZ = lr**2 * noise - lr * (restored + _transposed(restored))
        contracted = (gram_at @ K)[rank:, :rank] + (gram_at @ K)[:rank, rank:].T
        d_delta = -lr * (q @ pull + pull @ P) - lr**2 / 2 * contracted
        # Z relaxes at twice the largest rate of D, which grows a little until the next step.
        fastest = 2.2 * lr * float(at.alpha.max())
        return _Law(np.concatenate([dG.ravel(), dZ.ravel(), d_delta.ravel()]), fastest, 0.0)

    _, _, theta = moments(gram, np.eye(len(gram)), rank)
    start = np.concatenate(
        [np.eye(len(gram)).ravel(), np.zeros(target.size**2), (theta - target).ravel()]
    )
    parts = slice(ends[0]), slice(*ends), slice(ends[1], None)
    grid, path, laws = integrate(law, start, times[-1], parts)
    slopes = np.stack([each.slope for each in laws], axis=1)
    states = [unpack(state) for state in hermite(grid, path, slopes, times)]
    G, Z, delta = (np.stack(parts) for parts in zip(*states, strict=True))
    P, q, theta = moments(gram, G, rank)
    whole = np.kron(np.eye(len(target)), P) + np.kron(q, np.eye(rank))
    C = (whole @ Z.reshape(-1, target.size, target.size) @ whole).reshape(Z.shape)
    zbar = np.stack(
        [
            _centre(Tangent.of(data, *weights), *each)
            for weights, *each in zip(zip(P, q, strict=True), theta, Z, strict=True)
        ]
    )
    return Course(times, G, delta, Z, zbar, C, np.zeros(len(times)), times[-1])


def _slow(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: Descent, fit: Course,
    times: FloatArray,
) -> Course:  # fmt: skip
    """The course from the end of the fit on: there and at `times`."""
    rank, begin, lr = target.shape[1], fit.fitted, dynamics.lr
    G = fit.G[-1]
    for _ in range(3):  # Newton's method for the boost onto Theta*
        P, q, theta = moments(gram, G, rank)
        G = G @ finite_boosts(Tangent.of(data, P, q).solve(target - theta))

    def law(state: FloatArray) -> _Law:
        G = state.reshape(gram.shape)
        P, q, theta = moments(gram, G, rank)
        at = drift(data, target, dynamics, P, q)
        # Rounding and the integrator's errors move Theta away: turn it back at the largest rate.
        back = Tangent.of(data, P, q).solve(target - theta)
        hold = at.hold + at.stiffness / (4 * lr**2) * back
        slope = lr**2 * G @ (boosts(hold) - at.K / 2)
        return _Law(slope.ravel(), at.stiffness, at.expansion, at)

    end = max(times[-1] - begin, 0.0) + 1 if len(times) else 1.0  # + 1 avoids an empty interval
    index = np.arange(gram.size).reshape(gram.shape)
    parts = index[:, :rank].ravel(), index[:, rank:].ravel()
    grid, states, laws = integrate(law, G.ravel(), end, parts)
    drifts = [each.at for each in laws if each.at is not None]
    for time, at in zip(grid, drifts, strict=True):
        check_expansion(at.expansion, begin + time)
    at_times = np.append(0.0, times - begin)
    slopes = np.stack([each.slope for each in laws], axis=1)
    G = hermite(grid, states, slopes, at_times)

    def smooth(name: str) -> FloatArray:
        values = np.stack([np.asarray(getattr(at, name)) for at in drifts])
        return pchip(grid, values, at_times)

    return Course(
        times=np.append(begin, times),
        G=G.reshape(-1, *gram.shape),
        delta=np.zeros((len(at_times), *target.shape)),
        fitted=begin,
        **{name: smooth(name) for name in ("Z", "zbar", "C", "expansion")},
    )


@dataclass(frozen=True)
class _Law:
    """The equations of the fit or the drift at one state, for the integrator."""

    slope: FloatArray
    stiffness: float
    expansion: float
    at: Drift | None = None


def step_square(data: Data, dynamics: Descent, C: FloatArray, delta: FloatArray) -> FloatArray:
    """N = E[g g] : (C, r, C, r) at a predictor of mean Theta* + delta and covariance C."""
    x = data.samples
    of_square, of_mean = dynamics.shares(len(x))
    residuals = np.zeros((len(x), *delta.shape[:1] * 2))
    if dynamics.batch_size:
        residuals = residual_squares(x, C, delta)
    residuals = residuals + dynamics.sigma**2 * np.eye(len(delta))
    weighted = residuals[..., None] * x[:, None, None, :]
    N = of_square / len(x) * np.moveaxis(np.tensordot(x, weighted, (0, 0)), 0, 1)
    if of_mean:
        second = C + delta[:, :, None, None] * delta
        N = N + of_mean * data.spectrum[:, None, None] * second * data.spectrum
    return np.asarray(N)


def contraction(N: FloatArray, Z: FloatArray, zbar: FloatArray) -> FloatArray:
    """K of manifold_outputs.py from N and Z, (C, r, C, r) each, in any basis of the outputs."""
    N_W, N_A = np.einsum("cicj->ij", N), np.einsum("cidi->cd", N)
    inner, outer = np.einsum("cicj->ij", Z), np.einsum("cidi->cd", Z)
    K_W = N_W + (inner @ N_W + N_W @ inner) / 2 - np.einsum("cidj,cd->ij", Z, N_A)
    K_A = N_A + (outer @ N_A + N_A @ outer) / 2 - np.einsum("cidj,ij->cd", Z, N_W)
    w = N_A @ zbar - zbar @ N_W
    return np.block([[K_W, w.T], [-w, K_A]])


def _centre(at: Tangent, theta: FloatArray, Z: FloatArray) -> FloatArray:
    """zbar during the fit: the mean of Theta is that of M(0) G."""
    return -at.solve(second_order(theta, Z))


def second_order(theta: FloatArray, Z: FloatArray) -> FloatArray:
    """The mean of z Theta^T z + (z z^T Theta + Theta z^T z)/2, (C, r); Z : (C, r, C, r)."""
    inner, outer = np.einsum("cicj->ij", Z), np.einsum("cidi->cd", Z)
    return np.einsum("cjai,aj->ci", Z, theta) + (outer @ theta + theta @ inner) / 2


def residual_squares(X: FloatArray, C: FloatArray, delta: FloatArray) -> FloatArray:
    """E[e e^T] of the residuals e = D x of X : (n, r), for D of mean delta and covariance C.

    C : (C, r, C, r), delta : (C, r); returns (n, C, C).
    """
    mean = X @ delta.T
    variance = np.einsum("kcdj,kj->kcd", np.tensordot(X, C, (1, 1)), X)
    return np.asarray(variance + mean[:, :, None] * mean[:, None, :])


def tangent(P: FloatArray, q: FloatArray, V: FloatArray) -> FloatArray:
    """q V + V P on the first two axes of V : (C, r, ...)."""
    return np.asarray(np.tensordot(q, V, (1, 0)) + np.moveaxis(np.tensordot(P, V, (1, 1)), 0, 1))


def _transposed(V: FloatArray) -> FloatArray:
    """V : (C, r, C, r) as an operator, transposed."""
    return V.transpose(2, 3, 0, 1)


def moments(
    gram: FloatArray, G: FloatArray, rank: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """P = W^T W, q = A A^T, Theta = A W of M(0) G, gram = M(0)^T M(0); G may be a stack."""
    product = np.swapaxes(G, -1, -2) @ gram @ G
    return product[..., :rank, :rank], product[..., rank:, rank:], product[..., rank:, :rank]
