"""Gradient flow of a two-layer linear network from a lambda-balanced start, in closed form.

Let f = A W x, W : (m, d), A : (C, m), inputs be whitened, (1/n) sum x x^T = I, and S = (1/n) sum y
x^T : (C, d).  Gradient flow of the loss (1/2n) sum |f - y|^2 is

    dW/dt = A^T (S - A W),     dA/dt = (S - A W) W^T,

and keeps A^T A - W W^T, here lambda I.  With Q = [W^T; A] : (d + C, m), Q^T Q = W W^T + A^T A, so W
W^T = (Q^T Q - lambda I)/2 and A^T A = (Q^T Q + lambda I)/2.  Put into dW^T/dt = S^T A - W^T A^T A
and dA/dt = S W^T - A W W^T, they give

    dQ/dt = F Q - Q Q^T Q / 2,     F = [[-lambda/2 I, S^T], [S, lambda/2 I]],

and R = Q Q^T obeys the Riccati equation dR/dt = F R + R F - R^2.  Its solution is

    R(t) = e^{Ft} Q_0 N(t)^{-1} Q_0^T e^{Ft},     N(t) = I + Q_0^T (int_0^t e^{2Fs} ds) Q_0,

for dN/dt = Q_0^T e^{2Ft} Q_0, whence dR/dt = F R + R F - e^{Ft} Q_0 N^{-1} (dN/dt) N^{-1} Q_0^T
e^{Ft} and the last term is R^2.  (Braun et al. 2022 for lambda = 0; Domine et al. 2025 write the
integral as (e^{Ft} F^{-1} e^{Ft} - F^{-1})/2.  That needs an invertible F.  F^2 is block diagonal,
lambda^2/4 I + S^T S and lambda^2/4 I + S S^T: F is singular for lambda = 0 unless S is square and
invertible.  The integral itself is always there.)  lambda > 0 needs m <= C, lambda < 0 needs m <=
d.  A single neuron, m = 1, is lambda-balanced at every start.
"""

from __future__ import annotations

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray

BALANCED, LONGEST = 1e-9, 300.0
"""The relative error that the start's balance is allowed; the largest exponent of e^(Ft)."""


def imbalance(W: FloatArray, A: FloatArray) -> float:
    """lambda of A^T A - W W^T = lambda I; ValueError if it is no multiple of the identity."""
    difference = A.T @ A - W @ W.T
    found = float(np.trace(difference)) / len(difference)
    scale = max(float(np.sum(W**2) + np.sum(A**2)), 1e-300)
    if np.abs(difference - found * np.eye(len(difference))).max() > BALANCED * scale:
        raise ValueError(
            "A^T A - W W^T must be a multiple of the identity: the start is unbalanced"
        )
    return found


def solution(W: FloatArray, A: FloatArray, S: FloatArray, times: FloatArray) -> FloatArray:
    """R = Q Q^T at `times` : (T,), from W : (m, d) and A : (C, m), as (T, d + C, d + C).

    Its blocks are W^T W, W^T A^T and A A^T: R[:, d:, :d] is the predictor A W.  Raises ValueError
    for shapes that do not fit, a start that is not balanced, and times that are too long.
    """
    W, A, S = checks.array("W", W, 2), checks.array("A", A, 2), checks.array("S", S, 2)
    checks.shape("A", A, (len(S), len(W)), f"S has {len(S)} rows and W {len(W)}")
    checks.shape("S", S, (len(A), W.shape[1]), f"W has {W.shape[1]} columns")
    half = imbalance(W, A) / 2
    F = np.block([[-half * np.eye(W.shape[1]), S.T], [S, half * np.eye(len(S))]])
    values, vectors = np.linalg.eigh(F)
    moved = vectors.T @ np.vstack([W.T, A])
    times = checks.array("times", times, 1)
    if values[-1] * times.max(initial=0.0) > LONGEST:
        raise ValueError(
            f"times must be at most {LONGEST / values[-1]:.4g}: e^(2Ft) is too large there"
        )
    flat = values == 0
    twice = np.where(flat, 1.0, 2 * values)
    found = np.empty((len(times), *F.shape))
    for k, t in enumerate(times):
        integral = np.where(flat, t, np.expm1(twice * t) / twice)
        N = np.eye(moved.shape[1]) + moved.T @ (integral[:, None] * moved)
        now = vectors @ (np.exp(values * t)[:, None] * moved)
        found[k] = now @ np.linalg.solve(N, now.T)
    return found
