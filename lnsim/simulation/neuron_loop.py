"""The neurons of recorded networks: their norms, their alignments, and how far they have moved."""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.models.reduction import Reduction
from lnsim.models.tall import by_blocks

ROWS = 2048
"""Neurons lifted at a time."""


def measure_neurons(reduction: Reduction, W: FloatArray, start: FloatArray) -> FloatArray:
    """|w_i|^2, <w_i, theta_star> and |w_i - w_i(0)|^2 of the rows of Q W, (3, B, m).

    W : (B, p, r); start : (m, r).  The rows are lifted block by block, which stay in the cache, and
    shared among threads.
    """
    Q, width, direction = reduction.Q, len(start), reduction.problem.theta_star
    assert Q is None or isinstance(Q, np.ndarray)
    result = np.empty((3, len(W), width))

    def some(rows: slice) -> None:
        lifted = None if Q is None else np.empty((rows.stop - rows.start, W.shape[2]))
        for b, reduced in enumerate(W):
            of_rows = reduced[rows] if Q is None else np.matmul(Q[rows], reduced, out=lifted)
            measure_rows(of_rows, start[rows], direction, result[:, b, rows])

    by_blocks(some, width, ROWS)
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
