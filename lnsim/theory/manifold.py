"""The drift along the interpolators at one state: equations (1) to (4) of modes.py.

modes.py derives them for SGD.  They hold for every dynamics that multiplies M from the right by
I - lr e S(x) - lr k S(x)^2 (kicks.py), with three changes.  The step restores theta by R = E[c x
x^T], c = dE[e]/dmu, in place of Sigma, so that equation (1) is

    A R C + C R A = lr A N A,   N = E[e^2 x x^T].

It contracts by lr^2/2 times N + (2/lr) E[k x x^T] in place of N, and nu + (2/lr) E[k |x|^2] in
place of nu.  And c, with C = c A at leading order, is tr(Sigma C)/tr(Sigma A).  For SGD R = Sigma,
k = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, scaled
from lnsim.theory.kicks import Descent, Dynamics

SWEEPS = 1000
"""Most iterations for the covariance."""
SECANTS = 30
"""Iterations by secants, of which 4 to 8 are usual, before the slow but sure ones."""
DEPTH = 2
"""Steps before the last that are mixed with it."""


@dataclass(frozen=True)
class Drift:
    """The fast fluctuations and the drift they cause, at one state; in the principal axes.

    K = [[K_W, w], [-w^T, K_a]] contracts M by (lr^2/2) K a step, S(hold) lr^2 keeps theta.
    """

    K_W: FloatArray  # (r, r)
    w: FloatArray  # (r,)
    K_a: float
    hold: FloatArray  # l of equation (2), (r,)
    Z: FloatArray  # E[z z^T], (r, r)
    zbar: FloatArray  # E[z], (r,)
    N: FloatArray  # E[g g^T], (r, r)
    C: FloatArray  # covariance of theta, (r, r)
    spread: float  # equation (3)
    loss: float  # tr(Sigma C)/2
    expansion: float  # equation (4)
    relaxation: float  # mean rate per step at which delta relaxes
    slowest: float  # the least of these rates
    stiffness: float  # the largest rate of the drift, per step


def drift(
    data: Data,
    target: FloatArray,
    dynamics: Dynamics,
    P: FloatArray,
    q: float,
    guess: FloatArray | None = None,
    tolerance: float = 1e-5,
) -> Drift:
    """The drift at P = W^T W : (r, r), q = |a|^2, theta = `target` : (r,).

    `guess`: C at a state close by.  Raises ValueError if there is no quasi-stationary state.
    """
    lr = dynamics.lr
    rank, total = len(target), float(data.spectrum.sum())
    A = P + q * np.eye(rank)
    alpha, vectors = np.linalg.eigh(scaled(A, data.root))
    alpha = np.maximum(alpha, 1e-12 * alpha[-1])  # a trial step of the integrator may overshoot
    inverse = scaled((vectors / alpha) @ vectors.T, data.root)
    if isinstance(dynamics, Descent):
        noise, whitened = descent_covariance(data, (alpha, vectors), dynamics, tolerance)
        contracting, restored = noise, alpha
    else:
        start = None if guess is None else scaled(guess, data.root)
        fast = _covariance(data, alpha, vectors, dynamics, start, tolerance)
        noise, whitened, contracting, restored = fast
    N, of_contraction = scaled(noise, data.root), scaled(contracting, data.root)
    nu = float(of_contraction.trace())

    if isinstance(dynamics, Descent):
        c = lr * nu / (2 * total)
    else:
        c = float(whitened.trace() / alpha.sum())
    Z = c * inverse
    trace = float(Z.trace())
    mean = -c * (inverse @ ((total + data.spectrum) * target)) / data.spectrum
    zbar = inverse @ (mean - (3 * Z @ target + trace * target) / 2)

    NZ = of_contraction @ Z
    K_W = of_contraction + (NZ + NZ.T) / 2 - nu * Z
    K_a = nu * (1 + trace) - float(NZ.trace())
    w = nu * zbar - of_contraction @ zbar
    hold = inverse @ (K_W @ target + K_a * target + P @ w - q * w) / 2
    return Drift(
        K_W=K_W,
        w=w,
        K_a=K_a,
        hold=hold,
        Z=Z,
        zbar=zbar,
        N=N,
        C=scaled(whitened, 1 / data.root),
        spread=float(2 * target @ zbar) + c * rank,
        loss=float(whitened.trace()) / 2,
        expansion=lr * nu / 2 * float(np.sum(1 / restored)) / rank,
        relaxation=lr * float(restored.sum()) / rank,
        slowest=lr * float(max(restored[0], 1e-3 * restored[-1])),
        stiffness=1.3 * lr**2 * nu,
    )


def _covariance(
    data: Data, alpha: FloatArray, vectors: FloatArray, dynamics: Dynamics,
    guess: FloatArray | None, tolerance: float,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:  # fmt: skip
    """N, C, what contracts, all in whitened axes, and the rates of A R, at any kicks.

    In A's eigenbasis and with C = A^(1/2) D A^(1/2), equation (1) is R' D + D R' = lr N' with R' =
    A^(1/2) R A^(1/2), N' alike.  As |grad f|^2/x.C x hardly varies, R' is nearly c diag(alpha), c
    its mean, and the step D += (lr N' - R' D - D R')/(c (alpha_i + alpha_j)) nearly solves it at
    given R' and N'.  How these depend on the size of D, as mu = 0, follows from speed law (1) of
    sam.py, whose slope replaces c along D.  A secant takes care of the rest.
    """
    lr, root = dynamics.lr, np.sqrt(alpha)
    y = data.whitened @ (vectors * root)
    count, rank = y.shape
    size = np.einsum("ki,ki->k", y, y)
    zero, sums = np.zeros(count), alpha[:, None] + alpha
    if guess is None:
        D = 0.01 * lr * size.mean() * np.eye(rank)
    else:
        D = scaled(vectors.T @ guess @ vectors, 1 / root)
    of_noise, _ = dynamics.shares(count)
    before: tuple[FloatArray, FloatArray] | None = None
    restoring = noise = np.eye(rank)
    for sweep in range(SWEEPS):
        variance = np.einsum("ki,ki->k", y @ D, y)
        if before is not None and not variance.min() > 0:  # the secant went too far
            D, before = lr * _lyapunov(restoring, noise), None
            continue
        kick = dynamics.kick(zero, variance, size)
        restoring = (y.T * (kick.restoring / count)) @ y
        noise = (y.T * (of_noise / count * kick.square)) @ y
        back = restoring @ D
        mean = float(restoring.trace() / alpha.sum())
        step = (lr * noise - back - back.T) / (mean * sums)
        largest = float(np.abs(D).max())
        if np.abs(step).max() <= tolerance * largest:
            into = vectors / root
            N = into @ noise @ into.T
            contraction = (y.T * (2 / (lr * count) * kick.contraction)) @ y
            C = scaled(D, root)
            return (
                N,
                vectors @ C @ vectors.T,
                N + into @ contraction @ into.T,
                np.linalg.eigvalsh(restoring),
            )
        if not largest < 1e100:
            break
        slope = max((1 + mean - lr * float(alpha.sum()) * mean) / 2, 0.2 * mean)
        move = step + (mean / slope - 1) * float(np.sum(step * D) / np.sum(D * D)) * D
        point, D = D, D + move
        if sweep >= SECANTS:
            D = lr * _lyapunov(restoring, noise)
        elif before is not None:
            last, change = before[0] + before[1], move - before[1]
            D = D - float(np.sum(change * move) / max(np.sum(change**2), 1e-300)) * (D - last)
        before = point, move
    raise ValueError(
        f"lr = {lr} is too large for a quasi-stationary state: lr tr(A Sigma) = "
        f"{lr * float(alpha.sum()):.3g} must be well below 2"
    )


def _lyapunov(R: FloatArray, N: FloatArray) -> FloatArray:
    """The solution D of R D + D R = N, positive definite as R and N are."""
    rates, axes = np.linalg.eigh(R)
    return np.asarray(axes @ ((axes.T @ N @ axes) / (rates[:, None] + rates)) @ axes.T)


def descent_covariance(
    data: Data, eigen: tuple[FloatArray, FloatArray], dynamics: Descent, tolerance: float
) -> tuple[FloatArray, FloatArray]:
    """N and C of equation (1) in whitened axes; `eigen` holds A's eigenvalues and vectors there.

    Uses fixed-point iteration in A's eigenbasis, where Sigma = I, so that
    C_ij = lr N_ij alpha_i alpha_j/(alpha_i + alpha_j).  The map is linear and monotone: it
    converges if and only if there is a positive solution.  The shape of C hardly changes in the
    iteration; its size comes from the trace of the equation.
    """
    alpha, vectors = eigen
    lr = dynamics.lr
    gain = lr / (1 / alpha[:, None] + 1 / alpha)
    samples = data.whitened @ vectors
    of_noise, of_mean = dynamics.shares(len(samples))
    of_square = of_noise if dynamics.batch_size else 0.0  # a full batch draws no samples
    label = np.diag(gain.diagonal() * dynamics.sigma**2 * of_noise)
    C, label_trace = label, float(label.trace())
    for _ in range(SWEEPS):
        square = np.einsum("ki,ki->k", samples @ C, samples)
        Q = samples.T @ (samples * (square / len(samples))[:, None])
        feedback = gain * (of_square * Q + of_mean * C)
        excess = float((C - feedback).trace())
        size = label_trace / excess if excess > 0 else 1.0
        previous, C = size * C, label + size * feedback
        largest = np.abs(C).max()
        if np.abs(C - previous).max() <= tolerance * largest:
            return vectors @ (C / gain) @ vectors.T, vectors @ C @ vectors.T
        if not largest < 1e100:
            break
    share = of_noise if dynamics.batch_size else of_mean
    raise ValueError(
        f"lr = {lr} is too large for a quasi-stationary state: lr tr(A Sigma)/batch_size = "
        f"{lr * float(alpha.sum()) * share:.3g} must be well below 2"
    )
