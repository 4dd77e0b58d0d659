"""The compiled loop of the watch: which neurons have left, in reduced coordinates (watch.py).

Neurons are screened LANES at a time in single precision.  q^T F q has at most 2 p + 4 roundings in
a row, and sum |q_k F_kj q_j| <= |q|^2 tr F as F is positive semidefinite.  So the error is at most
(p + 4) 2^-22 |q|^2 tr F, twice the bound of its first order, and every neuron that may have left
within that error is taken again in double precision.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled

LANES = 64
"""Neurons taken together."""

ROUNDING = 2.0**-22


@compiled(nogil=True)
def tiles_of(Q, order):  # type: ignore[no-untyped-def]
    """The rows of Q : (m, p) in this order, LANES in a tile : (tiles, p + -p % 4, LANES)."""
    m, p = Q.shape
    tiles = np.zeros((-(-m // LANES), p + -p % 4, LANES), dtype=np.float32)
    for i in range(m):
        for k in range(p):
            tiles[i // LANES, k, i % LANES] = Q[order[i], k]
    return tiles


@compiled(nogil=True)
def moved_form(W, start, D, F):  # type: ignore[no-untyped-def]
    """D = W - start : (p, r) and F = D D^T."""
    for k in range(W.shape[0]):
        for j in range(W.shape[1]):
            D[k, j] = W[k, j] - start[k, j]
    np.dot(D, D.T, F)


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def squared(A, B):  # type: ignore[no-untyped-def]
    """|A - B|_F^2."""
    total = 0.0
    for k in range(A.shape[0]):
        for j in range(A.shape[1]):
            total += (A[k, j] - B[k, j]) * (A[k, j] - B[k, j])
    return total


@compiled(nogil=True)
def lower(F, unit, result):  # type: ignore[no-untyped-def]
    """F / unit : (p, p) below its diagonal twice, the diagonal once, into `result`, which is 0."""
    factor = 1.0 / unit
    for k in range(len(F)):
        for i in range(k):
            result[k, i] = 2.0 * factor * F[k, i]
        result[k, k] = factor * F[k, k]


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def form_at(L, tile, result):  # type: ignore[no-untyped-def]
    """q^T F q of every column q of tile : (p, LANES), L that of `lower`, into result : (LANES,).

    p is a multiple of four; the form is taken four by four, which the registers hold.
    """
    result[:] = 0.0
    for k in range(0, len(L), 4):
        for j in range(0, k + 4, 4):
            a0, a1, a2, a3 = L[k, j], L[k, j + 1], L[k, j + 2], L[k, j + 3]
            b0, b1, b2, b3 = L[k + 1, j], L[k + 1, j + 1], L[k + 1, j + 2], L[k + 1, j + 3]
            c0, c1, c2, c3 = L[k + 2, j], L[k + 2, j + 1], L[k + 2, j + 2], L[k + 2, j + 3]
            d0, d1, d2, d3 = L[k + 3, j], L[k + 3, j + 1], L[k + 3, j + 2], L[k + 3, j + 3]
            for i in range(LANES):
                q0, q1, q2, q3 = tile[j, i], tile[j + 1, i], tile[j + 2, i], tile[j + 3, i]
                result[i] += (
                    (a0 * q0 + a1 * q1 + a2 * q2 + a3 * q3) * tile[k, i]
                    + (b0 * q0 + b1 * q1 + b2 * q2 + b3 * q3) * tile[k + 1, i]
                    + (c0 * q0 + c1 * q1 + c2 * q2 + c3 * q3) * tile[k + 2, i]
                    + (d0 * q0 + d1 * q1 + d2 * q2 + d3 * q3) * tile[k + 3, i]
                )


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def look(  # type: ignore[no-untyped-def]
    replicas, first, last, whole, Q, tiles, size, order, W, start, before, older, radius, step,
    watched, escape, inside,
):  # fmt: skip
    """Notes the neurons of the tiles first <= t < last that left by `step`.

    replicas : (k,) their numbers; Q : (m, p), `order` its rows by falling |q_i|^2, size : (m,)
    these in that order, tiles : those of `tiles_of`; W : (S, p, r) now, start : (p, r),
    before : (S, p, r) at the look before, or older : (S, m) what the neurons had moved then.
    escape : (S, m).  With `whole` the replicas' counts `inside`, `watched` and `before` are brought
    up to date.
    """
    (neurons, p), rows = Q.shape, tiles.shape[1]
    least = radius * radius
    D, F, G = np.empty(start.shape), np.empty((p, p)), np.empty((p, p))
    now, then = np.zeros((rows, rows)), np.zeros((rows, rows))
    screen = np.zeros((rows, rows), dtype=np.float32)
    screened = np.empty(LANES, dtype=np.float32)
    moved, had = np.empty(LANES), np.zeros(LANES)
    block = np.zeros((rows, LANES))
    found = np.empty(neurons + 1, dtype=np.int64)
    zero = np.zeros((p, p))
    for s in replicas:
        trace = squared(W[s], start)
        bound, count = trace, 0
        if not size[first * LANES] * bound <= least:
            moved_form(W[s], start, D, F)
            bound = min(trace, np.sqrt(squared(F, zero)))
            if inside[s] == neurons and not size[first * LANES] * bound <= least:
                np.dot(F, F, G)
                bound = min(bound, squared(G, zero) ** 0.25)  # later most neurons are near
            if not size[first * LANES] * bound <= least:
                lower(F, 1.0, now)
                lower(F, least, screen)
        error = ROUNDING * (p + 4) * trace / least
        for t in range(first, last):
            i = t * LANES
            if size[i] * bound <= least:
                break
            end = min(i + LANES, neurons)
            while i < end and escape[s, order[i]] >= 0.0:
                i += 1
            if i == end:
                continue
            form_at(screen, tiles[t], screened)
            limit = 1.0 - error * size[t * LANES]
            for k in range(i, end):  # without branches, which would be mispredicted
                found[count] = order[k]
                near = not screened[k - t * LANES] <= limit
                count += near & (escape[s, order[k]] < 0.0)
        earlier = False
        for i in range(0, count, LANES):
            numbers = found[i : min(i + LANES, count)]
            for c in range(len(numbers)):
                for k in range(p):
                    block[k, c] = Q[numbers[c], k]
            form_at(now, block, moved)
            if older.size == 0:
                if not earlier:
                    moved_form(before[s], start, D, F)
                    lower(F, 1.0, then)
                    earlier = True
                form_at(then, block, had)
            for c in range(len(numbers)):
                number = numbers[c]
                if moved[c] > least:
                    already = older[s, number] if older.size else np.sqrt(max(had[c], 0.0))
                    share = (radius - already) / (np.sqrt(moved[c]) - already)
                    escape[s, number] = watched[s] + (step - watched[s]) * share
                    if whole:
                        inside[s] -= 1
        if whole:
            watched[s] = step
            before[s] = W[s]
