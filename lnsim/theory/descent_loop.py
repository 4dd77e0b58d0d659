"""The slopes of descent.py in compiled loops, for the many courses of a predicted sweep.

They take half the time of NumPy's there, and a second to load.  descent.py has the equations, and
says what the arguments are; `of_label`, `of_square`, `of_mean` are its Shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.theory.axes import Data
from lnsim.theory.descent import GROWING, LARGEST, Shares


@compiled(nogil=True, error_model="numpy")
def covariance(  # type: ignore[no-untyped-def]
    whitened, alpha, vectors, lr, of_label, of_square, of_mean, guess, tolerance, sweeps
):
    """N and C of equation (1) of modes.py in whitened axes, and whether there is such a state.

    `alpha` : (r,) and `vectors` : (r, r) are the eigenvalues and vectors of A there, `of_label` is
    the share of the noise times sigma^2, `guess` C at a state close by, or zeros.

    Uses fixed-point iteration in A's eigenbasis, where Sigma = I, so that
    C_ij = lr N_ij alpha_i alpha_j/(alpha_i + alpha_j).  The map is linear and monotone: it
    converges if and only if there is a positive solution.  The shape of C hardly changes in the
    iteration; its size comes from the trace of the equation.
    """
    count, rank = whitened.shape
    samples = np.dot(whitened, vectors)
    weighted = np.empty_like(samples)
    C = np.dot(vectors.T, np.dot(guess, vectors))
    gain = np.empty((rank, rank))
    label_trace = 0.0
    for i in range(rank):
        for j in range(rank):
            gain[i, j] = lr / (1 / alpha[i] + 1 / alpha[j])
        label_trace += gain[i, i] * of_label
        if guess[0, 0] == 0.0:
            C[i, i] = gain[i, i] * of_label
    settled, growing = False, 0
    for _ in range(sweeps):
        product = np.dot(samples, C)
        for k in range(count):
            square = 0.0
            for i in range(rank):
                square += product[k, i] * samples[k, i]
            for i in range(rank):
                weighted[k, i] = samples[k, i] * square
        Q = np.dot(samples.T, weighted)
        excess = 0.0
        for i in range(rank):
            excess += C[i, i] - gain[i, i] * (of_square * Q[i, i] / count + of_mean * C[i, i])
        size = label_trace / excess if excess > 0 else 1.0
        growing = 0 if excess > 0 else growing + 1
        largest, change = 0.0, 0.0
        for i in range(rank):
            for j in range(rank):
                old = size * C[i, j]
                new = size * gain[i, j] * (of_square * Q[i, j] / count + of_mean * C[i, j])
                if i == j:
                    new += gain[i, i] * of_label
                C[i, j] = new
                largest = max(largest, abs(new))
                change = max(change, abs(new - old))
        if change <= tolerance * largest:
            settled = True
            break
        if growing > GROWING or not largest < LARGEST:
            break
    N = np.dot(vectors, np.dot(C / gain, vectors.T))
    return N, np.dot(vectors, np.dot(C, vectors.T)), settled


@compiled(nogil=True, error_model="numpy")
def drift(  # type: ignore[no-untyped-def]
    whitened, spectrum, target, lr, of_label, of_square, of_mean, P, q, guess, tolerance, sweeps
):
    """The fields of manifold.Drift in their order, and whether there is a quasi-stationary state.

    The arguments are those of `covariance`, the data, and the state P = W^T W, q = |a|^2.
    """
    rank = len(target)
    root, total = np.sqrt(spectrum), spectrum.sum()
    scaled, start = np.empty((rank, rank)), np.empty((rank, rank))
    for i in range(rank):
        for j in range(rank):
            both = root[i] * root[j]
            scaled[i, j] = both * (P[i, j] + (q if i == j else 0.0))
            start[i, j] = both * guess[i, j]
    alpha, vectors = np.linalg.eigh(scaled)
    for i in range(rank):
        alpha[i] = max(alpha[i], 1e-12 * alpha[-1])
    noise, whitened_C, settled = covariance(
        whitened, alpha, vectors, lr, of_label, of_square, of_mean, start, tolerance, sweeps
    )
    inverse = np.dot(vectors / alpha, vectors.T)
    N, C = np.empty((rank, rank)), np.empty((rank, rank))
    nu, loss = 0.0, 0.0
    for i in range(rank):
        for j in range(rank):
            both = root[i] * root[j]
            inverse[i, j] *= both
            N[i, j] = noise[i, j] * both
            C[i, j] = whitened_C[i, j] / both
        nu += N[i, i]
        loss += whitened_C[i, i] / 2
    c = lr * nu / (2 * total)
    Z = c * inverse
    trace = np.trace(Z)
    mean = -c * np.dot(inverse, (total + spectrum) * target) / spectrum
    zbar = np.dot(inverse, mean - (3 * np.dot(Z, target) + trace * target) / 2)
    NZ = np.dot(N, Z)
    K_W = N + (NZ + NZ.T) / 2 - nu * Z
    K_a = nu * (1 + trace) - np.trace(NZ)
    w = nu * zbar - np.dot(N, zbar)
    hold = np.dot(inverse, np.dot(K_W, target) + K_a * target + np.dot(P, w) - q * w) / 2
    fields = (
        K_W, w, K_a, hold, Z, zbar, N, C,
        2 * np.dot(target, zbar) + c * rank,
        loss,
        lr * nu / 2 * np.sum(1 / alpha) / rank,
        lr * np.sum(alpha) / rank,
        lr * max(alpha[0], 1e-3 * alpha[-1]),
        1.3 * lr**2 * nu,
    )  # fmt: skip
    return fields, inverse, settled


@compiled(nogil=True, error_model="numpy")
def _slow_slope(  # type: ignore[no-untyped-def]
    state, gram, whitened, spectrum, target, lr, of_label, of_square, of_mean, guess, tolerance,
    sweeps,
):  # fmt: skip
    """The slope of the slow part of the course (course.py) at `state`, G; and `drift` there."""
    rank = len(target)
    G = state.copy().reshape(rank + 1, rank + 1)
    product = np.dot(G.T, np.dot(gram, G))
    P, theta = product[:rank, :rank].copy(), product[:rank, rank].copy()
    fields, inverse, settled = drift(
        whitened, spectrum, target, lr, of_label, of_square, of_mean, P, product[rank, rank], guess,
        tolerance, sweeps,
    )  # fmt: skip
    K_W, w, K_a, hold, stiffness = fields[0], fields[1], fields[2], fields[3], fields[13]
    # Rounding and the integrator's errors move theta away: turn it back at the largest rate.
    held = hold + stiffness / (4 * lr**2) * np.dot(inverse, target - theta)
    turning = np.empty((rank + 1, rank + 1))
    turning[:rank, :rank] = -K_W / 2
    turning[:rank, rank] = held - w / 2
    turning[rank, :rank] = held + w / 2
    turning[rank, rank] = -K_a / 2
    return lr**2 * np.dot(G, turning).ravel(), fields, settled


@compiled(nogil=True, error_model="numpy")
def _fit_slope(  # type: ignore[no-untyped-def]
    state, gram, samples, spectrum, lr, of_label, of_square, of_mean, frozen
):
    """The slope of the fit (course.py) at `state`, G, C and delta one after another; lr A."""
    rank = samples.shape[1]
    size = rank + 1
    G = state[: size * size].copy().reshape(size, size)
    C = state[size * size : -rank].copy().reshape(rank, rank)
    delta = state[-rank:].copy()
    product = np.dot(G.T, np.dot(gram, G))
    q = product[rank, rank]
    theta = product[:rank, rank].copy()
    A = product[:rank, :rank].copy()
    for i in range(rank):
        A[i, i] += q
    pull = spectrum * delta
    N = moments(samples, spectrum, C, delta, of_label, of_square, of_mean)
    trace = 0.0
    for i in range(rank):
        trace += N[i, i]
    slope = np.empty_like(state)
    dG = slope[: size * size].reshape(size, size)
    dC = slope[size * size : -rank].reshape(rank, rank)
    if frozen:
        dG[:, :] = 0.0
    else:
        left = np.dot(G[:, :rank].copy(), N)
        for i in range(size):
            along = 0.0
            for j in range(rank):
                dG[i, j] = -lr * G[i, rank] * pull[j] - lr**2 / 2 * left[i, j]
                along += G[i, j] * pull[j]
            dG[i, rank] = -lr * along - lr**2 / 2 * trace * G[i, rank]
    scaled, spread = np.empty_like(C), np.empty_like(C)
    for i in range(rank):
        for j in range(rank):
            scaled[i, j] = spectrum[i] * C[i, j]
            spread[i, j] = N[i, j] - pull[i] * pull[j]
    restoring = np.dot(A, scaled)
    kicked = np.dot(A, np.dot(spread, A))
    turned, contracted = np.dot(A, pull), np.dot(N, theta)
    for i in range(rank):
        for j in range(rank):
            dC[i, j] = lr**2 * kicked[i, j] - lr * (restoring[i, j] + restoring[j, i])
        d_delta = -lr * turned[i]
        if not frozen:
            d_delta -= lr**2 / 2 * (contracted[i] + trace * theta[i])
        slope[size * size + rank * rank + i] = d_delta
    return slope, lr * A


@compiled(nogil=True, error_model="numpy")
def moments(  # type: ignore[no-untyped-def]
    samples, spectrum, C, delta, of_label, of_square, of_mean
):
    """N = E[g g^T] at C : (r, r) and a mean predictor theta_star + delta : (r,)."""
    count, rank = samples.shape
    product = np.dot(samples, C)
    mean = np.dot(samples, delta)
    weighted = np.empty_like(samples)
    for k in range(count):
        square = mean[k] ** 2
        for i in range(rank):
            square += product[k, i] * samples[k, i]
        weight = (of_square * square + of_label) / count
        for i in range(rank):
            weighted[k, i] = weight * samples[k, i]
    N = np.dot(samples.T, weighted)
    if of_mean > 0:
        for i in range(rank):
            for j in range(rank):
                # In this order a full batch without noise leaves exactly nothing but the pull.
                pulls = (spectrum[i] * delta[i]) * (spectrum[j] * delta[j])
                N[i, j] += of_mean * (spectrum[i] * C[i, j] * spectrum[j] + pulls)
    return N


def slow_slope(
    state: FloatArray, gram: FloatArray, data: Data, target: FloatArray, lr: float, shares: Shares,
    guess: FloatArray, tolerance: float, sweeps: int,
) -> tuple[FloatArray, tuple[Any, ...], bool]:  # fmt: skip
    """descent.slow_slope by the loops."""
    found: tuple[FloatArray, tuple[Any, ...], bool] = _slow_slope(
        state, gram, data.whitened, data.spectrum, target, lr, *shares, guess, tolerance, sweeps
    )
    return found


def fit_slope(
    state: FloatArray, gram: FloatArray, data: Data, lr: float, shares: Shares, frozen: bool
) -> tuple[FloatArray, FloatArray]:
    """descent.fit_slope by the loops."""
    found: tuple[FloatArray, FloatArray] = _fit_slope(
        state, gram, data.samples, data.spectrum, lr, *shares, frozen
    )
    return found
