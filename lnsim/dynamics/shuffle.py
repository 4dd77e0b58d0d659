"""Samples drawn without replacement: a Fisher-Yates shuffle, one word a draw."""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled


@compiled(nogil=True, error_model="numpy")
def without_replacement(words, order, place, index):  # type: ignore[no-untyped-def]
    """Writes the samples of `words` : (S, T, B) to `index`, the first at `place` of its epoch.

    order : (S, n) holds the samples drawn so far in the epoch, then the others; it is updated.
    """
    samples = order.shape[1]
    for s in range(words.shape[0]):
        j = place
        for t in range(words.shape[1]):
            for b in range(words.shape[2]):
                if j == 0:
                    for i in range(samples):
                        order[s, i] = i
                high = words[s, t, b] >> np.uint64(32)
                chosen = j + np.int64((high * np.uint64(samples - j)) >> np.uint64(32))
                order[s, j], order[s, chosen] = order[s, chosen], order[s, j]
                index[s, t, b] = order[s, j]
                j = (j + 1) % samples
