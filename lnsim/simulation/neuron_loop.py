"""The compiled loop of recording: one pass over all neurons for the quantities of each."""

from __future__ import annotations

from lnsim.base.compiled import compiled


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
