"""The neurons of recorded networks: their norms, their alignments, and how far they have moved."""

from __future__ import annotations

import numpy as np

from lnsim.base import threads
from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled

ROWS = 2048
"""Neurons lifted at a time."""


def measure_neurons(
    Q: FloatArray | None, W: FloatArray, start: FloatArray, direction: FloatArray
) -> FloatArray:
    """|w_i|^2, <w_i, direction> and |w_i - w_i(0)|^2 of the rows of Q W, (3, B, m).

    Q : (m, p), or None for the identity; W : (B, p, r); start : (m, r), direction : (r,).  The rows
    are lifted ROWS at a time, which stay in the cache, and shared among threads.
    """
    width = len(start)
    result = np.empty((3, len(W), width))

    def some(blocks: slice) -> None:
        lifted = None if Q is None else np.empty((min(ROWS, width), W.shape[2]))
        for first in range(blocks.start * ROWS, min(blocks.stop * ROWS, width), ROWS):
            rows = slice(first, min(first + ROWS, width))
            for b, reduced in enumerate(W):
                if lifted is None or Q is None:
                    of_rows = reduced[rows]
                else:
                    of_rows = np.matmul(Q[rows], reduced, out=lifted[: rows.stop - first])
                measure_rows(of_rows, start[rows], direction, result[:, b, rows])

    threads.in_blocks(some, -(-width // ROWS))
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
