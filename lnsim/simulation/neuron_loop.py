"""The compiled loop of recording: one pass over all neurons for the quantities of each."""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def measure_neurons(W, W_start, direction):  # type: ignore[no-untyped-def]
    """|w_i|^2, <w_i, direction> and |w_i - w_i(0)|^2 of every row, shape (3, B, m).

    W : (B, m, r), W_start : (m, r), direction : (r,).
    """
    batch, width, rank = W.shape
    result = np.empty((3, batch, width))
    for b in range(batch):
        for i in range(width):
            norm, product, moved = 0.0, 0.0, 0.0
            for j in range(rank):
                w = W[b, i, j]
                norm += w * w
                product += w * direction[j]
                moved += (w - W_start[i, j]) * (w - W_start[i, j])
            result[0, b, i], result[1, b, i], result[2, b, i] = norm, product, moved
    return result
