"""The compiled loop of the sharpness of two-layer networks: the root of equation (5), flatness.py.

With F = R N_1 R^T, G = R R^T, b = R z and t = R theta for R^T R = Sigma, the matrix of (5) is

    C(lambda) = F + alpha G + (|z|^2 F + alpha b b^T + lambda (t b^T + b t^T)) / (lambda^2 - |z|^2).

Its Rayleigh quotient at a vector v is a function of lambda and four products with v.  Where it
equals lambda, it is at most the root; that it is no less, to a share of CLOSE, is shown by the
pivots of (1 + CLOSE) lambda - C, which are then all positive.  The same factors give the next v.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.compiled import compiled

CLOSE = 1e-12
"""The largest relative error of a sharpness."""
POWERS = 16
"""Multiplications with the part of (5) without z, which lead to the first v."""
ROUNDS = 8
"""Inverse iterations at most; three or four are usual."""
QUOTIENTS = 4
"""Steps of the fixed point of a Rayleigh quotient that depends on the eigenvalue."""


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def sharpest(plain, F, b, t, alpha, size, level, sure):  # type: ignore[no-untyped-def]
    """The sharpness of B networks, into level : (B,), where it could be shown, in sure : (B,).

    plain = F + alpha G and F : (B, k, k), b and t : (B, k), alpha and size = |z| : (B,).
    """
    k = plain.shape[1]
    C, v, w = np.empty((k, k)), np.empty(k), np.empty(k)
    for s in range(len(plain)):
        high = size[s]
        for i in range(k):
            high += plain[s, i, i]
            v[i] = 1.0
        now, quotient, sure[s] = high, high, False
        for step in range(-POWERS, ROUNDS):
            norm = 0.0
            for i in range(k):
                norm += v[i] * v[i]
            for i in range(k):
                v[i] /= np.sqrt(norm)
            of_plain = form(plain[s], v, w)
            if step < 0:
                for i in range(k):
                    v[i] = w[i]
                continue
            of_F, of_b, of_t = form(F[s], v, w), 0.0, 0.0
            for i in range(k):
                of_b += b[s, i] * v[i]
                of_t += t[s, i] * v[i]
            of_F = size[s] * size[s] * of_F + alpha[s] * of_b * of_b
            for _ in range(QUOTIENTS):
                now = quotient if size[s] < quotient <= high else high
                gap = (now - size[s]) * (now + size[s])
                quotient = of_plain + (of_F + 2.0 * now * of_b * of_t) / gap
            if sure[s]:  # what the last v adds is rounding
                break
            above = now * (1.0 + CLOSE)
            share = 1.0 / ((above - size[s]) * (above + size[s]))
            of_square = share * size[s] * size[s]
            for i in range(k):
                more = share * (alpha[s] * b[s, i] + above * t[s, i])
                less = share * above * b[s, i]
                for j in range(k):
                    C[i, j] = more * b[s, j] + less * t[s, j] + of_square * F[s, i, j]
                    C[i, j] = -(C[i, j] + plain[s, i, j])
                C[i, i] += above
            sure[s] = solve(C, v) and abs(quotient - now) <= CLOSE * now
        level[s] = now


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def form(A, v, product):  # type: ignore[no-untyped-def]
    """v^T A v; A v goes to `product`."""
    result = 0.0
    for i in range(len(v)):
        total = 0.0
        for j in range(len(v)):
            total += A[i, j] * v[j]
        product[i] = total
        result += total * v[i]
    return result


@compiled(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def solve(A, v):  # type: ignore[no-untyped-def]
    """A^-1 v in the place of v, by A = L D L^T; returns whether D is positive.

    D and D L^T take the place of the upper half of A.
    """
    positive, k = True, len(v)
    for j in range(k):
        positive &= A[j, j] > 0.0
        v[j] /= A[j, j]
        inverse = 1.0 / A[j, j]
        for i in range(j + 1, k):
            share = A[j, i] * inverse
            v[i] -= A[j, i] * v[j]
            for l in range(i, k):
                A[i, l] -= share * A[j, l]
    for j in range(k - 1, -1, -1):
        total = 0.0
        for i in range(j + 1, k):
            total += A[j, i] * v[i]
        v[j] -= total / A[j, j]
    return positive
