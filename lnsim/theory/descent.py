"""The equations of SGD with label noise at one state, for which an integrator asks often.

manifold.py and course.py state the same equations for the kicks of any dynamics.  Here c = 1, k = 0
and E[e^2] is mu^2 + x.C x + sigma^2, so R = Sigma is diagonal, and the pull is Sigma delta.  c of
manifold.py is lr nu/(2 tr Sigma) here, which is the same at leading order.

A state costs one eigendecomposition, which takes half of the time, and some 50 calls of NumPy on
small matrices; descent_loop.py has the slopes in compiled loops. States that a trial step throws
far away may overflow: what is not finite is not settled, or rejected by the integrator.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, scaled

LARGEST = 1e100
"""A covariance with a larger entry has no limit."""
GROWING = 100
"""Nor one that the residuals alone, without label noise, increase for as many iterations."""


class Shares(NamedTuple):
    """What N = E[g g^T] consists of: the last is the share of E[g] E[g]^T."""

    of_label: float  # sigma^2 times its share
    of_square: float  # of the mean square residual
    of_mean: float


def covariance(
    samples: FloatArray, alpha: FloatArray, lr: float, shares: Shares, guess: FloatArray,
    tolerance: float, sweeps: int,
) -> tuple[FloatArray, FloatArray, bool]:  # fmt: skip
    """N and C of equation (1) of modes.py, and whether there is such a state.

    All are in whitened axes along A's eigenvectors there, `alpha` : (r,) its eigenvalues, `samples`
    : (n, r); `guess` is C at a state close by, or zeros.

    Uses fixed-point iteration, where Sigma = I, so that C_ij = lr N_ij alpha_i alpha_j/(alpha_i +
    alpha_j).  The map is linear and monotone: it converges if and only if there is a positive
    solution.  The shape of C hardly changes in the iteration; its size comes from the trace of the
    equation.
    """
    inverse, ones, unit = 1 / alpha, np.ones(len(alpha)), np.eye(len(alpha))
    gain = lr / (inverse[:, None] + inverse)
    of_squares = gain * (shares.of_square / len(samples))
    of_labels = unit * (gain * shares.of_label)
    label_trace = float(np.vdot(unit, of_labels))
    C = guess if guess[0, 0] else of_labels
    trace = float(np.vdot(unit, C))
    settled, growing = False, 0
    for _ in range(sweeps):
        square = (samples.dot(C) * samples).dot(ones)
        moved = (samples.T * square).dot(samples)
        moved *= of_squares
        if shares.of_mean:
            moved += shares.of_mean * gain * C
        excess = trace - float(np.vdot(unit, moved))
        size = label_trace / excess if excess > 0 else 1.0
        growing = 0 if excess > 0 else growing + 1
        moved *= size
        moved += of_labels
        C = moved - size * C
        change, largest = np.abs(C).max(), np.abs(moved).max()
        C, trace = moved, float(np.vdot(unit, moved))
        if change <= tolerance * largest:
            settled = True
            break
        if growing > GROWING or not largest < LARGEST:
            break
    return C / gain, C, settled


def drift(
    data: Data, target: FloatArray, lr: float, shares: Shares, P: FloatArray, q: float,
    guess: FloatArray, tolerance: float, sweeps: int,
) -> tuple[tuple[Any, ...], FloatArray, bool]:  # fmt: skip
    """The fields of manifold.Drift in their order, A^-1, and whether there is a stationary state.

    The arguments are those of `covariance`, in the principal axes, and the state P = W^T W,
    q = |a|^2.
    """
    root, spectrum = data.root, data.spectrum
    rank, total = len(target), float(spectrum.sum())
    unit = np.eye(rank)
    alpha, vectors = np.linalg.eigh(root[:, None] * (P + q * unit) * root)
    np.maximum(alpha, 1e-12 * alpha[-1], out=alpha)
    into = root[:, None] * vectors
    noise, spread, settled = covariance(
        data.whitened.dot(vectors), alpha, lr, shares, into.T.dot(guess).dot(into), tolerance,
        sweeps,
    )  # fmt: skip
    inverse = (into / alpha).dot(into.T)
    N = into.dot(noise).dot(into.T)
    out = vectors / root[:, None]
    C = out.dot(spread).dot(out.T)
    nu = float(np.vdot(unit, N))
    c = lr * nu / (2 * total)
    Z = c * inverse
    trace = float(np.vdot(unit, Z))
    mean = -c * inverse.dot((total + spectrum) * target) / spectrum
    zbar = inverse.dot(mean - (3 * Z.dot(target) + trace * target) / 2)
    NZ = N.dot(Z)
    K_W = N + (NZ + NZ.T) / 2 - nu * Z
    K_a = nu * (1 + trace) - float(np.vdot(unit, NZ))
    w = nu * zbar - N.dot(zbar)
    hold = inverse.dot(K_W.dot(target) + K_a * target + P.dot(w) - q * w) / 2
    fields = (
        K_W, w, K_a, hold, Z, zbar, N, C,
        2 * float(target.dot(zbar)) + c * rank,
        float(np.vdot(unit, spread)) / 2,
        lr * nu / 2 * float((1 / alpha).sum()) / rank,
        lr * float(alpha.sum()) / rank,
        lr * float(max(alpha[0], 1e-3 * alpha[-1])),
        1.3 * lr**2 * nu,
    )  # fmt: skip
    return fields, inverse, settled


def slow_slope(
    state: FloatArray, gram: FloatArray, data: Data, target: FloatArray, lr: float, shares: Shares,
    guess: FloatArray, tolerance: float, sweeps: int,
) -> tuple[FloatArray, tuple[Any, ...], bool]:  # fmt: skip
    """The slope of the slow part of the course (course.py) at `state`, G; and `drift` there."""
    rank = len(target)
    G = state.reshape(rank + 1, rank + 1)
    product = G.T.dot(gram.dot(G))
    P, theta, q = product[:rank, :rank], product[:rank, rank], float(product[rank, rank])
    fields, inverse, settled = drift(data, target, lr, shares, P, q, guess, tolerance, sweeps)
    K_W, w, K_a, hold, *_, stiffness = fields
    # Rounding and the integrator's errors move theta away: turn it back at the largest rate.
    held = 2 * hold + stiffness / (2 * lr**2) * inverse.dot(target - theta)
    turning = np.empty_like(G)
    turning[:rank, :rank] = -K_W
    turning[:rank, rank] = held - w
    turning[rank, :rank] = held + w
    turning[rank, rank] = -K_a
    return (lr**2 / 2 * G.dot(turning)).ravel(), fields, settled


def fit_slope(
    state: FloatArray, gram: FloatArray, data: Data, lr: float, shares: Shares, frozen: bool
) -> tuple[FloatArray, FloatArray]:
    """The slope of the fit (course.py) at `state`, G, C and delta one after another; lr A."""
    spectrum = data.spectrum
    rank = len(spectrum)
    size, width = rank + 1, (rank + 1) ** 2
    G, C = state[:width].reshape(size, size), state[width:-rank].reshape(rank, rank)
    delta = state[-rank:]
    product = G.T.dot(gram.dot(G))
    theta = product[:rank, rank]
    unit = np.eye(rank)
    A = product[:rank, :rank] + product[rank, rank] * unit
    pull = spectrum * delta
    N = moments(data, C, delta, shares)
    slope = np.zeros_like(state)
    d_delta = slope[-rank:]
    d_delta -= lr * A.dot(pull)
    if not frozen:
        trace = float(np.vdot(unit, N))
        turning = np.empty_like(G)
        turning[:rank, :rank] = (-(lr**2) / 2) * N
        turning[:rank, rank] = turning[rank, :rank] = -lr * pull
        turning[rank, rank] = -(lr**2) / 2 * trace
        np.dot(G, turning, out=slope[:width].reshape(size, size))
        d_delta -= lr**2 / 2 * (N.dot(theta) + trace * theta)
    # dC is this and its transpose: in N - pull pull^T, A N A - (A pull)(A pull)^T loses no digits.
    half = A.dot((lr**2 / 2 * (N - pull[:, None] * pull)).dot(A) - (lr * spectrum)[:, None] * C)
    np.add(half, half.T, out=slope[width:-rank].reshape(rank, rank))
    return slope, lr * A


def moments(data: Data, C: FloatArray, delta: FloatArray, shares: Shares) -> FloatArray:
    """N = E[g g^T] at C : (r, r) and a mean predictor theta_star + delta : (r,)."""
    x, count = data.samples, len(data.samples)
    mean = x.dot(delta)
    square = (x.dot(C) * x).dot(np.ones(len(delta))) + mean * mean
    weights = (shares.of_square / count) * square + shares.of_label / count
    N = (x.T * weights).dot(x)
    if shares.of_mean:
        # In this order a full batch without noise leaves exactly nothing but the pull.
        pull = data.spectrum * delta
        moved = data.spectrum[:, None] * C * data.spectrum + pull[:, None] * pull
        N = N + shares.of_mean * moved
    return np.asarray(N)


def largest_rate(A: FloatArray, spectrum: FloatArray) -> float:
    """An upper bound of the largest eigenvalue of A Sigma, at most r^(1/32) times that.

    (tr B^32)^(1/32) for the symmetric B of the same eigenvalues, by repeated squaring.
    """
    B, unit = scaled(A, np.sqrt(spectrum)), np.eye(len(spectrum))
    logarithm, power = 0.0, 1.0
    for _ in range(5):
        trace = float(np.vdot(unit, B))
        logarithm += math.log(trace) / power
        B = B / trace
        B = B.dot(B)
        power *= 2
    return math.exp(logarithm + math.log(float(np.vdot(unit, B))) / power)
