"""Samples and labels of the usual draws, in compiled loops: draws.py says which words they take.

In every function words : (S, T, D) are the words of the steps; draw b of a step has `each` of them
from word b `each` on.  index : (S, T, B) the samples, or (S, 0, 0) where every step takes all of
them.  shown : (S, T, B, C), what the loss compares with, is written.  strength : (S, T), what the
noise is multiplied by, or (S, 0).
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled

_HIGH = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


@compiled(nogil=True, error_model="numpy")
def draw_samples(words, each, samples, index):  # type: ignore[no-untyped-def]
    """Writes the sample of every draw, of n = `samples`, to `index`."""
    for s in range(index.shape[0]):
        for t in range(index.shape[1]):
            for b in range(index.shape[2]):
                high = words[s, t, b * each] >> _HIGH
                index[s, t, b] = np.int64((high * np.uint64(samples)) >> _HIGH)


@compiled(nogil=True, error_model="numpy")
def show_targets(targets, index, shown):  # type: ignore[no-untyped-def]
    """The targets : (n, C) as they are."""
    for s in range(shown.shape[0]):
        for t in range(shown.shape[1]):
            for b in range(shown.shape[2]):
                source, copy = targets[index[s, t, b]], shown[s, t, b]
                for c in range(copy.size):
                    copy[c] = source[c]


@compiled(nogil=True, error_model="numpy")
def show_signs(words, each, targets, index, sigma, strength, shown):  # type: ignore[no-untyped-def]
    """The targets : (n, C) plus Rademacher noise of standard deviation sigma : (S,)."""
    for s in range(shown.shape[0]):
        for t in range(shown.shape[1]):
            scale = sigma[s] * strength[s, t] if strength.size > 0 else sigma[s]
            for b in range(shown.shape[2]):
                i = index[s, t, b] if index.size > 0 else b
                source, copy = targets[i], shown[s, t, b]
                for first in range(0, copy.size, 32):
                    word = words[s, t, b * each + first // 32]
                    for c in range(first, min(first + 32, copy.size)):
                        bit = (word >> np.uint64(c - first)) & _ONE
                        # Arithmetic, not a branch: half of all guesses would be wrong.
                        copy[c] = source[c] + scale * (2.0 * np.float64(bit) - 1.0)


@compiled(nogil=True, error_model="numpy")
def show_flips(  # type: ignore[no-untyped-def]
    words, each, labels, of_classes, index, tau, strength, other, shown
):
    """The targets of the labels : (n,), flipped with probability tau : (S,) as flips.py says.

    of_classes : (K, C), the target of every class; `other`: whether to another class.
    """
    choices = np.uint64(of_classes.shape[0] - 1 if other else of_classes.shape[0])
    for s in range(shown.shape[0]):
        for t in range(shown.shape[1]):
            share = tau[s] * strength[s, t] if strength.size > 0 else tau[s]
            below = np.uint64(share * 2.0**32)
            for b in range(shown.shape[2]):
                label = labels[index[s, t, b] if index.size > 0 else b]
                word = words[s, t, b * each + each - 1]
                drawn = np.int64(((word >> _HIGH) * choices) >> _HIGH)
                if other and drawn >= label:
                    drawn += 1
                if (word & _LOW) < below:
                    label = drawn
                source, copy = of_classes[label], shown[s, t, b]
                for c in range(copy.size):
                    copy[c] = source[c]
