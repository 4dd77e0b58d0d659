"""The training loop of a user's own rule that Numba has compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from lnsim.base.checks import DIVERGED_ABOVE


# Loops over entries compile many times faster than NumPy's functions.
@njit(nogil=True, error_model="numpy")
def _remember(memory, values):  # type: ignore[no-untyped-def]
    # Numba drops this branch when the tuple is empty, for a rule without memory.
    if len(memory) > 0:
        V_W, V_a = memory
        new_V_W, new_V_a = values[2], values[3]
        for c in range(V_a.shape[0]):
            for k in range(V_a.shape[1]):
                V_a[c, k] = new_V_a[c, k]
                for j in range(V_W.shape[2]):
                    V_W[c, k, j] = new_V_W[c, k, j]


@njit(nogil=True, error_model="numpy")
def walk(step, W, a, memory, X, y, index, labels, first_step):  # type: ignore[no-untyped-def]
    """The compiled form of lnsim.simulation.custom._walk."""
    size, rank = labels.shape[1], W.shape[1]
    x, targets, theta = np.empty((size, rank)), np.empty(size), np.empty(rank)
    for t in range(labels.shape[0]):
        theta[:] = 0.0
        for k in range(a.size):
            for j in range(rank):
                theta[j] += a[k] * W[k, j]
        mean, worst = 0.0, 0.0
        for b in range(size):
            i = b if index is None else index[t, b]
            targets[b] = labels[t, b]
            residual = -(y[b] if index is None else targets[b])
            for j in range(rank):
                x[b, j] = X[i, j]
                residual += X[i, j] * theta[j]
            mean += residual * residual / size
            if not residual * residual < worst:
                worst = residual * residual
        if not (mean if index is None else worst) < DIVERGED_ABOVE:
            return t
        values = step(W.copy(), a.copy(), x, targets, first_step + t, *memory)
        new_W, new_a = values[0], values[1]
        total = 0.0
        for k in range(a.size):
            total += abs(new_a[k])
            for j in range(rank):
                total += abs(new_W[k, j])
        if not total < np.inf:
            return t
        _remember(memory, values)
        for k in range(a.size):
            a[k] = new_a[k]
            for j in range(rank):
                W[k, j] = new_W[k, j]
    return -1
