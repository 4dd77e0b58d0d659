"""The neurons of wide networks, from the weights at the start: their measures and their escapes.

With M = [W(0) | a(0)] and Q = M R^-1 (models/tall.py) the rows of the first layer have moved by
M R^-1 (R_W(t) - R_W(0)), which keeps the digits of what is small.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.models.reduction import Reduction
from lnsim.models.tall import Columns


def measure_wide(reduction: Reduction, W: FloatArray, a: FloatArray) -> FloatArray:
    """|w_i|^2, <w_i, theta_star>, |w_i - w_i(0)|^2 and a_i of the rows of Q [W | a], (4, B, m).

    W : (B, p, r), a : (B, p).  A block of M, in the cache, serves all networks.
    """
    Q, direction = reduction.Q, reduction.problem.theta_star
    assert isinstance(Q, Columns)
    rank = W.shape[2]
    changes = np.matmul(Q.inverse, W - reduction.W)
    of_a = np.matmul(Q.inverse, a[:, :, None])[:, :, 0]
    result = np.empty((4, len(W), len(Q)))

    def some(rows: slice) -> None:
        start, a_start = Q.W[rows], Q.A[0, rows]
        moved = np.empty((len(start), rank))
        for b, change in enumerate(changes):
            np.matmul(start, change[:rank], out=moved)
            measure_moved(
                start, a_start, moved, change[rank], of_a[b], direction, result[:, b, rows]
            )

    Q.by_blocks(some)
    return result


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def measure_moved(  # type: ignore[no-untyped-def]
    W_start, a_start, moved, more, of_a, direction, result
):
    """Those of the rows W_start + D, D = moved + a_start more^T, and of [W_start | a_start] of_a.

    W_start, moved : (k, r), a_start : (k,), more and direction : (r,), of_a : (r + 1,);
    result : (4, k).
    """
    rows, rank = moved.shape
    for i in range(rows):
        norm, product, distance, second = 0.0, 0.0, 0.0, a_start[i] * of_a[rank]
        for j in range(rank):
            change = moved[i, j] + a_start[i] * more[j]
            w = W_start[i, j] + change
            norm += w * w
            product += w * direction[j]
            distance += change * change
            second += W_start[i, j] * of_a[j]
        result[0, i], result[1, i], result[2, i], result[3, i] = norm, product, distance, second


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def distance(w, a, change, sums):  # type: ignore[no-untyped-def]
    """|[w, a] change| for w : (r,) and change : (r + 1, r); sums : (r,) is written to."""
    rank = len(w)
    for j in range(rank):
        sums[j] = a * change[rank, j]
    for k in range(rank):
        for j in range(rank):
            sums[j] += w[k] * change[k, j]
    total = 0.0
    for j in range(rank):
        total += sums[j] * sums[j]
    return np.sqrt(total)


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def look_at_rows(  # type: ignore[no-untyped-def]
    W, a, size, y, rest, change, before, older, radius, watched, step, escape
):
    """Notes which neurons of [W | a], (k, r + 1), left by `step`, in escape : (k,).

    size : (k,) = |q_i|^2, y : (k, K) and `rest` bound what they have moved (watch_wide.py);
    `change` : (r + 1, r) gives it, and `before` what they had moved at the step `watched`, or, if
    it is not empty, older : (k,).
    """
    sums = np.empty(W.shape[1])
    for i in range(len(W)):
        if escape[i] >= 0.0:
            continue
        bound = rest * size[i]
        for k in range(y.shape[1]):
            bound += y[i, k] * y[i, k]
        if bound <= radius * radius:
            continue
        moved = distance(W[i], a[i], change, sums)
        if moved > radius:
            had = older[i] if older.size else distance(W[i], a[i], before, sums)
            escape[i] = watched + (step - watched) * (radius - had) / (moved - had)
