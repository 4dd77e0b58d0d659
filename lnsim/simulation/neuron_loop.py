"""The neurons of recorded networks: their norms, their alignments, and how far they have moved."""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.models.reduction import Reduction
from lnsim.models.tall import Columns, by_blocks

ROWS = 2048
"""Neurons lifted at a time."""


def measure_neurons(
    reduction: Reduction, W: FloatArray, start: FloatArray
) -> FloatArray:
    """|w_i|^2, <w_i, theta_star> and |w_i - w_i(0)|^2 of the rows of Q W, (3, B, m).

    W : (B, p, r); start : (m, r).  The rows are lifted block by block, which stay in the cache, and
    shared among threads.
    """
    Q, width, direction = reduction.Q, len(start), reduction.problem.theta_star
    result = np.empty((3, len(W), width))

    def some(rows: slice) -> None:
        lifted = None if Q is None else np.empty((rows.stop - rows.start, W.shape[2]))
        for b, reduced in enumerate(W):
            of_rows = reduced[rows] if Q is None else np.matmul(Q[rows], reduced, out=lifted)
            measure_rows(of_rows, start[rows], direction, result[:, b, rows])

    by_blocks(some, width, ROWS)
    return result


def measure_wide(
    reduction: Reduction, W: FloatArray, a: FloatArray
) -> FloatArray:
    """The same where Q = M R^-1 is not formed, and Q a, (4, B, m); a : (B, p).

    The rows of M = [W(0) | a(0)] have moved by M R^-1 (W - W_0), which keeps the digits of what is
    small.  A block of M serves all networks.
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
def measure_rows(W, W_start, direction, result):  # type: ignore[no-untyped-def]
    """|w_i|^2, <w_i, direction> and |w_i - w_i(0)|^2 of every row, into result : (3, k).

    W, W_start : (k, r), direction : (r,).
    """
    rows, rank = W.shape
    for i in range(rows):
        norm, product, moved = 0.0, 0.0, 0.0
        for j in range(rank):
            w = W[i, j]
            norm += w * w
            product += w * direction[j]
            moved += (w - W_start[i, j]) * (w - W_start[i, j])
        result[0, i], result[1, i], result[2, i] = norm, product, moved


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def measure_moved(  # type: ignore[no-untyped-def]
    W_start, a_start, moved, more, of_a, direction, result
):
    """As measure_rows, of W_start + D with D = moved + a_start more^T, and [W_start | a_start] of_a.

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
