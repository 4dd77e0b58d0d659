"""Products of matrices that the models share: by BLAS for batches, by loops for one sample."""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import BARE, FAST


@compiled(**{**FAST, "_nrt": True})
def product(A, B, out):  # type: ignore[no-untyped-def]
    """out = A B, by BLAS, whose caller in Numba may count references."""
    np.dot(A, B, out)


@compiled(**BARE)
def times(W, x, out):  # type: ignore[no-untyped-def]
    """out = W x.  Four rows at a time: four sums wait for one another less than one does."""
    rows, columns = W.shape
    whole = rows - rows % 4
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = W[k], W[k + 1], W[k + 2], W[k + 3]
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        for j in range(columns):
            s0 += w0[j] * x[j]
            s1 += w1[j] * x[j]
            s2 += w2[j] * x[j]
            s3 += w3[j] * x[j]
        out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
    for k in range(whole, rows):
        s0, w0 = 0.0, W[k]
        for j in range(columns):
            s0 += w0[j] * x[j]
        out[k] = s0


@compiled(**BARE)
def times_transposed(W, g, out):  # type: ignore[no-untyped-def]
    """out = W^T g, four rows at a time: `out` is loaded and stored a quarter as often."""
    rows, columns = W.shape
    for j in range(columns):
        out[j] = 0.0
    whole = rows - rows % 4
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = W[k], W[k + 1], W[k + 2], W[k + 3]
        g0, g1, g2, g3 = g[k], g[k + 1], g[k + 2], g[k + 3]
        for j in range(columns):
            out[j] += g0 * w0[j] + g1 * w1[j] + g2 * w2[j] + g3 * w3[j]
    for k in range(whole, rows):
        w0, g0 = W[k], g[k]
        for j in range(columns):
            out[j] += g0 * w0[j]


@compiled(**BARE)
def add_outer(scale, g, x, out):  # type: ignore[no-untyped-def]
    """out += scale g x^T.  Row by row: LLVM does not tell two rows that are written apart."""
    for k in range(out.shape[0]):
        row, slope = out[k], scale * g[k]
        for j in range(x.size):
            row[j] += slope * x[j]
