"""The functions and compiler options that all kernels share.

Rates are a record for each replica: the scalars that a kernel takes of the dynamics, by name
(call.py).  Data are a tuple (X, y, gram, moment, square): X : (n, r), y : (n,), gram = X^T X / n,
moment = X^T y / n, square = y^T y / n.  Label noise is an array (T, draws), or None: then its sign
is the lowest bit of the word.  Numba compiles the two cases separately.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lnsim.base.checks import DIVERGED_ABOVE
from lnsim.base.compiled import compiled

EXACT: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# Only flags that preserve NaN and infinity, by which divergence is detected.
FAST: dict[str, Any] = {**EXACT, "fastmath": {"contract", "reassoc", "nsz"}}
BARE: dict[str, Any] = {**FAST, "_nrt": False}
"""Options for loops that allocate no arrays, only views: without reference counting.

Counting costs 10 ns per view and per array passed on, more than a small step does.
"""

_HIGH = np.uint64(32)
_SIGN = np.uint64(1)


@compiled(**EXACT)
def drawn_sample(word, samples):  # type: ignore[no-untyped-def]
    """The index of the sample that a word draws (streams.py)."""
    return np.intp(((word >> _HIGH) * np.uint64(samples)) >> _HIGH)


@compiled(**EXACT)
def drawn_noise(words, noise, t, b, sigma):  # type: ignore[no-untyped-def]
    """Label noise of draw b of step t."""
    if noise is None:
        # Arithmetic, as a branch would be mispredicted half of the time.
        return sigma * (2.0 * np.float64(words[t, b] & _SIGN) - 1.0)
    return sigma * noise[t, b]


@compiled(**EXACT)
def part(array, s):  # type: ignore[no-untyped-def]
    """array[s], or None if there is no array."""
    return None if array is None else array[s]


@compiled(**EXACT)
def has_diverged(squared_residual):  # type: ignore[no-untyped-def]
    """True also for NaN."""
    return not squared_residual < DIVERGED_ABOVE


@compiled(**EXACT)
def larger(square, worst):  # type: ignore[no-untyped-def]
    """Whether `square` takes the place of the largest: NaN does, and nothing takes NaN's."""
    return square > worst or square != square


@compiled(**FAST)
def _descent_by_products(theta, z, X, y, words, noise, t, batch, sigma):  # type: ignore[no-untyped-def]
    """`descent` for batches of at least n: z = X^T c, c : (n,) the sums of r_b / B by sample.

    Smaller batches go row by row: to gather their rows for matrix products takes as long.
    """
    clean = np.dot(X, theta) - y
    c = np.zeros(y.size)
    worst = 0.0
    for b in range(batch):
        i = drawn_sample(words[t, b], y.size)
        residual = clean[i] - drawn_noise(words, noise, t, b, sigma)
        if larger(residual * residual, worst):
            worst = residual * residual
        c[i] += residual / batch
    z[:] = np.dot(c, X)
    return worst


@compiled(**FAST)
def descent(theta, z, data, words, noise, t, batch, sigma):  # type: ignore[no-untyped-def]
    """z = (1/B) sum_b r_b x_b at the predictor theta; batch 0 uses every sample once.

    z : (r,) is written.  Without label noise the full batch uses only gram and moment.  Returns the
    largest squared residual of the batch, or the mean squared residual of the clean full batch.
    """
    X, y, gram, moment, square = data
    rank = theta.size
    if batch >= X.shape[0]:
        return _descent_by_products(theta, z, X, y, words, noise, t, batch, sigma)
    if batch > 0:
        z[:] = 0.0
        worst = 0.0
        for b in range(batch):
            i = drawn_sample(words[t, b], X.shape[0])
            residual = -(y[i] + drawn_noise(words, noise, t, b, sigma))
            for j in range(rank):
                residual += theta[j] * X[i, j]
            if larger(residual * residual, worst):
                worst = residual * residual
            residual /= batch
            for j in range(rank):
                z[j] += residual * X[i, j]
        return worst
    mean = square
    for j in range(rank):
        z[j] = -moment[j]
        for k in range(rank):
            z[j] += gram[j, k] * theta[k]
        mean += theta[j] * (z[j] - moment[j])
    for b in range(words.shape[1] if sigma > 0.0 else 0):
        epsilon = drawn_noise(words, noise, t, b, sigma) / X.shape[0]
        for j in range(rank):
            z[j] -= epsilon * X[b, j]
    return mean


@compiled(**FAST)
def apply(Wt, z, v):  # type: ignore[no-untyped-def]
    """v = W z, with Wt : (r, p) the transpose of W."""
    v[:] = 0.0
    for j in range(Wt.shape[0]):
        for k in range(v.size):
            v[k] += z[j] * Wt[j, k]


@compiled(**FAST)
def apply_transposed(Wt, a, theta):  # type: ignore[no-untyped-def]
    """theta = W^T a."""
    for j in range(Wt.shape[0]):
        total = 0.0
        for k in range(a.size):
            total += Wt[j, k] * a[k]
        theta[j] = total


@compiled(**FAST)
def dot(x, y):  # type: ignore[no-untyped-def]
    """sum_k x_k y_k."""
    total = 0.0
    for k in range(x.size):
        total += x[k] * y[k]
    return total


@compiled(**EXACT)
def copy_to(target, source):  # type: ignore[no-untyped-def]
    """target[:] = source, (n,) each, for which Numba would compile an error message for seconds."""
    for i in range(target.size):
        target[i] = source[i]


@compiled(**FAST)
def aligned(size):  # type: ignore[no-untyped-def]
    """Zeros of `size`, starting on a cache line."""
    buffer = np.zeros(size + 8)
    start = (-(buffer.ctypes.data // 8)) % 8
    return buffer[start : start + size]
