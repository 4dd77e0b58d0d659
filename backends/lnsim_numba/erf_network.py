r"""The two-layer erf network on the CPU: one fused pass per step, one thread per run, no BLAS.

The equations, and the reduction of the first layer's state to the coefficients A, are in
lnsim/images/erf_network.py.  Row j of a step computes h = H_j(0) + gram_j A, phi = erf(h),
f = W2 phi + b2, D_j = (f - y_j) lr / (nC), and then the gradients by hand

    Delta_j = (D_j W2) o erf'(h),        grad W2 += D_j phi^T,        grad b2 += D_j;

A -= Delta comes after all rows, as they all need A.  A row stays in the L1 cache from its first
product to its last, and a step is too short (0.4 ms) to be shared among threads.

erf and erf' from one table.  Around a node c, with g(x) = erf'(x) = 2 / sqrt(pi) e^{-x^2} and
g(c + e) = g(c) sum_i u_i, the terms of the Taylor series follow from g' = -2 x g:

    u_0 = 1,   u_{i+1} = (-2 c e u_i - 2 e^2 u_{i-1}) / (i + 1),
    erf(c + e) = erf(c) + g(c) e sum_i u_i / (i + 1).

By Cramer's bound on Hermite functions |g(c) u_i| <= 1.3 (sqrt(2) |e|)^i / sqrt(i!): with a node
every 1/32, so |e| <= 1/64, eight terms leave an error of 3e-16.  Beyond 6, erf is 1 to the last
bit.  The look-up and the series are two loops, because only the second can be vectorised.

Outputs are computed in double precision for gradients of any type: late in training f - y is a
small difference of large numbers, and an error of f would not fade like one of a gradient.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.images import erf_network
from lnsim.images.erf_network import Start, State
from lnsim_numba.common import FAST, aligned

LAST_NODE = 6
NODES_PER_UNIT = 32
TERMS = 8
UNROLLED = 4
"""Rows of A per pass of the product: A is padded to a multiple of this number of rows."""


def check_device(device: str) -> None:
    """Raises ValueError for any device but the CPU."""
    if device != "cpu":
        raise ValueError(f"backend 'numba' trains on the cpu alone: for {device!r} use 'torch'")


def advance(
    state: State,
    start: Start,
    labels: NDArray[np.int64],
    lr: float,
    *,
    dtype: str,
    device: str = "cpu",
) -> None:
    """See lnsim.images.erf_network.Engine."""
    runs, samples, width = state.coefficients.shape
    padded = -(-samples // UNROLLED) * UNROLLED
    gram = _aligned((padded, padded))
    gram[:samples, :samples] = start.gram
    preactivation = _aligned((samples, width))
    preactivation[:] = start.preactivation
    rate = lr / (samples * state.b2.shape[1])
    real = np.zeros(1, dtype=dtype)

    def train(s: int) -> None:
        coefficients = _aligned((padded, width))
        coefficients[:samples] = state.coefficients[s]
        descend(
            coefficients, state.W2[s], state.b2[s], labels[s],
            rate, gram, preactivation, _nodes(), real,
        )  # fmt: skip
        state.coefficients[s] = coefficients[:samples]

    if runs == 1:
        return train(0)
    with ThreadPoolExecutor(runs) as threads:
        for _ in threads.map(train, range(runs)):
            pass


def _aligned(shape: tuple[int, int]) -> FloatArray:
    """Zeros that start on a cache line."""
    zeros: FloatArray = aligned(shape[0] * shape[1]).reshape(shape)
    return zeros


@functools.cache
def _nodes() -> FloatArray:
    """Rows (c, erf(c), erf'(c)) for c from -LAST_NODE to LAST_NODE."""
    from scipy.special import erf

    count = LAST_NODE * NODES_PER_UNIT
    c = np.arange(-count, count + 1) / NODES_PER_UNIT
    return np.stack([c, erf(c), erf_network.slope(c)], axis=1)


@compiled(**FAST)
def descend(
    A: Any, W2: Any, b2: Any, labels: Any, rate: Any, gram: Any, start: Any, nodes: Any, real: Any
) -> None:
    """Trains one run for T steps in place.

    A : (padded, m), W2 : (C, m), b2 : (C,), labels : (T, n), gram : (padded, padded),
    start : (n, m), all but the labels float64, A's rows from n on zero; `real` has the dtype of the
    gradients.
    """
    samples, width = start.shape
    rows = np.empty((2, width))
    weights = np.empty(W2.shape, real.dtype)
    W2_change = np.empty(W2.shape, real.dtype)
    Delta = np.empty(start.shape, real.dtype)
    double = np.empty((4, width))
    phi, node_slope, centre, offset = double[0], double[1], double[2], double[3]
    single = np.empty((2, width), real.dtype)
    phi_real, slope = single[0], single[1]
    f = np.empty(b2.size)
    D = np.empty(b2.size, real.dtype)
    shift = np.empty(b2.size)
    for t in range(labels.shape[0]):
        for c in range(b2.size):
            shift[c] = 0.0
            for i in range(width):
                weights[c, i] = W2[c, i]
                W2_change[c, i] = 0.0
        for j in range(samples):
            if j % 2 == 0:
                preactivations(A, gram, start, j, rows)
            look_up(rows[j % 2], nodes, phi, node_slope, centre, offset)
            series(phi, node_slope, centre, offset, phi_real, slope)
            forward(W2, phi, f)
            for c in range(b2.size):
                D[c] = rate * (f[c] + b2[c] - (labels[t, j] == c))
                shift[c] += D[c]
            backward(D, weights, phi_real, slope, Delta[j], W2_change)
        subtract(A, Delta)
        subtract(W2, W2_change)
        for c in range(b2.size):
            b2[c] -= shift[c]


@compiled(**FAST)
def subtract(values: Any, change: Any) -> None:
    """values -= change, on the rows that `change` has."""
    for j in range(change.shape[0]):
        for i in range(change.shape[1]):
            values[j, i] -= change[j, i]


@compiled(**FAST)
def preactivations(A: Any, gram: Any, start: Any, j: Any, rows: Any) -> None:
    """Rows j and j + 1 of H(0) + gram A."""
    p, q = rows[0], rows[1]
    last = start.shape[0] - 1
    for i in range(p.size):
        p[i] = start[j, i]
        q[i] = start[min(j + 1, last), i]
    for k in range(0, A.shape[0], UNROLLED):
        a, b, c, d = A[k], A[k + 1], A[k + 2], A[k + 3]
        pa, pb, pc, pd = gram[j, k], gram[j, k + 1], gram[j, k + 2], gram[j, k + 3]
        qa, qb, qc, qd = gram[j + 1, k], gram[j + 1, k + 1], gram[j + 1, k + 2], gram[j + 1, k + 3]
        for i in range(p.size):
            p[i] += pa * a[i] + pb * b[i] + pc * c[i] + pd * d[i]
            q[i] += qa * a[i] + qb * b[i] + qc * c[i] + qd * d[i]


@compiled(**FAST)
def look_up(h: Any, nodes: Any, phi: Any, slope: Any, centre: Any, offset: Any) -> None:
    """The node nearest to every h, erf and erf' at the node, and the offset of h from it."""
    for i in range(h.size):
        # NaN fails both comparisons and gets a node too; its centre is NaN, and so is the series.
        x = h[i] if h[i] > -LAST_NODE else -float(LAST_NODE)
        x = x if x < LAST_NODE else float(LAST_NODE)
        node = np.uint64(np.int64((x + LAST_NODE) * NODES_PER_UNIT + 0.5))
        centre[i] = nodes[node, 0] if h[i] == h[i] else h[i]
        offset[i] = x - nodes[node, 0]
        phi[i] = nodes[node, 1]
        slope[i] = nodes[node, 2]


@compiled(**FAST)
def series(phi: Any, slope: Any, centre: Any, offset: Any, phi_real: Any, slope_real: Any) -> None:
    """Replaces erf at the nodes in `phi` by erf(h); writes erf and erf' in the gradients' dtype."""
    for i in range(phi.size):
        e = offset[i]
        p, q = -2.0 * centre[i] * e, -2.0 * e * e
        previous, u = 0.0, 1.0
        slope_sum, erf_sum = 1.0, 1.0
        for k in range(1, TERMS):
            previous, u = u, (p * u + q * previous) * (1.0 / k)
            slope_sum += u
            erf_sum += u * (1.0 / (k + 1))
        phi[i] += slope[i] * e * erf_sum
        phi_real[i] = phi[i]
        slope_real[i] = slope[i] * slope_sum


@compiled(**FAST)
def forward(W2: Any, phi: Any, f: Any) -> None:
    """f = W2 phi."""
    for c in range(f.size):
        total = 0.0
        for i in range(phi.size):
            total += W2[c, i] * phi[i]
        f[c] = total


@compiled(**FAST)
def backward(D: Any, W2: Any, phi: Any, slope: Any, Delta: Any, W2_change: Any) -> None:
    """Writes Delta = (D W2) o slope, and adds D phi^T to `W2_change`."""
    for i in range(phi.size):
        Delta[i] = 0.0
    for c in range(D.size):
        g = D[c]
        for i in range(phi.size):
            Delta[i] += g * W2[c, i]
            W2_change[c, i] += g * phi[i]
    for i in range(phi.size):
        Delta[i] *= slope[i]
