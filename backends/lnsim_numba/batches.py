"""Mini-batches and the full batch: SGD, GD and SAM, with momentum and weight decay.

Derivation.  The gradient of (1/2B) sum_b r_b^2 is a z^T and W z with z = (1/B) sum_b r_b x_b, and
f(x_b) = theta . x_b with theta = W^T a.  So a batch costs B products of length r and two passes
through W, not B; the clean full batch needs only z = (X^T X theta - X^T y) / n.  With v = W z:

    V_W <- mu V_W + a z^T + w W,   V_a <- mu V_a + v + w a,   W <- W - lr V_W,   a <- a - lr V_a.

SAM.  The gradient (a z^T, v) has squared norm |a|^2 |z|^2 + |v|^2; with h = rho / norm the
perturbed weights are W + h a z^T and a + h v, whose predictor is

    theta' = theta + h (|a|^2 z + W^T v) + h^2 (a . v) z.

With z' from theta' on the same batch, the step is taken along a' = a + h v and
v' = W z' + h (z . z') a in place of a and v.

Ledger: lr v and lr |z| a in place of c u and c |x| a of kernels.py.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import (
    EXACT,
    FAST,
    apply,
    apply_transposed,
    descent,
    dot,
    has_diverged,
    part,
)


@compiled(**FAST)
def batches(  # type: ignore[no-untyped-def]
    W, a, V_W, V_a, data, words, noise, batch, rates, rows, first_step
):
    """Trains by batches of `batch` samples, or of all if it is 0.

    W and its velocity V_W : (p, r); a and V_a : (p,); words : (T, draws).
    """
    width, rank = W.shape
    lr, sigma, rho = rates["lr"], rates["sigma"], rates["rho"]
    momentum, decay = rates["momentum"], rates["weight_decay"]
    Wt, Vt = W.T.copy(), V_W.T.copy()
    theta, moved_theta = np.empty(rank), np.empty(rank)
    z, moved_z = np.empty(rank), np.empty(rank)
    v, moved_v, moved_a = np.empty(width), np.empty(width), np.empty(width)
    diverged_step = -1
    for t in range(words.shape[0]):
        apply_transposed(Wt, a, theta)
        if has_diverged(descent(theta, z, data, words, noise, t, batch, sigma)):
            diverged_step = t
            break
        apply(Wt, z, v)
        moved_a[:] = a
        squared_norm = dot(a, a) * dot(z, z) + dot(v, v)
        if rho > 0.0 and squared_norm > 0.0:
            h = rho / np.sqrt(squared_norm)
            apply_transposed(Wt, v, moved_theta)
            along_z = h * dot(a, a) + h * h * dot(a, v)
            for j in range(rank):
                moved_theta[j] = theta[j] + h * moved_theta[j] + along_z * z[j]
            descent(moved_theta, moved_z, data, words, noise, t, batch, sigma)
            apply(Wt, moved_z, moved_v)
            along_a = h * dot(z, moved_z)
            for k in range(width):
                moved_a[k] += h * v[k]
                v[k] = moved_v[k] + along_a * a[k]
            z[:] = moved_z
        if rows is not None:
            row, length = (first_step + t) % rows.shape[1], lr * np.sqrt(dot(z, z))
            for k in range(width):
                rows[0, row, k] = lr * v[k]
                rows[1, row, k] = length * a[k]
        if momentum == 0.0 and decay == 0.0:
            for j in range(rank):
                c = lr * z[j]
                for k in range(width):
                    Wt[j, k] -= c * moved_a[k]
            for k in range(width):
                a[k] -= lr * v[k]
        else:
            for j in range(rank):
                for k in range(width):
                    Vt[j, k] = momentum * Vt[j, k] + moved_a[k] * z[j] + decay * Wt[j, k]
                    Wt[j, k] -= lr * Vt[j, k]
            for k in range(width):
                V_a[k] = momentum * V_a[k] + v[k] + decay * a[k]
                a[k] -= lr * V_a[k]
    W[:] = Wt.T
    V_W[:] = Vt.T
    return diverged_step


@compiled(**EXACT)
def batches_replicas(  # type: ignore[no-untyped-def]
    W, a, V_W, V_a, data, words, noise, batch, rates, rows, first_step, going, diverged_at
):
    """`batches` for the replicas of indices `going`.  W : (S, p, r), words : (S, T, draws)."""
    for s in going:
        diverged_step = batches(
            W[s], a[s], V_W[s], V_a[s], data, words[s], part(noise, s), batch, rates[s],
            part(rows, s), first_step,
        )  # fmt: skip
        if diverged_step >= 0:
            diverged_at[s] = first_step + diverged_step
