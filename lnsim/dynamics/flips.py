"""Label noise in classification: labels drawn afresh at every step (the paper's Algorithm 1).

Full-batch training on n samples takes n words of streams.py per step: sample j of step t uses word
t n + j of the run.  The 64-bit word w determines

    whether it flips    w mod 2^32 < floor(tau 2^32)               (low half)
    the class           "any":    ((w >> 32) C) >> 32              (high half)
                        "other":  o = ((w >> 32) (C - 1)) >> 32,  or o + 1 if o >= the true label

"any" draws from all C classes, so that a redrawn label is the true one with probability 1/C (the
released notebook); "other" draws from the C - 1 others (the paper and its README).  The two halves
of a word are independent, tau = 0 never flips and tau = 1 always does, and the probability of a
class is exact to C / 2^32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray

FLIPS = ("any", "other")

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def check_tau(tau: float) -> float:
    """`tau` as a float.  Raises ValueError or TypeError unless it is a number in [0, 1]."""
    value = checks.real("tau", tau, least=0.0)
    if not isinstance(value, float):
        raise TypeError(f"tau must be one number, got {tau!r}")
    if value > 1.0:
        raise ValueError(f"tau must be a probability, at most 1, got {tau}")
    return value


def flip_labels(
    labels: NDArray[np.int64],
    words: NDArray[np.uint64],
    tau: float | FloatArray,
    flip: str,
    classes: int,
) -> NDArray[np.int64]:
    """The labels to train on, (T, n), for T steps of `words` : (T, n) and true `labels` : (n,).

    `tau` may be an array that goes with `words`, of probabilities.  Raises ValueError for tau
    outside [0, 1] and a `flip` that is not one of FLIPS.
    """
    checks.choice("flip", flip, FLIPS)
    share = tau if isinstance(tau, np.ndarray) else np.float64(check_tau(tau))
    flipped = (words & _LOW) < (share * 2.0**32).astype(np.uint64)
    choices = classes if flip == "any" else classes - 1
    drawn = (((words >> _HALF) * np.uint64(choices)) >> _HALF).astype(np.int64)
    if flip == "other":
        drawn += drawn >= labels
    return np.where(flipped, drawn, labels)
