"""SGD and SAM with one sample per step, the kernels in which most runs spend their time.

Derivation.  f(x) = a^T W x, one sample, residual r = f(x) - y - eps, loss r^2 / 2.

    dL/dW_kj = r a_k x_j,    dL/da_k = r (W x)_k.

With u = W x and c = -lr r, and both updates simultaneous:

    a . u = f,    W <- W + c a x^T,    a <- a + c u.

Each step needs u = W x for the next sample, with W after the update: one pass through W does the
update and the next product.

SAM on one sample.  The gradient (r a x^T, r u) has norm |r| sqrt(s), s = |a|^2 |x|^2 + |u|^2.  With
h = rho sign(r) / sqrt(s) the perturbed weights are W + h a x^T and a + h u, for which

    a' = a + h u,    u' = u + h |x|^2 a,    f' = a' . u' = f + h s + h^2 f |x|^2,

and with c = -lr (f' - y - eps) the step is  W <- W + c a' x^T,  a <- a + c u'.

Ledger.  A step of SGD changes |w_k|^2 - a_k^2 by exactly (c |x| a_k)^2 - (c u_k)^2 (the cross terms
cancel).  If `rows` : (2, L, p) is given, c u and c |x| a of step t are written to rows[0] and
rows[1] at t mod L.

Twin.  If its `theta` is given, the linearised twin takes the same step; `features` are the inputs,
moves and norms of lnsim.models.twin.Twin.

Layout.  The hidden units are packed into tiles of up to 24 (vectors.py), padded with zeros (which
stay zero) and aligned to cache lines: one tile when reduced at d = 20, 42 when dense at m = 1000.
One thread advances a replica from start to end, so the number of threads changes no bit.

All arrays are C-contiguous float64.  A kernel returns the number of steps done before a squared
residual was not below DIVERGED_ABOVE, or -1.
"""

from __future__ import annotations

import numpy as np
from numba import config

from lnsim.base.compiled import compiled
from lnsim_numba.common import (
    EXACT,
    FAST,
    aligned,
    copy_to,
    drawn_noise,
    drawn_sample,
    has_diverged,
    part,
)
from lnsim_numba.twin import twin_step
from lnsim_numba.vectors import LANES, MOST_VECTORS, sam_pass, tile_pass, twin_pass


@compiled(**FAST)
def one_sample_plain(W, a, data, words, noise, rates, rows, theta, features, first_step):  # type: ignore[no-untyped-def]
    """SGD or SAM as in the equations above.  W : (p, r), a : (p,), words : (T, 1)."""
    X, y = data[0], data[1]
    width, rank = W.shape
    lr, sigma, rho = rates["lr"], rates["sigma"], rates["rho"]
    u, moved_a, moved_u = np.empty(width), np.empty(width), np.empty(width)
    for t in range(words.shape[0]):
        i = drawn_sample(words[t, 0], X.shape[0])
        x = X[i]
        target = y[i] + drawn_noise(words, noise, t, 0, sigma)
        f, s, square = 0.0, 0.0, 0.0
        for j in range(rank):
            square += x[j] * x[j]
        for k in range(width):
            u[k] = 0.0
            for j in range(rank):
                u[k] += W[k, j] * x[j]
            f += a[k] * u[k]
            s += a[k] * a[k] * square + u[k] * u[k]
        residual = f - target
        if has_diverged(residual * residual):
            return t
        if theta is not None:
            twin_step(theta, x, features[1][i], target, lr, rho * features[2][i])
        h = rho * np.sign(residual) / np.sqrt(s) if rho > 0.0 and s > 0.0 else 0.0
        residual += h * s + h * h * f * square
        c = -lr * residual
        row = 0 if rows is None else (first_step + t) % rows.shape[1]
        for k in range(width):
            moved_a[k] = a[k] + h * u[k]
            moved_u[k] = u[k] + h * square * a[k]
            if rows is not None:
                rows[0, row, k] = c * u[k]
                rows[1, row, k] = c * np.sqrt(square) * a[k]
        for k in range(width):
            for j in range(rank):
                W[k, j] += c * moved_a[k] * x[j]
            a[k] += c * moved_u[k]
    return -1


@compiled(**EXACT)
def _squares(X):  # type: ignore[no-untyped-def]
    """|x_i|^2, (n,)."""
    result = np.zeros(X.shape[0])
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            result[i] += X[i, j] * X[i, j]
    return result


