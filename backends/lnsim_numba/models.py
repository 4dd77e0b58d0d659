"""The models by hand: the prediction of a batch, and the pull-back of a derivative through it.

A model is a tuple of sizes; its type chooses the functions, and Numba compiles every kernel that
calls `forward` and `pull_back` once for each.  theta : (P,) holds the parameters as
lnsim.models.base says.

    work(model, batch)                        arrays that the other two share, for a batch size
    forward(model, theta, X, keep, work, f)   writes f : (B, C) for X : (B, r)
    pull_back(model, theta, X, keep, work, g, scale, out)
                                              out += scale sum_b J_b^T g_b, J_b = df_b/dtheta at the
                                              theta that `work` was written for; g : (B, C)

With one sample out may be theta itself: what is read of theta is read before it is written.
keep : (B, H) multiplies the hidden units (dropout), or has no entries.  The derivations are in the
files of lnsim/models.  Batches are products of matrices; one sample is loops, which are faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from lnsim.base.compiled import compiled
from lnsim_numba.common import BARE, FAST


class TwoLayer(NamedTuple):
    """d, m, C, and the activation: -1 none, 0 relu, 1 erf."""

    dim: int
    width: int
    outputs: int
    activation: int


class Diagonal(NamedTuple):
    """d, the form (0 product, 1 difference, 2 square) and its power."""

    dim: int
    form: int
    power: int


class Deep(NamedTuple):
    """sizes : (L + 1,) d, m_1, ..., C; skips : (L,) whether a layer adds its input."""

    sizes: Any
    skips: Any


@compiled(**{**FAST, "_nrt": True})
def _product(A, B, out):  # type: ignore[no-untyped-def]
    """out = A B, by BLAS, whose caller in Numba may count references."""
    np.dot(A, B, out)


@compiled(**BARE)
def _times(W, x, out):  # type: ignore[no-untyped-def]
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
def _times_transposed(W, g, out):  # type: ignore[no-untyped-def]
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
def _add_outer(scale, g, x, out):  # type: ignore[no-untyped-def]
    """out += scale g x^T.  Row by row: LLVM does not tell two rows that are written apart."""
    for k in range(out.shape[0]):
        row, slope = out[k], scale * g[k]
        for j in range(x.size):
            row[j] += slope * x[j]


@compiled(**FAST)
def _two_layer_work(model, batch):  # type: ignore[no-untyped-def]
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
def _two_layer_forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """h = W x, f = A phi(h)."""
    d, m, C = model.dim, model.width, model.outputs
    units = work[0]
    W, A = theta[: m * d].reshape(m, d), theta[m * d :].reshape(C, m)
    if X.shape[0] > 1:
        _product(X, W.T, units)
    else:
        _times(W, X[0], units[0])
    if model.activation >= 0:
        _activate(model.activation, units, work[1])
    if keep.size > 0:
        for b in range(X.shape[0]):
            for k in range(m):
                units[b, k] *= keep[b, k]
    if X.shape[0] > 1:
        _product(units, A.T, f)
    else:
        _times(A, units[0], f[0])


@compiled(**BARE)
def _two_layer_pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """dA = g phi(h)^T, dW = b x^T."""
    d, m, C = model.dim, model.width, model.outputs
    units, slopes, back, like_W, like_A = work
    A = theta[m * d :].reshape(C, m)
    out_W, out_A = out[: m * d].reshape(m, d), out[m * d :].reshape(C, m)
    if X.shape[0] > 1:
        _product(g, A, back)
    else:
        _times_transposed(A, g[0], back[0])
    if keep.size > 0:
        for b in range(X.shape[0]):
            for k in range(m):
                back[b, k] *= keep[b, k]
    if model.activation >= 0:
        for b in range(X.shape[0]):
            for k in range(m):
                back[b, k] *= slopes[b, k]
    if X.shape[0] > 1:
        _product(back.T, X, like_W)
        _product(g.T, units, like_A)
        for k in range(m):
            for j in range(d):
                out_W[k, j] += scale * like_W[k, j]
        for c in range(C):
            for k in range(m):
                out_A[c, k] += scale * like_A[c, k]
    else:
        _add_outer(scale, back[0], X[0], out_W)
        _add_outer(scale, g[0], units[0], out_A)


@compiled(**FAST)
def _diagonal_work(model, batch):  # type: ignore[no-untyped-def]
    """u and v as they were, beta, and X^T g: out may be theta."""
    d = model.dim
    return np.empty(d), np.empty(d), np.empty(d), np.empty(d)


@compiled(**BARE)
def _diagonal_forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """f = <beta, x>."""
    d = model.dim
    u, v, beta, _ = work
    first, second = theta[:d], theta[theta.size - d :]
    if X.shape[0] == 1 and keep.size == 0 and model.form != 1:
        total, x = 0.0, X[0]
        for j in range(d):
            u[j] = first[j]
            v[j] = second[j]
            total += first[j] * second[j] * x[j]
        f[0, 0] = total
        return
    for j in range(d):
        u[j] = first[j]
        v[j] = second[j]
    if model.form == 1:
        for j in range(d):
            beta[j] = u[j] ** model.power - v[j] ** model.power
    else:
        for j in range(d):
            beta[j] = u[j] * v[j]
    for b in range(X.shape[0]):
        total, x = 0.0, X[b]
        if keep.size > 0:
            for j in range(d):
                total += keep[b, j] * beta[j] * x[j]
        else:
            for j in range(d):
                total += beta[j] * x[j]
        f[b, 0] = total


@compiled(**BARE)
def _diagonal_pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """dbeta = sum_b g_b x_b, and from it du and dv."""
    d = model.dim
    u, v, _, moment = work
    out_u, out_v = out[:d], out[theta.size - d :]
    x, slope = X[0], scale * g[0, 0]
    if X.shape[0] == 1 and keep.size == 0 and model.form == 0:
        for j in range(d):
            out_u[j] += slope * x[j] * v[j]
            out_v[j] += slope * x[j] * u[j]
        return
    for j in range(d):
        moment[j] = slope * x[j]
    if keep.size > 0:
        for j in range(d):
            moment[j] *= keep[0, j]
    for b in range(1, X.shape[0]):
        x, slope = X[b], scale * g[b, 0]
        if keep.size > 0:
            for j in range(d):
                moment[j] += slope * x[j] * keep[b, j]
        else:
            for j in range(d):
                moment[j] += slope * x[j]
    if model.form == 0:
        for j in range(d):
            out_u[j] += moment[j] * v[j]
            out_v[j] += moment[j] * u[j]
    elif model.form == 1:
        for j in range(d):
            out_u[j] += model.power * moment[j] * u[j] ** (model.power - 1)
            out_v[j] -= model.power * moment[j] * v[j] ** (model.power - 1)
    else:
        for j in range(d):
            out_v[j] += 2.0 * moment[j] * v[j]


@compiled(**FAST)
def _deep_work(model, batch):  # type: ignore[no-untyped-def]
    """The layers' outputs one after another, their derivatives likewise, and a layer's product."""
    sizes = model.sizes
    entries, largest = 0, 0
    for layer in range(1, sizes.size):
        entries += sizes[layer]
        largest = max(largest, sizes[layer] * sizes[layer - 1])
    return (
        np.empty(batch * entries),
        np.empty(batch * entries),
        np.empty(largest if batch > 1 else 0),
    )


@compiled(**BARE)
def _deep_forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """h_l = W_l h_{l-1}, plus h_{l-1} where there is a skip."""
    sizes, batch = model.sizes, X.shape[0]
    last = sizes.size - 1
    units = work[0]
    before = X
    start, place, unit = 0, 0, 0
    for layer in range(1, last + 1):
        k, j = sizes[layer - 1], sizes[layer]
        W = theta[start : start + j * k].reshape(j, k)
        after = units[place : place + batch * j].reshape(batch, j)
        if batch > 1:
            _product(before, W.T, after)
        else:
            _times(W, before[0], after[0])
        if model.skips[layer - 1]:
            for b in range(batch):
                for row in range(j):
                    after[b, row] += before[b, row]
        if keep.size > 0 and layer < last:
            for b in range(batch):
                for row in range(j):
                    after[b, row] *= keep[b, unit + row]
        before = after
        start, place, unit = start + j * k, place + batch * j, unit + j
    for b in range(batch):
        for c in range(f.shape[1]):
            f[b, c] = before[b, c]


@compiled(**BARE)
def _deep_pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """b_{l-1} = W_l^T b_l (plus b_l where there is a skip), dW_l = b_l h_{l-1}^T."""
    sizes, batch = model.sizes, X.shape[0]
    last = sizes.size - 1
    units, backs, product = work
    end, place, unit = theta.size, units.size, keep.shape[1]
    back = backs[place - batch * sizes[last] : place].reshape(batch, sizes[last])
    for b in range(batch):
        for c in range(g.shape[1]):
            back[b, c] = g[b, c]
    place -= batch * sizes[last]
    for layer in range(last, 0, -1):
        k, j = sizes[layer - 1], sizes[layer]
        W = theta[end - j * k : end].reshape(j, k)
        out_W = out[end - j * k : end].reshape(j, k)
        before, earlier = X, X
        if layer > 1:
            before = units[place - batch * k : place].reshape(batch, k)
            earlier = backs[place - batch * k : place].reshape(batch, k)
            if batch > 1:
                _product(back, W, earlier)
            else:
                _times_transposed(W, back[0], earlier[0])
            if model.skips[layer - 1]:
                for b in range(batch):
                    for column in range(k):
                        earlier[b, column] += back[b, column]
            if keep.size > 0:
                unit -= k
                for b in range(batch):
                    for column in range(k):
                        earlier[b, column] *= keep[b, unit + column]
        if batch > 1:
            like_W = product[: j * k].reshape(j, k)
            _product(back.T, before, like_W)
            for row in range(j):
                for column in range(k):
                    out_W[row, column] += scale * like_W[row, column]
        else:
            _add_outer(scale, back[0], before[0], out_W)
        back = earlier
        end -= j * k
        place -= batch * k


FUNCTIONS: dict[type, tuple[Callable[..., Any], ...]] = {
    TwoLayer: (_two_layer_work, _two_layer_forward, _two_layer_pull_back),
    Diagonal: (_diagonal_work, _diagonal_forward, _diagonal_pull_back),
    Deep: (_deep_work, _deep_forward, _deep_pull_back),
}
"""By the type of a model its work, forward and pull_back."""


def work(model, batch):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)][0](model, batch)


def forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)][1](model, theta, X, keep, work, f)


def pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)][2](model, theta, X, keep, work, g, scale, out)


def _function(model: Any, number: int) -> Callable[..., Any]:
    """The function that Numba is to compile for an argument of this type."""
    return FUNCTIONS[model.instance_class][number]


@overload(work)
def _compile_work(model, batch):  # type: ignore[no-untyped-def]
    function = _function(model, 0)
    return lambda model, batch: function(model, batch)


@overload(forward)
def _compile_forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    function = _function(model, 1)
    return lambda model, theta, X, keep, work, f: function(model, theta, X, keep, work, f)


@overload(pull_back)
def _compile_pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    function = _function(model, 2)
    return lambda model, theta, X, keep, work, g, scale, out: function(
        model, theta, X, keep, work, g, scale, out
    )
