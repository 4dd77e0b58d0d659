"""Two numbers that say what a kernel on labelled samples sees: its alignment, and its rank."""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray


def label_alignment(kernel: FloatArray, y: FloatArray) -> FloatArray:
    """Centred alignment <K_c, Y_c Y_c^T> / (|K_c| |Y_c Y_c^T|) of kernels with labels, (...).

    kernel : (..., n, n), y : (n, C).  It is at most 1, for a kernel that sees nothing but the
    labels; NaN where all labels are equal.  Source: Cortes, Mohri, Rostamizadeh 2012.
    """
    centred = kernel - kernel.mean(axis=-1, keepdims=True)
    centred -= centred.mean(axis=-2, keepdims=True)
    y = y - y.mean(axis=0)
    labels = y @ y.T
    norms = np.linalg.norm(centred, axis=(-2, -1)) * np.linalg.norm(labels)
    with np.errstate(invalid="ignore"):
        return (centred * labels).sum(axis=(-2, -1)) / norms


def effective_rank(kernel: FloatArray) -> FloatArray:
    """exp of the entropy of the eigenvalues divided by their sum, between 1 and n, (...).

    kernel : (..., n, n), positive semidefinite.  Source: Roy, Vetterli 2007.
    """
    if not np.isfinite(kernel).all():
        return np.full(kernel.shape[:-2], np.nan)
    # A kernel has no negative eigenvalues, except by rounding.
    eigenvalues = np.maximum(np.linalg.eigvalsh(kernel), 0.0)
    shares = eigenvalues / eigenvalues.sum(axis=-1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1)
    return np.exp(entropy)