@compiled(**EXACT)
def _sgd(  # type: ignore[no-untyped-def]
    tile, W, a, u, data, words, noise, rates, rows, theta, features, first_step
):
    """SGD on the packed W : (tiles, r, units), a and u : (tiles units,)."""
    X, y = data[0], data[1]
    tiles, rank, _ = W.shape
    lr, sigma, samples = rates["lr"], rates["sigma"], X.shape[0]
    squares = _squares(X if rows is not None else X[:0])
    i = drawn_sample(words[0, 0], samples)
    f = tile_pass(tile, W, a, u, X, i * rank, i * rank, tiles, rank, 0.0)
    stride = features[0].shape[1]
    for t in range(words.shape[0]):
        target = y[i] + drawn_noise(words, noise, t, 0, sigma)
        residual = f - target
        if has_diverged(residual * residual):
            return t
        if stride > 0:
            twin_pass(theta, features[0], features[1], i * stride, stride // LANES, target, lr, 0.0)
        c = -lr * residual
        if rows is not None:
            row, length = (first_step + t) % rows.shape[1], c * np.sqrt(squares[i])
            for k in range(rows.shape[2]):
                rows[0, row, k] = c * u[k]
                rows[1, row, k] = length * a[k]
        m = i
        if t + 1 < words.shape[0]:
            i = drawn_sample(words[t + 1, 0], samples)
        f = tile_pass(tile, W, a, u, X, m * rank, i * rank, tiles, rank, c)
    return -1


@compiled(**EXACT)
def _sam(tile, W, a, u, data, words, noise, rates, theta, features):  # type: ignore[no-untyped-def]
    """SAM on the packed W : (tiles, r, units), a and u : (tiles units,)."""
    X, y = data[0], data[1]
    tiles, rank, _ = W.shape
    lr, sigma, rho, samples = rates["lr"], rates["sigma"], rates["rho"], X.shape[0]
    squares = _squares(X)
    i = drawn_sample(words[0, 0], samples)
    f, aa, uu = sam_pass(tile, W, a, u, X, i * rank, i * rank, tiles, rank, 0.0, 0.0, 0.0)
    stride = features[0].shape[1]
    for t in range(words.shape[0]):
        target = y[i] + drawn_noise(words, noise, t, 0, sigma)
        residual = f - target
        if has_diverged(residual * residual):
            return t
        if stride > 0:
            push = rho * features[2][i]
            twin_pass(
                theta, features[0], features[1], i * stride, stride // LANES, target, lr, push
            )
        s = aa * squares[i] + uu
        h = rho * np.sign(residual) / np.sqrt(s) if s > 0.0 else 0.0
        c = -lr * (residual + h * s + h * h * f * squares[i])
        m = i
        if t + 1 < words.shape[0]:
            i = drawn_sample(words[t + 1, 0], samples)
        f, aa, uu = sam_pass(
            tile, W, a, u, X, m * rank, i * rank, tiles, rank, c, c * h, c * h * squares[m]
        )
    return -1


@compiled(**EXACT)
def _padded(theta, features):  # type: ignore[no-untyped-def]
    """theta padded with zeros like the inputs of the twin; an empty array without a twin."""
    padded = aligned(features[0].shape[1])
    if theta is not None:
        copy_to(padded[: theta.size], theta)
    return padded


@compiled(**EXACT)
def one_sample_tiled(  # type: ignore[no-untyped-def]
    tile, W, a, data, words, noise, rates, rows, theta, features, first_step
):
    """`one_sample_plain` in tiles of len(tile) SIMD vectors (vectors.py)."""
    units = LANES * len(tile)
    width, rank = W.shape
    tiles = -(-width // units)
    tiled_W = aligned(tiles * rank * units).reshape(tiles, rank, units)
    tiled_a = aligned(tiles * units)
    u = aligned(tiles * units)
    copy_to(tiled_a[:width], a)
    for k in range(width):
        copy_to(tiled_W[k // units, :, k % units], W[k])
    padded = _padded(theta, features)
    if rates["rho"] > 0.0:
        diverged_step = _sam(tile, tiled_W, tiled_a, u, data, words, noise, rates, padded, features)
    else:
        diverged_step = _sgd(
            tile, tiled_W, tiled_a, u, data, words, noise, rates, rows, padded, features, first_step
        )
    if theta is not None:
        copy_to(theta, padded)
    copy_to(a, tiled_a)
    for k in range(width):
        copy_to(W[k], tiled_W[k // units, :, k % units])
    return diverged_step


def tile_of(width: int) -> tuple[int, ...]:
    """The tile for p = `width` hidden units: the narrowest that gives the fewest tiles."""
    tiles = -(-width // (LANES * MOST_VECTORS))
    return (0,) * -(-width // (LANES * tiles))


if config.DISABLE_JIT:
    # The vectors need the compiler; the plain loop is the same algorithm.
    def one_sample(tile, *arguments):  # type: ignore[no-untyped-def]
        return one_sample_plain(*arguments)
else:
    one_sample = one_sample_tiled


@compiled(**EXACT)
def one_sample_replicas(  # type: ignore[no-untyped-def]
    tile, W, a, data, words, noise, rates, rows, theta, features, first_step, going, diverged_at
):
    """`one_sample` for the replicas of indices `going`.  W : (S, p, r), words : (S, T, 1)."""
    for s in going:
        diverged_step = one_sample(
            tile, W[s], a[s], data, words[s], part(noise, s), rates[s], part(rows, s),
            part(theta, s), features, first_step,
        )  # fmt: skip
        if diverged_step >= 0:
            diverged_at[s] = first_step + diverged_step
