"""How fast one-sample SAM moves along the interpolators, and the label noise that is as fast.

The speed law
    kicks.py has the step: with s^2 = x^T A x = |grad f|^2 and the residual r a sample pulls by e =
    r + rho sign(r) s and contracts by k = rho^2 + rho |r|/s besides.  Take all samples alike, s^2 =
    tr(A Sigma), which is tr H on the interpolators, and r as normal of variance tau^2 = 2 L.  With
    b = sqrt(2/pi), E|r| = b tau, and the shaking v = tau/(rho s),

        E[e^2] = rho^2 s^2 (1 + 2 b v + v^2),   dE[e]/dmu = 1 + b/v,   E[k] = rho^2 (1 + b v).

    Equation (1) of manifold.py, 2 (1 + b/v) tau^2 = lr s^2 E[e^2], closes v:

        2 v (v + b) = lr s^2 (1 + 2 b v + v^2).                                                  (1)

    A step contracts M by (lr^2/2) E[e^2] + lr E[k] times x x^T.  Hence mode lambda of W^T W decays
    at the rate (lr^2 E[e^2] + 2 lr E[k]) lambda, which by (1) is

        2 lr rho^2 (1 + 2 b v + v^2) lambda.                                                     (2)

    To leading order in lr s^2, v = lr s^2/(2 b) and the rate is 2 lr rho^2 lambda: the drift
    -(lr rho^2/2) grad tr H of Wen, Ma, Li 2022 (arXiv 2211.05729).  The factor is 1 + lr s^2 + ...:
    its shaking speeds SAM up.  (1) has a positive solution for lr s^2 < 2.

The label noise that is as fast
    Label noise contracts mode lambda at lr^2 (sigma^2 + 2 L) lambda, with 2 L = lr sigma^2 s^2/(2 -
    lr s^2) (modes.py).  Equal to (2) with

        sigma_eff^2 = rho^2 (1 + 2 b v + v^2) (2 - lr s^2)/lr.                                   (3)

    As lr s^2 -> 0 this is 2 rho^2/lr: it does not depend on s.  For the shaking alone it would be
    rho^2 s^2, but most of the contraction is by k.

`speed_law` has this closed form.  `decay_rate` is the same without its assumptions, by the moments
of every sample and the second order in z (manifold.py).  `matched_radius` and `matched_noise` find
the radius and the noise of equal `decay_rate` at one state.  Both change with the state: on the way
tr H falls, and sigma_eff of a given rho with it.  `radius_over_phase` compares whole courses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.theory import cloud, paper
from lnsim.theory.axes import Data, direction
from lnsim.theory.kicks import MEAN_SIZE, Descent, Dynamics, Sharp
from lnsim.theory.manifold import drift
from lnsim.theory.modes import gradient_flow

ROUNDS = 40
"""Most rounds in the search for a radius or a noise."""
DOUBLINGS = 8
"""A time is sought up to 2^8 times the one expected from the rate at the start."""


@dataclass(frozen=True)
class Speed:
    """The speed law in closed form."""

    shaking: float  # v
    rate: float  # of (2), per lambda
    sigma_eff: float  # of (3)
    loss: float  # L


def speed_law(lr: float, rho: float, trace: float) -> Speed:
    """Equations (1) to (3) at tr(A Sigma) = `trace`.  Raises ValueError unless lr trace < 2."""
    Sharp(lr, rho)
    checks.real("trace", trace, above=0.0)
    heat = lr * trace
    if heat >= 2:
        raise ValueError(f"lr tr(A Sigma) must be below 2, got {heat:.3g}")
    # (1) as (2 - heat) v^2 + 2 b (1 - heat) v - heat = 0
    half = MEAN_SIZE * (1 - heat)
    v = (math.sqrt(half**2 + heat * (2 - heat)) - half) / (2 - heat)
    growth = 1 + 2 * MEAN_SIZE * v + v**2
    return Speed(
        shaking=v,
        rate=2 * lr * rho**2 * growth,
        sigma_eff=rho * math.sqrt(growth * (2 - heat) / lr),
        loss=(v * rho) ** 2 * trace / 2,
    )


@dataclass(frozen=True)
class State:
    """A network on the interpolators, in the principal axes of the data."""

    data: Data
    target: FloatArray  # theta_star, (r,)
    P: FloatArray  # W^T W, (r, r)
    q: float  # |a|^2

    @property
    def trace(self) -> float:
        """tr(A Sigma)."""
        spectrum = self.data.spectrum
        return float(self.P.diagonal() @ spectrum + self.q * spectrum.sum())


def fitted(X: FloatArray, theta_star: FloatArray, W: FloatArray, a: FloatArray) -> State:
    """Where gradient flow fits the labels X theta_star from W : (m, d), a : (m,).

    Raises ValueError or ArithmeticError where it cannot be followed.
    """
    data = Data.of(X)
    target = data.basis.T @ theta_star
    state, _ = gradient_flow(data, target, W @ data.basis, a, 1.0, np.zeros(1))
    rank = len(target)
    return State(data, target, state[:-1].reshape(rank, rank), float(state[-1]))


def at_rest(X: FloatArray, theta_star: FloatArray) -> State:
    """The flattest interpolator, of rank one, at which label noise and one-sample SAM end."""
    data = Data.of(X)
    target = data.basis.T @ theta_star
    along, q = paper.stationary_norms(target, np.diag(data.spectrum))
    u = direction(target)
    return State(data, target, along * np.outer(u, u), q)


def decay_rate(state: State, dynamics: Dynamics) -> float:
    """The rate per step at which the contraction lowers |W|_F^2, its own loss being stationary.

    tr(lr^2 K_W P)/tr P of manifold.py: what holds theta in place is left out, so that it is not 0
    at rest.  Raises ValueError if there is no quasi-stationary state.
    """
    at = drift(state.data, state.target, dynamics, state.P, state.q)
    return dynamics.lr**2 * float(np.sum(at.K_W * state.P)) / float(state.P.trace())


def matched_radius(state: State, noise: Descent) -> float:
    """The rho with which one-sample SAM contracts as fast as the label noise SGD, at `state`.

    Raises ValueError if either has no quasi-stationary state.
    """
    checks.real("sigma", noise.sigma, above=0.0)
    wanted = decay_rate(state, noise)
    guess = noise.sigma / speed_law(noise.lr, 1.0, state.trace).sigma_eff
    return _matched(lambda rho: decay_rate(state, Sharp(noise.lr, rho)), wanted, guess)


def matched_noise(state: State, sam: Sharp) -> float:
    """The sigma with which label noise SGD contracts as fast as the one-sample SAM, at `state`.

    Raises ValueError if either has no quasi-stationary state.
    """
    wanted = decay_rate(state, sam)
    guess = speed_law(sam.lr, sam.rho, state.trace).sigma_eff
    return _matched(lambda sigma: decay_rate(state, Descent(sam.lr, sigma)), wanted, guess)


def _matched(rate: Callable[[float], float], wanted: float, guess: float) -> float:
    """The size at which `rate`, which grows as its square or nearly so, is `wanted`."""
    size = guess
    for _ in range(ROUNDS):
        ratio = math.sqrt(wanted / rate(size))
        size *= ratio
        if abs(ratio - 1) < 1e-8:
            break
    return size


def radius_over_phase(
    problem: cloud.Problem, network: cloud.Network, noise: Descent, share: float = 1 / math.e
) -> float:
    """The rho with which SAM takes |W|_F^2 to `share` of its start in the time of the label noise.

    Both times are those of the law of the cloud; rho is accurate to 0.1%.  Raises ValueError where
    that law does not hold, and if |W|_F^2 does not fall so far.
    """
    W, a, theta_star = network.W, network.a, problem.theta_star
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    if theta_star is None:
        raise ValueError("the theory of the cloud needs theta_star: the problem has none")
    start, rest = fitted(problem.X, theta_star, W, a), at_rest(problem.X, theta_star)
    outside = float(np.sum(W**2) - np.sum((W @ start.data.basis) ** 2))  # which does not move
    if float(rest.P.trace()) + outside >= share * float(np.sum(W**2)):
        raise ValueError(f"|W|_F^2 does not fall to {share:.3g} of its start")
    rho = math.sqrt(matched_radius(start, noise) * matched_radius(rest, noise))
    wanted = _time_to(problem, network, noise, share, 1 / decay_rate(start, noise))
    for _ in range(ROUNDS):
        time = _time_to(problem, network, Sharp(noise.lr, rho), share, 0.6 * wanted)
        rho *= math.sqrt(time / wanted)
        if abs(time / wanted - 1) < 1e-3:
            break
    return rho


@dataclass(frozen=True)
class _Steps:
    """A dynamics of which only the moments of a step are known."""

    of_steps: Dynamics

    def kicks(self) -> Dynamics:
        return self.of_steps


def _time_to(
    problem: cloud.Problem, network: cloud.Network, of_steps: Dynamics, share: float, scale: float
) -> float:
    """The step at which |W|_F^2 is `share` of its start, sought from 0 to 2 `scale` on."""
    level = share * float(np.sum(network.W**2))
    for _ in range(DOUBLINGS):
        times = np.linspace(0, 2 * scale, 201)
        norms = cloud.predict(problem, network, _Steps(of_steps), times)["norm_squared"]
        if norms[-1] <= level:
            return float(np.interp(-math.log(level), -np.log(norms), times))
        scale *= 2
    raise ValueError(f"|W|_F^2 does not fall to {share:.3g} of its start")
