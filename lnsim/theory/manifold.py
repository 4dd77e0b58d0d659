"""The drift along the interpolators at one state: equations (1) to (4) of modes.py.

modes.py derives them for SGD.  They hold for every dynamics that multiplies M from the right by
I - lr e S(x) - lr k S(x)^2 (kicks.py), with three changes.  The step restores theta by R = E[c x
x^T], c = dE[e]/dmu, in place of Sigma, so that equation (1) is

    A R C + C R A = lr A N A,   N = E[e^2 x x^T].

It contracts by lr^2/2 times N + (2/lr) E[k x x^T] in place of N, and nu + (2/lr) E[k |x|^2] in
place of nu.  And c, with C = c A at leading order, is tr(Sigma C)/tr(Sigma A).  For SGD R = Sigma,
k = 0, and c is taken as lr nu/(2 tr Sigma), the same at leading order (descent.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory import descent
from lnsim.theory.axes import Data, scaled
from lnsim.theory.kicks import Descent, Dynamics

SWEEPS = 1000
"""Most iterations for the covariance."""
SECANTS = 30
"""Iterations by secants, of which 4 to 8 are usual, before the slow but sure ones."""
TOLERANCE = 1e-5
"""Relative error allowed in the covariance."""


class NoStationaryState(ValueError):
    """lr is so large that the noise of the steps amplifies itself: the mean loss has no bound."""


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
    tolerance: float = TOLERANCE,
) -> Drift:
    """The drift at P = W^T W : (r, r), q = |a|^2, theta = `target` : (r,).

    `guess`: C at a state close by.  Raises NoStationaryState if there is no quasi-stationary state,
    ArithmeticError if the square of lr is 0.
    """
    if dynamics.lr**2 == 0.0:
        raise ArithmeticError(f"lr = {dynamics.lr} is too small: its square is 0")
    if not 1e-12 * (float(P.trace()) + q) > 0:
        raise ValueError("W^T W + |a|^2 I must not be 0 on the span of the data")
    if isinstance(dynamics, Descent):
        return _of_descent(data, target, dynamics, P, q, guess, tolerance)
    lr = dynamics.lr
    rank, total = len(target), float(data.spectrum.sum())
    A = P + q * np.eye(rank)
    alpha, vectors = np.linalg.eigh(scaled(A, data.root))
    alpha = np.maximum(alpha, 1e-12 * alpha[-1])  # a trial step of the integrator may overshoot
    inverse = scaled((vectors / alpha) @ vectors.T, data.root)
    start = None if guess is None else scaled(guess, data.root)
    fast = _covariance(data, alpha, vectors, dynamics, start, tolerance)
    noise, whitened, contracting, restored = fast
    N, of_contraction = scaled(noise, data.root), scaled(contracting, data.root)
    nu = float(of_contraction.trace())

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


def _of_descent(
    data: Data, target: FloatArray, dynamics: Descent, P: FloatArray, q: float,
    guess: FloatArray | None, tolerance: float,
) -> Drift:  # fmt: skip
    """The same for SGD."""
    start = np.zeros_like(P) if guess is None else guess
    of_step = shares(data, dynamics)
    with np.errstate(all="ignore"):  # what overflows is not settled
        fields, _, settled = descent.drift(
            data, target, dynamics.lr, of_step, P, float(q), start, tolerance, SWEEPS
        )
    return drift_of_fields(data, dynamics, fields, settled)


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
        unit = D / largest  # as squares of a small D would be 0
        along = float(np.sum(step / largest * unit) / np.sum(unit * unit))
        move = step + (mean / slope - 1) * along * D
        point, D = D, D + move
        if sweep >= SECANTS:
            D = lr * _lyapunov(restoring, noise)
        elif before is not None:
            last, change = before[0] + before[1], move - before[1]
            change, moved = change / largest, move / largest
            D = D - float(np.sum(change * moved) / max(np.sum(change**2), 1e-300)) * (D - last)
        before = point, move
    raise NoStationaryState(
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
    """N and C of equation (1) in whitened axes; `eigen` holds A's eigenvalues and vectors there."""
    alpha, vectors = eigen
    of_step = shares(data, dynamics)
    with np.errstate(all="ignore"):  # what overflows is not settled
        N, C, settled = descent.covariance(
            data.whitened @ vectors, alpha, dynamics.lr, of_step, np.zeros_like(vectors), tolerance,
            SWEEPS,
        )  # fmt: skip
    if not settled:
        rates = dynamics.lr * float(alpha.sum())
        raise _too_large(dynamics, rates, of_step.of_square or of_step.of_mean)
    return vectors @ N @ vectors.T, vectors @ C @ vectors.T


def shares(data: Data, dynamics: Descent) -> descent.Shares:
    """What the N of a step consists of."""
    of_noise, of_mean = dynamics.shares(len(data.whitened))
    of_square = of_noise if dynamics.batch_size else 0.0  # a full batch draws no samples
    return descent.Shares(of_noise * dynamics.sigma**2, of_square, of_mean)


def drift_of_fields(data: Data, dynamics: Descent, fields: Any, settled: bool) -> Drift:
    """The Drift of descent.drift's fields.  Raises NoStationaryState if it has not settled."""
    drift = Drift(*fields)
    if not settled:
        of_step, rates = shares(data, dynamics), drift.relaxation * len(drift.w)
        raise _too_large(dynamics, rates, of_step.of_square or of_step.of_mean)
    return drift


def _too_large(dynamics: Descent, rates: float, share: float) -> NoStationaryState:
    return NoStationaryState(
        f"lr = {dynamics.lr} is too large for a quasi-stationary state: lr tr(A Sigma)/batch_size ="
        f" {rates * share:.3g} must be well below 2"
    )
