"""The deep linear network: work, forward and pull_back of models.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import BARE, FAST
from lnsim_numba.products import add_outer, product, times, times_transposed


class Deep(NamedTuple):
    """sizes : (L + 1,) d, m_1, ..., C; skips : (L,) whether a layer adds its input."""

    sizes: Any
    skips: Any


@compiled(**FAST)
def work(model, batch):  # type: ignore[no-untyped-def]
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
def forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
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
            product(before, W.T, after)
        else:
            times(W, before[0], after[0])
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
def pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """b_{l-1} = W_l^T b_l (plus b_l where there is a skip), dW_l = b_l h_{l-1}^T."""
    sizes, batch = model.sizes, X.shape[0]
    last = sizes.size - 1
    units, backs, room = work
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
                product(back, W, earlier)
            else:
                times_transposed(W, back[0], earlier[0])
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
            like_W = room[: j * k].reshape(j, k)
            product(back.T, before, like_W)
            for row in range(j):
                for column in range(k):
                    out_W[row, column] += scale * like_W[row, column]
        else:
            add_outer(scale, back[0], before[0], out_W)
        back = earlier
        end -= j * k
        place -= batch * k
