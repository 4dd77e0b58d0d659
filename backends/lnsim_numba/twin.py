"""The linearised twin (lnsim.linearized): a recursion of r numbers on the same draws.

    V <- mu V + A z + w (theta + theta(0)),    theta <- theta - lr V,

A = W(0)^T W(0) + |a(0)|^2 I, z = (1/B) sum_b r_b x_b at theta; SAM takes z at
theta + rho A z / sqrt(z^T A z), for the gradient (a(0) z^T, W(0) z) has squared norm z^T A z.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from lnsim_numba.common import (
    DECAY,
    EXACT,
    FAST,
    LR,
    MOMENTUM,
    RHO,
    SIGMA,
    descent,
    drawn_noise,
    drawn_sample,
    has_diverged,
    part,
)


@njit(**FAST)
def _one_sample(theta, A, data, words, noise, rates):  # type: ignore[no-untyped-def]
    """SGD or SAM on one sample a step, with A x_i made once for all samples."""
    X, y = data[0], data[1]
    lr, sigma, rho = rates[LR], rates[SIGMA], rates[RHO]
    moves = np.dot(X, A)
    norms = np.empty(X.shape[0])
    for i in range(X.shape[0]):
        norms[i] = np.sqrt(max(0.0, np.sum(moves[i] * X[i])))
    for t in range(words.shape[0]):
        i = drawn_sample(words[t, 0], X.shape[0])
        residual = -(y[i] + drawn_noise(words, noise, t, 0, sigma))
        for j in range(theta.size):
            residual += X[i, j] * theta[j]
        if has_diverged(residual * residual):
            return
        residual += rho * np.sign(residual) * norms[i]
        c = lr * residual
        for j in range(theta.size):
            theta[j] -= c * moves[i, j]


@njit(**FAST)
def twin(theta, V, start, A, data, words, noise, batch, rates):  # type: ignore[no-untyped-def]
    """theta, its momentum V and start = theta(0) : (r,); A : (r, r)."""
    lr, sigma, rho = rates[LR], rates[SIGMA], rates[RHO]
    momentum, decay = rates[MOMENTUM], rates[DECAY]
    if batch == 1 and momentum == 0.0 and decay == 0.0:
        _one_sample(theta, A, data, words, noise, rates)
        return
    z, move = np.empty(theta.size), np.empty(theta.size)
    for t in range(words.shape[0]):
        if has_diverged(descent(theta, z, data, words, noise, t, batch, sigma)):
            return
        if rho > 0.0:
            move[:] = np.dot(A, z)
            norm = np.sqrt(max(0.0, np.sum(z * move)))
            if norm > 0.0:
                descent(theta + rho / norm * move, z, data, words, noise, t, batch, sigma)
        for j in range(theta.size):
            move[j] = decay * (theta[j] + start[j])
            for k in range(theta.size):
                move[j] += A[j, k] * z[k]
        for j in range(theta.size):
            V[j] = momentum * V[j] + move[j]
            theta[j] -= lr * V[j]


@njit(parallel=True, **EXACT)
def twin_replicas(  # type: ignore[no-untyped-def]
    theta, V, start, A, data, words, noise, batch, rates
):
    """`twin` for every replica.  theta, V : (S, r), words : (S, T, draws)."""
    for s in prange(theta.shape[0]):
        twin(theta[s], V[s], start, A, data, words[s], part(noise, s), batch, rates[s])
