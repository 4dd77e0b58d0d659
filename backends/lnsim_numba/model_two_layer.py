"""Two layers, with an activation or without: work, forward and pull_back of models.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import BARE, FAST
from lnsim_numba.products import add_outer, product, times, times_transposed


class TwoLayer(NamedTuple):
    """d, m, C, and the activation: -1 none, 0 relu, 1 erf."""

    dim: int
    width: int
    outputs: int
    activation: int


@compiled(**FAST)
def work(model, batch):  # type: ignore[no-untyped-def]
    """phi(h), phi'(h) and b = (A^T g) phi'(h), (B, m) each; a place for a gradient's product."""
    m = model.width
    slopes = batch if model.activation >= 0 else 0
    return (
        np.empty((batch, m)),
        np.empty((slopes, m)),
        np.empty((batch, m)),
        np.empty((m if batch > 1 else 0, model.dim)),
        np.empty((model.outputs if batch > 1 else 0, m)),
    )


@compiled(**BARE)
def _activate(activation, units, slopes):  # type: ignore[no-untyped-def]
    """Puts phi(h) in the place of h, and phi'(h) into `slopes`."""
    for b in range(units.shape[0]):
        for k in range(units.shape[1]):
            h = units[b, k]
            if activation == 0:
                slopes[b, k] = 1.0 if h > 0.0 else 0.0
                units[b, k] = h if h > 0.0 else 0.0
            else:
                slopes[b, k] = 2.0 / math.sqrt(math.pi) * math.exp(-h * h)
                units[b, k] = math.erf(h)


@compiled(**BARE)
def forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """h = W x, f = A phi(h)."""
    d, m, C = model.dim, model.width, model.outputs
    units = work[0]
    W, A = theta[: m * d].reshape(m, d), theta[m * d :].reshape(C, m)
    if X.shape[0] > 1:
        product(X, W.T, units)
    else:
        times(W, X[0], units[0])
    if model.activation >= 0:
        _activate(model.activation, units, work[1])
    if keep.size > 0:
        for b in range(X.shape[0]):
            for k in range(m):
                units[b, k] *= keep[b, k]
    if X.shape[0] > 1:
        product(units, A.T, f)
    else:
        times(A, units[0], f[0])


@compiled(**BARE)
def pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """dA = g phi(h)^T, dW = b x^T."""
    d, m, C = model.dim, model.width, model.outputs
    units, slopes, back, like_W, like_A = work
    A = theta[m * d :].reshape(C, m)
    out_W, out_A = out[: m * d].reshape(m, d), out[m * d :].reshape(C, m)
    if X.shape[0] > 1:
        product(g, A, back)
    else:
        times_transposed(A, g[0], back[0])
    if keep.size > 0:
        for b in range(X.shape[0]):
            for k in range(m):
                back[b, k] *= keep[b, k]
    if model.activation >= 0:
        for b in range(X.shape[0]):
            for k in range(m):
                back[b, k] *= slopes[b, k]
    if X.shape[0] > 1:
        product(back.T, X, like_W)
        product(g.T, units, like_A)
        for k in range(m):
            for j in range(d):
                out_W[k, j] += scale * like_W[k, j]
        for c in range(C):
            for k in range(m):
                out_A[c, k] += scale * like_A[c, k]
    else:
        add_outer(scale, back[0], X[0], out_W)
        add_outer(scale, g[0], units[0], out_A)
