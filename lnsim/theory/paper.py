"""Statements of theory on a two-layer linear network under label noise SGD, as functions.

These are the paper's statements (Condition 1, Theorem 2, Lemmas 3 to 6), and the two simplest
results of the law of modes (modes.py has the derivation and the whole curve): the decay rates of
the modes and their stationary state.  Of these two the rates at L = 0 follow from the drift of
label noise down tr H (Blanc et al. 2020; Damian, Ma, Lee 2021; Li, Wang, Arora 2021), and the ratio
of norms at rest from the balance of its noise (Ziyin et al. 2023, 2024); the term 2L is ours.

"Paper" is "On the Learning Dynamics of Two-layer Linear Networks with Label Noise SGD", AAAI 2026.
All times are in steps.  A value beyond the range of a float is infinite, or 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lnsim.base import checks
from lnsim.base.checks import FloatArray


@dataclass(frozen=True)
class Condition:
    """One assumption of Condition 1, evaluated.

    `holds` is None where the paper leaves a constant unstated; `note` then bounds the constant.
    """

    name: str
    statement: str
    value: float
    threshold: float
    holds: bool | None
    note: str


def condition_1(
    X: ArrayLike, theta_star: ArrayLike, width: int, lr: float
) -> tuple[Condition, ...]:
    """Condition 1 (A1 to A6) for X : (n, d), theta_star : (d,), the width m and the step lr."""
    inputs = checks.array("X", X, 2)
    target = _theta_star(theta_star, inputs.shape[1], "X")
    checks.integer("width", width, 1)
    _step(lr)
    samples, dim = inputs.shape
    norm = math.hypot(*target)  # the squares may overflow
    radius = float(np.linalg.norm(inputs, axis=1).max())
    widest, most, weakest = lr**-0.5, _power(lr, -2), float(width) ** -0.25
    return (
        Condition(
            "A1", "m = Omega(1/sqrt(lr))", width, widest, None,
            f"the constant is unstated; m sqrt(lr) = {width / widest:.4g}",
        ),
        Condition(
            "A2", "lr <= C^-96", lr, math.nan, None,
            f"C is unstated; holds only if C <= lr^(-1/96) = {lr ** (-1 / 96):.4g}",
        ),
        Condition(
            "A3", "n >= 1/lr^2", samples, most, samples >= most,
            f"n lr^2 = {samples / most:.4g}",
        ),
        Condition(
            "A4", "|theta*| <= m^(-1/4)", norm, weakest, norm <= weakest,
            f"|theta*| m^(1/4) = {norm / weakest:.4g}",
        ),
        Condition(
            "A5", "max |x_i| <= C_data", radius, math.nan, None,
            f"C_data is unstated; it must be at least {radius:.4g}",
        ),
        Condition(
            "A6", "d large enough", dim, math.nan, None,
            "the size required is unstated",
        ),
    )  # fmt: skip


def lazy_escape_bound(width: int, lr: float, sigma: float) -> float:
    """T_1 = 384 sqrt(log m)/(sigma^2 lr^2 sqrt(m)), by which every neuron left the lazy regime.

    Theorem 2, with probability 1 - O(1/m).  Infinite without label noise.
    """
    checks.integer("width", width, 2)
    _step(lr)
    checks.real("sigma", sigma, least=0.0)
    if sigma == 0:
        return math.inf
    return _over(384 * math.sqrt(math.log(width) / width), _power(sigma * lr, 2))


def decay_time(lr: float, sigma: float) -> float:
    """1/(lr sigma)^2, the time in which |W|_F^2 falls by e: law of modes, at leading order.

    Infinite without label noise.
    """
    checks.real("lr", lr, above=0.0)
    checks.real("sigma", sigma, least=0.0)
    return _over(1, _power(lr * sigma, 2))


@dataclass(frozen=True)
class Lemma3:
    """While lazy, Delta W_i(j) <= 0 with probability at least `nonpositive_probability`, and
    Delta W_i(j) <= -`decrease` with probability at least `decrease_probability`.

    `vacuous`: the first bound is at most 0, and so says nothing.
    """

    nonpositive_probability: float
    decrease: float
    decrease_probability: float
    vacuous: bool


def lemma_3(width: int, dim: int, sigma: float) -> Lemma3:
    """Lemma 3: 1 - rho m^(-1/8) with rho = 2 sqrt(d/pi); and 1/4 for a fall of (sigma/4)^2."""
    checks.integer("width", width, 1)
    checks.integer("dim", dim, 1)
    checks.real("sigma", sigma, least=0.0)
    bound = 1 - 2 * math.sqrt(dim / math.pi) * width**-0.125
    return Lemma3(bound, _power(sigma / 4, 2), 0.25, bound <= 0)


@dataclass(frozen=True)
class Lemma4:
    """Some step t_0 <= `latest` has E[mean |w_i(t_0)|^2] <= `level`, when m = `premise_width`."""

    latest: float
    level: float
    premise_width: float


def lemma_4(lr: float) -> Lemma4:
    """Lemma 4 (oscillation simulation): t_0 <= 1/lr^2, level sqrt(lr), premise m = 1/sqrt(lr)."""
    _step(lr)
    return Lemma4(_power(lr, -2), math.sqrt(lr), lr**-0.5)


def phase_two_threshold(lr: float) -> float:
    """sqrt(lr): Phase II starts when all |w_i| and |a_i| are at most this."""
    _step(lr)
    return math.sqrt(lr)


def alignment_time(lr: float, theta_norm: float) -> float:
    """T_2 = ln(1/lr)/|theta_star| as Lemma 5 prints it, in steps from the start of Phase II."""
    _step(lr)
    checks.real("theta_norm", theta_norm, above=0.0)
    return -math.log(lr) / theta_norm


def alignment_time_linearized(lr: float, theta_norm: float) -> float:
    """ln(1/lr)/(lr |theta_star|), T_2 as the linearised growth rate suggests.

    Near zero weights gradient descent is dW = lr a theta_star^T, da = lr W theta_star for isotropic
    inputs, which grows at rate lr |theta_star| per step: 1/lr times Lemma 5 as printed.
    """
    return alignment_time(lr, theta_norm) / lr


def convergence_time(lr: float, theta_norm: float) -> float:
    """T_3 = ln(1/lr)/(lr |theta_star|^2) of Lemma 6, in steps after T_2."""
    return alignment_time_linearized(lr, theta_norm) / theta_norm


def misalignment_order(lr: float) -> float:
    """sqrt(lr) ln(1/lr), the order of 1 - |cos(w_i, theta_star)| in Lemma 5 (constant unstated)."""
    _step(lr)
    return math.sqrt(lr) * -math.log(lr)


def distance_order(lr: float) -> float:
    """lr ln(1/lr), the order of |theta - theta_star| in Lemma 6 (constant unstated)."""
    _step(lr)
    return lr * -math.log(lr)


def decay_rates(X: ArrayLike, lr: float, sigma: float, loss: float = 0.0) -> FloatArray:
    """Decay rate per step of v_i^T W^T W v_i off theta_star, lr^2 (sigma^2 + 2 loss) lambda_i.

    Law of modes at leading order (modes.py), one sample per step.  X : (n, d); returns (d,) in
    ascending order of lambda_i, the eigenvalues of X^T X/n, as `numpy.linalg.eigh` orders the v_i.
    """
    inputs = checks.array("X", X, 2)
    _step(lr)
    checks.real("sigma", sigma, least=0.0)
    checks.real("loss", loss, least=0.0)
    eigenvalues = np.linalg.eigvalsh(inputs.T @ inputs / len(inputs))
    return lr**2 * (_power(sigma, 2) + 2 * loss) * np.maximum(eigenvalues, 0)


def stationary_norms(theta_star: ArrayLike, Sigma: ArrayLike) -> tuple[float, float]:
    """|W|_F^2 and |a|^2 of the rank-one stationary state, which depends on neither lr nor sigma.

    They are |u| rho and |u|/rho with rho^2 = tr Sigma |u|^2/(u^T Sigma u), which is d for isotropic
    inputs (modes.py, "Start and end").  u is theta_star, or its part in the range of a singular
    Sigma: the other parts of W and theta_star have no effect.  theta_star : (d,), Sigma : (d, d).
    ValueError if u = 0.

    Source: this network is the flattest interpolator, tr H = 2 sqrt(tr Sigma u^T Sigma u), at which
    label noise ends (Blanc et al. 2020; Damian, Ma, Lee 2021; Li, Wang, Arora 2021), as one-sample
    SAM does (Wen, Ma, Li 2022); the ratio of its norms is the balance of Ziyin et al. 2023, 2024.
    """
    covariance = checks.array("Sigma", Sigma, 2)
    checks.shape("Sigma", covariance, covariance.shape[:1] * 2, "it must be square")
    target = _theta_star(theta_star, len(covariance), "Sigma")
    spectrum, axes = np.linalg.eigh(covariance)
    nonzero = spectrum > spectrum[-1] * len(spectrum) * np.finfo(float).eps
    u = nonzero * (axes.T @ target)
    _, power = math.frexp(float(np.abs(u).max()))
    u = np.ldexp(u, -power)  # scaled, as squares may overflow or underflow
    squared, along = float(u @ u), float(u**2 @ spectrum)
    checks.real("theta_star^T Sigma theta_star", along, above=0.0)
    ratio = math.sqrt(float(np.trace(covariance)) * squared / along)
    size = math.ldexp(math.sqrt(squared), power)
    return size * ratio, size / ratio


def _power(base: float, exponent: float) -> float:
    """base**exponent, or infinity if that raises OverflowError."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _over(numerator: float, denominator: float) -> float:
    """numerator/denominator, both at least 0; infinite if the denominator is 0."""
    return numerator / denominator if denominator else math.inf


def _theta_star(value: ArrayLike, dim: int, other: str) -> FloatArray:
    target = checks.array("theta_star", value, 1)
    checks.shape("theta_star", target, (dim,), f"{other} has {dim} columns")
    return target


def _step(lr: float) -> None:
    checks.real("lr", lr, above=0.0)
    if lr >= 1:
        raise ValueError(f"lr must be below 1, where ln(1/lr) > 0, got {lr}")
