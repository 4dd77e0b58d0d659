"""The diagonal network: work, forward and pull_back of models.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lnsim.base.compiled import compiled
from lnsim_numba.common import BARE, FAST


class Diagonal(NamedTuple):
    """d, the form (0 product, 1 difference, 2 square) and its power."""

    dim: int
    form: int
    power: int


@compiled(**FAST)
def work(model, batch):  # type: ignore[no-untyped-def]
    """u and v as they were, beta, and X^T g: out may be theta."""
    d = model.dim
    return np.empty(d), np.empty(d), np.empty(d), np.empty(d)


@compiled(**BARE)
def forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
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
def pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
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
