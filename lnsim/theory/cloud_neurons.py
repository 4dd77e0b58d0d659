"""Quantities of single neurons by the law of the cloud, from the moments of cloud.py.

Neuron i is row i of E[M] = M(0) G, w_i : (r,), a_i, plus the part of w_i off the inputs, which does
not move.  Its fluctuation a_i z gives

    E|w_i| = sqrt(|w_i|^2 + a_i^2 (tr Z - u^T Z u)),   u = w_i/|w_i|,

to second order, as the part of z along w_i moves |w_i| to and fro but not its mean; <w_i, theta*>
is normal of mean w_i.theta* and variance a_i^2 theta*^T Z theta*, so its absolute value is folded
normal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.theory.cloud_network import Mean

FORMULAS = ("norm_mean", "alignment_mean", "cosine_mean")
"""The means over neurons that `over_time` gives."""


_erf = np.frompyfunc(math.erf, 1, 1)  # scipy.special takes longer to import than this to compute


def over_time(mean: Mean) -> dict[str, FloatArray]:
    """FORMULAS, (T,) each."""
    steps = len(mean.course.times)
    result = {name: np.empty(steps) for name in FORMULAS}
    size = float(np.linalg.norm(mean.problem.theta_star))
    for k in range(steps):
        norms, alignments, _ = neurons(mean, k)
        scale = np.where(norms * size > 0, norms * size, np.inf)
        for name, values in zip(FORMULAS, (norms, alignments, alignments / scale), strict=True):
            result[name][k] = values.mean()
    return result


def neurons(
    mean: Mean, k: int, chosen: NDArray[np.int64] | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """E|w_i|, E|<w_i, theta*>|, E[a_i] at the k-th time, (m,) each, or of the neurons `chosen`."""
    rows: Any = slice(None) if chosen is None else chosen
    M = mean.M[rows] @ mean.G[k]
    w, a, Z = M[:, :-1], M[:, -1], mean.course.Z[k]
    square = np.einsum("mr,mr->m", w, w)
    inside = w @ mean.target
    if mean.has_rest:
        rest = mean.rest[rows]
        square = square + np.einsum("md,md->m", rest, rest)
        inside = inside + rest @ mean.problem.theta_star
    radial = np.einsum("mr,mr->m", w @ Z, w) / np.where(square > 0, square, 1.0)
    norms = np.sqrt(square + a**2 * np.maximum(float(Z.trace()) - radial, 0.0))
    spread = np.abs(a) * math.sqrt(max(float(mean.target @ Z @ mean.target), 0.0))
    return norms, folded(inside, spread), a


def folded(mean: FloatArray, spread: FloatArray) -> FloatArray:
    """E|x| of normal x."""
    z = mean / np.where(spread > 0, spread, 1.0)
    sign = np.asarray(_erf(z / math.sqrt(2)), dtype=np.float64)
    folded = mean * sign + spread * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2)
    return np.where(spread > 0, folded, np.abs(mean))
