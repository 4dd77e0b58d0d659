"""The compiled loop of the watch: which neurons have left, in reduced coordinates (watch.py)."""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled

LANES = 32
"""Neurons taken together."""


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def moved_form(W, start):  # type: ignore[no-untyped-def]
    """F = D D^T, D = W - start : (p, r), its entries below the diagonal doubled."""
    p, r = W.shape
    F = np.zeros((p, p))
    D = W - start
    for k in range(p):
        for i in range(k + 1):
            total = 0.0
            for j in range(r):
                total += D[k, j] * D[i, j]
            F[k, i] = total if k == i else 2.0 * total
    return F


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def largest(F):  # type: ignore[no-untyped-def]
    """A bound on the largest eigenvalue of the form F of moved_form: (tr F^4)^(1/4)."""
    p = len(F)
    full = np.empty((p, p))
    for k in range(p):
        full[k, k] = F[k, k]
        for i in range(k):
            full[k, i] = full[i, k] = 0.5 * F[k, i]
    total = 0.0
    for k in range(p):
        for i in range(k + 1):
            square = 0.0
            for j in range(p):
                square += full[k, j] * full[i, j]
            total += square * square if k == i else 2.0 * square * square
    return total**0.25


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def form_at(F, q):  # type: ignore[no-untyped-def]
    """q^T F q of one neuron."""
    total = 0.0
    for k in range(len(q)):
        inner = 0.0
        for i in range(k + 1):
            inner += F[k, i] * q[i]
        total += inner * q[k]
    return total


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def look(  # type: ignore[no-untyped-def]
    replicas, first, last, whole, Q, size, order, W, start, before, older, radius, step, watched,
    escape, inside,
):  # fmt: skip
    """Notes the neurons first <= i < last, in the order of Q, that left by `step`.

    replicas : (k,) their numbers; Q : (m, p) and size : (m,) = |q_i|^2 in falling order, `order`
    the neurons' numbers; W : (S, p, r) now, start : (p, r), before : (S, p, r) at the look before,
    or older : (S, m) what the neurons had moved then.  escape : (S, m).  With `whole` the replicas'
    counts `inside`, `watched` and `before` are brought up to date.
    """
    p = Q.shape[1]
    least = radius * radius
    block = np.zeros((p, LANES))
    moved, inner = np.empty(LANES), np.empty(LANES)
    numbers = np.empty(LANES, dtype=np.int64)
    for s in replicas:
        F = moved_form(W[s], start)
        trace = 0.0
        for k in range(p):
            trace += F[k, k]
        bound = trace
        if not size[first] * bound <= least:
            bound = min(trace, largest(F))
        earlier = np.empty((0, 0))
        i = first
        while i < last and not size[i] * bound <= least:
            count = 0
            while i < last and count < LANES and not size[i] * bound <= least:
                if escape[s, order[i]] < 0.0:
                    numbers[count] = i
                    for k in range(p):
                        block[k, count] = Q[i, k]
                    count += 1
                i += 1
            moved[:] = 0.0
            for k in range(p):
                inner[:] = 0.0
                for j in range(k + 1):
                    factor = F[k, j]
                    for c in range(LANES):
                        inner[c] += factor * block[j, c]
                for c in range(LANES):
                    moved[c] += inner[c] * block[k, c]
            for c in range(count):
                if moved[c] > least:
                    if earlier.size == 0:
                        earlier = moved_form(before[s], start)
                    number = order[numbers[c]]
                    if older.size > 0:
                        had = older[s, number]
                    else:
                        had = np.sqrt(max(form_at(earlier, Q[numbers[c]]), 0.0))
                    share = (radius - had) / (np.sqrt(moved[c]) - had)
                    escape[s, number] = watched[s] + (step - watched[s]) * share
                    if whole:
                        inside[s] -= 1
        if whole:
            watched[s] = step
            for k in range(p):  # Numba compiles the error message of an array's assignment: seconds
                for j in range(W.shape[2]):
                    before[s, k, j] = W[s, k, j]
