"""Jitted training loops with hand-derived gradients.

Derivation.  f(x) = a^T W x, one sample, residual r = f(x) - y - eps, loss r^2 / 2.

    dL/dW_kj = r a_k x_j,    dL/da_k = r (W x)_k.

With u = W x and c = -lr r, both right sides at the same time:

    a . u = f,    W <- W + c a x^T,    a <- a + c u.

One sample a step (`one_sample`).  Each step needs u = W x for the next sample,
W after the update: the update and the next product run through W once, together.

Any batch, momentum mu and weight decay w (`mini_batch`).  The gradient of (1/2B) sum_b r_b^2 is
a z^T and W z with z = (1/B) sum_b r_b x_b, and f(x_b) = theta . x_b with theta = W^T a.  So a
batch costs B products of length r and two passes through W, not B passes:

    v = W z,   V_W <- mu V_W + a z^T + w W,   V_a <- mu V_a + v + w a,
    W <- W - lr V_W,   a <- a - lr V_a.

Layout.  W is held transposed, hidden index innermost.  `one_sample_tiled` packs the hidden units
into tiles of up to 24, padded with zeros (which stay zero), aligned to cache lines: one tile when
reduced at d = 20, 42 when dense at m = 1000.  Each replica is advanced by one thread from start to
end, so the number of threads changes no bit.

All arrays are C-contiguous; float64 throughout.  A kernel returns the number of steps done when
a squared residual was not below DIVERGED_ABOVE, or -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, njit, prange

from lnsim.backend import DIVERGED_ABOVE
from lnsim_numba.vectors import LANES, MOST_VECTORS, tile_pass

EXACT: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
# Only flags that keep NaN and infinity honest: divergence is found by them.
FAST: dict[str, Any] = {**EXACT, "fastmath": {"contract", "reassoc", "nsz"}}

_HIGH = np.uint64(32)
_SIGN = np.uint64(1)


@njit(**FAST)
def drawn_sample(word, samples):  # type: ignore[no-untyped-def]
    """The sample that a word draws (streams.py)."""
    return np.intp(((word >> _HIGH) * np.uint64(samples)) >> _HIGH)


@njit(**FAST)
def drawn_noise(words, noise, k, sigma):  # type: ignore[no-untyped-def]
    """Label noise of draw k: from `noise` : (T,), or from the word's lowest bit if it is None.

    Numba compiles the two cases apart.
    """
    if noise is None:
        # Arithmetic, not a branch: half of all guesses would be wrong.
        return sigma * (2.0 * np.float64(words[k] & _SIGN) - 1.0)
    return sigma * noise[k]


@njit(**FAST)
def noise_of(noise, s):  # type: ignore[no-untyped-def]
    """The noise of replica s, out of `noise` : (S, T) or None."""
    return None if noise is None else noise[s]


@njit(**FAST)
def one_sample_plain(W, a, X, y, words, noise, lr, sigma):  # type: ignore[no-untyped-def]
    """SGD on one sample a step, as the equations stand.  W : (p, r), a : (p,)."""
    width, rank = W.shape
    u = np.empty(width)
    for t in range(words.size):
        i = drawn_sample(words[t], X.shape[0])
        f = 0.0
        for k in range(width):
            u[k] = 0.0
            for j in range(rank):
                u[k] += W[k, j] * X[i, j]
            f += a[k] * u[k]
        residual = f - y[i] - drawn_noise(words, noise, t, sigma)
        if not residual * residual < DIVERGED_ABOVE:
            return t
        c = -lr * residual
        for k in range(width):
            for j in range(rank):
                W[k, j] += c * a[k] * X[i, j]
            a[k] += c * u[k]
    return -1


@njit(**FAST)
def _aligned(size):  # type: ignore[no-untyped-def]
    """Zeros of `size`, starting on a cache line."""
    room = np.zeros(size + 8)
    start = (-(room.ctypes.data // 8)) % 8
    return room[start : start + size]


@njit(**EXACT)
def one_sample_tiled(tile, W, a, X, y, words, noise, lr, sigma):  # type: ignore[no-untyped-def]
    """`one_sample_plain` in tiles of len(tile) SIMD vectors (vectors.py)."""
    units = LANES * len(tile)
    width, rank = W.shape
    tiles = -(-width // units)
    tiled_W = _aligned(tiles * rank * units).reshape(tiles, rank, units)
    tiled_a = _aligned(tiles * units)
    u = _aligned(tiles * units)
    tiled_a[:width] = a
    for k in range(width):
        tiled_W[k // units, :, k % units] = W[k]

    samples = X.shape[0]
    i = drawn_sample(words[0], samples)
    f = tile_pass(tile, tiled_W, tiled_a, u, X, i * rank, i * rank, tiles, rank, 0.0)
    done = -1
    for t in range(words.size):
        residual = f - (y[i] + drawn_noise(words, noise, t, sigma))
        if not residual * residual < DIVERGED_ABOVE:
            done = t
            break
        m = i
        if t + 1 < words.size:
            i = drawn_sample(words[t + 1], samples)
        c = -lr * residual
        f = tile_pass(tile, tiled_W, tiled_a, u, X, m * rank, i * rank, tiles, rank, c)

    a[:] = tiled_a[:width]
    for k in range(width):
        W[k] = tiled_W[k // units, :, k % units]
    return done


def tile_of(width: int) -> tuple[int, ...]:
    """The tile for p = `width` hidden units: as few tiles as can be, then as narrow as can be."""
    tiles = -(-width // (LANES * MOST_VECTORS))
    return (0,) * -(-width // (LANES * tiles))


if config.DISABLE_JIT:
    # There are no vectors without the compiler; the plain loop is the same algorithm.
    def one_sample(tile, *arguments):  # type: ignore[no-untyped-def]
        return one_sample_plain(*arguments)
else:
    one_sample = one_sample_tiled


@njit(parallel=True, **EXACT)
def one_sample_replicas(  # type: ignore[no-untyped-def]
    tile, W, a, X, y, words, noise, lr, sigma, first_step, diverged_at
):
    """`one_sample` for every replica that has not diverged.  W : (S, p, r), words : (S, T)."""
    for s in prange(W.shape[0]):
        if diverged_at[s] < 0:
            done = one_sample(tile, W[s], a[s], X, y, words[s], noise_of(noise, s), lr[s], sigma[s])
            if done >= 0:
                diverged_at[s] = first_step + done


@njit(**FAST)
def mini_batch(  # type: ignore[no-untyped-def]
    W, a, V_W, V_a, X, y, words, noise, batch, lr, sigma, momentum, decay
):
    """SGD on `batch` samples a step with momentum and weight decay.

    W, V_W : (p, r); a, V_a : (p,), the V being the momentum buffers.
    """
    width, rank = W.shape
    Wt, Vt = W.T.copy(), V_W.T.copy()
    theta, z, v = np.empty(rank), np.empty(rank), np.empty(width)
    done = -1
    for t in range(words.size // batch):
        for j in range(rank):
            theta[j] = 0.0
            z[j] = 0.0
            for k in range(width):
                theta[j] += Wt[j, k] * a[k]
        diverged = False
        for k in range(t * batch, (t + 1) * batch):
            i = drawn_sample(words[k], X.shape[0])
            residual = -y[i] - drawn_noise(words, noise, k, sigma)
            for j in range(rank):
                residual += theta[j] * X[i, j]
            diverged |= not residual * residual < DIVERGED_ABOVE
            for j in range(rank):
                z[j] += residual * X[i, j] / batch
        if diverged:
            done = t
            break
        v[:] = 0.0
        for j in range(rank):
            for k in range(width):
                v[k] += z[j] * Wt[j, k]
        for j in range(rank):
            for k in range(width):
                Vt[j, k] = momentum * Vt[j, k] + a[k] * z[j] + decay * Wt[j, k]
                Wt[j, k] -= lr * Vt[j, k]
        for k in range(width):
            V_a[k] = momentum * V_a[k] + v[k] + decay * a[k]
            a[k] -= lr * V_a[k]
    W[:] = Wt.T
    V_W[:] = Vt.T
    return done


@njit(parallel=True, **FAST)
def mini_batch_replicas(  # type: ignore[no-untyped-def]
    W, a, V_W, V_a, X, y, words, noise, batch, lr, sigma, momentum, decay, first_step, diverged_at
):
    """`mini_batch` for every replica that has not diverged.  W : (S, p, r), words : (S, T B)."""
    for s in prange(W.shape[0]):
        if diverged_at[s] < 0:
            done = mini_batch(
                W[s], a[s], V_W[s], V_a[s], X, y, words[s], noise_of(noise, s),
                batch[s], lr[s], sigma[s], momentum[s], decay[s],
            )  # fmt: skip
            if done >= 0:
                diverged_at[s] = first_step + done
