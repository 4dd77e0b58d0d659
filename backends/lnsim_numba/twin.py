"""The linearised twin (lnsim.models.twin): a recursion of r numbers on the same draws.

    V <- mu V + A z + w (theta + theta(0)),    theta <- theta - lr V,

A = W(0)^T W(0) + |a(0)|^2 I, z = (1/B) sum_b r_b x_b at theta; SAM takes z at
theta + rho A z / sqrt(z^T A z), as the gradient (a(0) z^T, W(0) z) has squared norm z^T A z.

With one sample per step A z = r A x_i, where all A x_i are computed in advance; that step is part
of the network's own loop (kernels.py), where it costs little: the processor does it while it
computes the network's residual.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import EXACT, FAST, descent, has_diverged, part


@compiled(**FAST)
def twin_step(theta, x, move, target, lr, push):  # type: ignore[no-untyped-def]
    """vectors.twin_pass as a plain loop: move = A x, push = rho sqrt(x^T A x)."""
    residual = -target
    for j in range(theta.size):
        residual += x[j] * theta[j]
    if not has_diverged(residual * residual):
        c = lr * (residual - push if residual < 0.0 else residual + push)
        for j in range(theta.size):
            theta[j] -= c * move[j]


@compiled(**FAST)
def twin(theta, V, start, A, data, words, noise, batch, rates):  # type: ignore[no-untyped-def]
    """Trains the twin by batches.  theta, its velocity V, start = theta(0) : (r,); A : (r, r)."""
    lr, sigma, rho = rates["lr"], rates["sigma"], rates["rho"]
    momentum, decay = rates["momentum"], rates["weight_decay"]
    z, move = np.empty(theta.size), np.empty(theta.size)
    for t in range(words.shape[0]):
        if has_diverged(descent(theta, z, data, words, noise, t, batch, sigma)):
            return
        if rho > 0.0:
            squared_norm = 0.0
            for j in range(theta.size):
                move[j] = 0.0
                for k in range(theta.size):
                    move[j] += A[j, k] * z[k]
                squared_norm += z[j] * move[j]
            if squared_norm > 0.0:
                h = rho / np.sqrt(squared_norm)
                for j in range(theta.size):
                    move[j] = theta[j] + h * move[j]
                descent(move, z, data, words, noise, t, batch, sigma)
        for j in range(theta.size):
            move[j] = decay * (theta[j] + start[j])
            for k in range(theta.size):
                move[j] += A[j, k] * z[k]
        for j in range(theta.size):
            V[j] = momentum * V[j] + move[j]
            theta[j] -= lr * V[j]


@compiled(**EXACT)
def twin_replicas(  # type: ignore[no-untyped-def]
    theta, V, start, A, data, words, noise, batch, rates, going
):
    """`twin` for the replicas of indices `going`.  theta, V : (S, r), words : (S, T, draws)."""
    for s in going:
        twin(theta[s], V[s], start, A, data, words[s], part(noise, s), batch, rates[s])
