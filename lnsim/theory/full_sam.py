"""Full-batch SAM: the largest eigenvalues of the Hessian fall, and the law of how.

A step is deterministic.  With delta = theta - theta_star, g = Sigma delta, A = W^T W + |a|^2 I and
|grad| = sqrt(g^T A g), it moves M = [W | a] (modes.py) to the weights M (I + kappa S(g)), kappa =
rho/|grad|, and takes the gradient there:

    M <- M (I - lr (I + kappa S(g)) S(g')),
    g' = g + kappa Sigma A g + kappa^2 Sigma g (theta.g).                                        (1)

Fast: a bounce of period two
    d = Sigma^(1/2) delta obeys d <- (I - lr B - lr kappa B^2) d at leading order, B = Sigma^(1/2) A
    Sigma^(1/2), whose eigenvalues are those of H on the interpolators, and kappa = rho/sqrt(d^T B
    d) grows as d falls.  So d cannot come to rest.  It ends on the eigenvector u of the largest
    eigenvalue lambda, where it changes its sign in every step:

        lr lambda (1 + kappa lambda) = 2,   |d|^2 = (rho/kappa)^2/lambda.                        (2)

    Every other mode mu < lambda has lr mu (1 + kappa mu) < 2 and dies out.

Slow: the contraction
    On the bounce g' = (1 + kappa lambda) g.  As in modes.py the step is a boost, whose sign changes
    and which leaves nothing behind, times a contraction, I - D diag(v v^T, |v|^2), v =
    Sigma^(1/2) u/sqrt(lambda):

        D = (e^2/2 + kappa e) (rho/kappa)^2,   e = lr (1 + kappa lambda) = 2/lambda,
          = 4 rho^2 lr lambda/(2 - lr lambda)^2,                                                 (3)

    and a boost that keeps theta.  This is gradient flow of lambda along the interpolators, at the
    speed D/2; D/2 = lr rho^2 lambda/2 as lr lambda -> 0, the flow of Wen, Ma, Li 2022 (arXiv
    2211.05729).

When the largest eigenvalue meets the next
    they go on together.  Were one of them to lead, d would turn to it and lower it.  So d moves
    about in the space of the largest eigenvalues, in the mean over time d d^T/|d|^2 = Y, where Y is
    positive semidefinite with tr Y = 1, and v v^T is to be replaced by Sigma^(1/2) Y
    Sigma^(1/2)/lambda.  B falls by F(Y) a step, F linear.  Y is the one that keeps together the
    eigenvalues on its range and overtakes the others: B - h F(Y) must have its largest eigenvalue
    on the range of Y for the next h steps.  F is symmetric and positive semidefinite, because the
    contraction is a projected gradient, tr(Y F(Y)) its squared length.  Hence that Y solves

        max over Y >= 0, tr Y = 1 of   tr(Y B) - (h/2) tr(Y F(Y)),                               (4)

    a proximal step of the convex function lambda_max(B), and the flow is that of steepest descent
    of lambda_max along the interpolators.  It comes to rest where lambda_max is least, which leaves
    W^T W undetermined below it: full-batch SAM does not end at rank one.

    With S = Sigma, B_W = Sigma^(1/2) W^T W Sigma^(1/2), t = Sigma^(1/2) theta_star, q = |a|^2 and
    c = D/lambda,

        F(Y) = c (S Y B_W + B_W Y S - t k^T - k t^T + 2 (q tr(S Y) - theta_star.l) S),
        l = A^-1 (Sigma^(1/2) Y t + tr(S Y) theta_star),   k = Sigma^(1/2) l.                    (5)

Small parameters
    d turns from one eigenvalue to another, x above it, at the rate lr (1 + 2 kappa lambda) x a
    step.  Meanwhile they fall by tr(Y F(Y)) a step, so the largest eigenvalues lie within about
        sqrt(tr(Y F(Y))/(lr (1 + 2 kappa lambda)))                                               (6)
    of each other, which must be small beside lambda.  The square of the perturbation,
    (rho |g|/|grad|)^2 = rho^2 tr(S Y)/lambda, is the share of what is left out in the contraction.
    It must be small, and stay so as a share of the fall of lambda, tr(Y F(Y)), which ends where
    lambda is least: what becomes of the network from then on is of higher order.
    `Course.expansion` is the largest of the three.

The first transient, in which the labels are fitted, is some hundred steps of (1), and these are
taken as they are.  After it, (4) is solved by an accelerated projected gradient, once for each step
of the slow equation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, boost, finite_boost, scaled
from lnsim.theory.course import Course, check_expansion, check_start, end_of_fit, moments
from lnsim.theory.kicks import FullSharp

CHANGE = 0.02
"""Largest relative change of a mode in one step of the slow equation."""
TURN = 0.1
"""Largest rate of the slow equation times its step."""
LONGEST_FIT = 2_000_000
"""Most steps that the fit may take."""
ITERATIONS = 300
"""Most iterations for Y."""
ACCURACY = 1e-5
"""Largest change of Y in its last iteration."""


def follow(
    data: Data, target: FloatArray, M: FloatArray, dynamics: FullSharp, times: FloatArray
) -> Course:
    """The course from M = [W | a] : (m, r + 1) in the principal axes; `times` : (T,) ascend.

    Raises ValueError if lr is so large that plain descent is unstable, or if a small parameter
    exceeds LARGEST_EXPANSION; ArithmeticError if the fit does not end.
    """
    gram, rank = M.T @ M, len(target)
    _, _, theta = moments(gram, np.eye(rank + 1))
    check_start(theta, target)
    fitted = _length_of_fit(data, gram, dynamics)
    early = times[times < fitted]
    G, last = _fit(data, target, gram, dynamics, early, fitted)
    delta = moments(gram, G)[2] - target
    none = np.zeros((rank, rank))
    states = [
        _State(each, away, none, none, np.outer(g, g), 0.0)
        for each, away, g in zip(G, delta, delta * data.spectrum, strict=True)
    ]
    states += _slow(data, target, gram, dynamics, last, fitted, times[len(early) :])
    whole = {
        name: np.stack([getattr(state, name) for state in states])
        for name in ("G", "delta", "Z", "C", "N", "expansion")
    }
    return Course(times=times, zbar=np.zeros((len(times), rank)), fitted=fitted, **whole)


def follow_twin(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: FullSharp, times: FloatArray
) -> Course:
    """delta and C of the twin, linearised at the start; gram = M(0)^T M(0), and `times` ascend."""
    rank = len(target)
    P, q, theta = moments(gram, np.eye(rank + 1))
    A, fitted = P + q * np.eye(rank), _length_of_fit(data, gram, dynamics)
    delta, C = np.zeros((len(times), rank)), np.zeros((len(times), rank, rank))
    away = theta - target
    step = 0
    for k in np.flatnonzero(times < fitted):
        for _ in range(step, round(times[k])):
            g = data.spectrum * away
            size = math.sqrt(g @ A @ g)
            further = dynamics.rho / size * data.spectrum * (A @ g) if size else 0.0
            away = away - dynamics.lr * A @ (g + further)
        step = round(times[k])
        delta[k] = away
    values, vectors = np.linalg.eigh(scaled(A, data.root))
    bounce = _Bounce.of(float(values[-1]), dynamics)
    top = vectors[:, -1] / data.root
    C[times >= fitted] = bounce.square * np.outer(top, top)
    none = np.zeros_like(C)
    return Course(times, none, delta, none, delta, C, none, delta[:, 0], fitted)


def slowest(data: Data, dynamics: FullSharp) -> float:
    """The least rate per step at which it contracts W^T W where all eigenvalues fall together."""
    return 2 * dynamics.lr * dynamics.rho**2 * float(data.spectrum.min()) / len(data.spectrum)


@dataclass(frozen=True)
class _Bounce:
    """Equations (2) and (3) at the largest eigenvalue."""

    square: float  # |d|^2
    contraction: float  # c = D/lambda
    turning: float  # lr (1 + 2 kappa lambda)

    @classmethod
    def of(cls, largest: float, dynamics: FullSharp) -> _Bounce:
        """Raises ValueError if there is none."""
        lr, rho = dynamics.lr, dynamics.rho
        product = lr * largest
        if product >= 2:
            raise ValueError(
                f"lr = {lr} is too large for a quasi-stationary state: lr lambda_max ="
                f" {product:.3g} must be below 2"
            )
        kappa = (2 / product - 1) / largest
        return cls(
            square=(rho / kappa) ** 2 / largest,
            contraction=4 * rho**2 * lr / (2 - product) ** 2,
            turning=lr * (1 + 2 * kappa * largest),
        )


def _length_of_fit(data: Data, gram: FloatArray, dynamics: FullSharp) -> float:
    """The step at which the fit is over."""
    P, q, _ = moments(gram, np.eye(len(gram)))
    rates = dynamics.lr * np.linalg.eigvalsh(scaled(P + q * np.eye(len(P)), data.root))
    slowest = float(max(rates[0], 1e-3 * rates[-1]))
    fitted = end_of_fit(slowest)
    if fitted > LONGEST_FIT:
        raise ArithmeticError("lr is too small for the first transient to end")
    return float(math.ceil(fitted))


def _fit(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: FullSharp, times: FloatArray,
    fitted: float,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Equation (1): G at `times`, (T, r + 1, r + 1), and at the end of the fit."""
    size, lr, spectrum = len(gram), dynamics.lr, data.spectrum
    G, now, step = np.eye(size), gram, 0
    states = []
    for time in [*times, fitted]:
        for _ in range(step, round(time)):
            P, q, theta = now[:-1, :-1], now[-1, -1], now[:-1, -1]
            g = spectrum * (theta - target)
            along = P @ g + q * g
            square = float(g @ along)
            kappa = dynamics.rho / math.sqrt(square) if square > 0 else 0.0
            there = g + kappa * spectrum * (along + kappa * float(theta @ g) * g)
            move = np.eye(size)
            move[:-1, -1] -= lr * there
            move[-1, :-1] -= lr * there
            move[:-1, :-1] -= lr * kappa * np.outer(g, there)
            move[-1, -1] -= lr * kappa * float(g @ there)
            G, now = G @ move, move.T @ now @ move
        if not np.all(np.isfinite(now)):
            raise ArithmeticError("the first transient diverges")
        step = round(time)
        states.append(G)
    return np.stack(states)[:-1], states[-1]


@dataclass(frozen=True)
class _State:
    """Course at one time."""

    G: FloatArray
    delta: FloatArray
    Z: FloatArray
    C: FloatArray
    N: FloatArray
    expansion: float


@dataclass(frozen=True)
class _OnManifold:
    """The mean network at one state, theta = theta_star, and the linear maps of Y there."""

    data: Data
    target: FloatArray
    P: FloatArray
    q: float

    @classmethod
    def of(cls, data: Data, target: FloatArray, gram: FloatArray, G: FloatArray) -> _OnManifold:
        P, q, _ = moments(gram, G)
        return cls(data, target, P, q)

    @cached_property
    def A(self) -> FloatArray:
        return np.asarray(self.P + self.q * np.eye(len(self.target)))

    @cached_property
    def B(self) -> FloatArray:
        return scaled(self.A, self.data.root)

    @cached_property
    def _inside(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """B_W, Sigma^(1/2) theta_star and the inverse of A."""
        inverse = np.asarray(np.linalg.inv(self.A))
        return scaled(self.P, self.data.root), self.data.root * self.target, inverse

    def hold(self, Y: FloatArray) -> tuple[FloatArray, float]:
        """l of (5), per unit of c, and tr(S Y)."""
        _, t, inverse = self._inside
        total = float(self.data.spectrum @ Y.diagonal())
        hold = inverse @ (self.data.root * (Y @ t) + total * self.target)
        return hold, total

    def fall(self, Y: FloatArray) -> FloatArray:
        """F(Y) per unit of c, (r, r)."""
        (B_W, t, _), (hold, total) = self._inside, self.hold(Y)
        half = self.data.spectrum[:, None] * (Y @ B_W) - np.outer(t, self.data.root * hold)
        result = half + half.T
        result.flat[:: len(t) + 1] += (
            2 * (self.q * total - float(self.target @ hold)) * self.data.spectrum
        )
        return result

    @property
    def steepest(self) -> float:
        """An upper bound of |F| per unit of c: that without the hold."""
        spectrum, (B_W, _, _) = self.data.spectrum, self._inside
        return 2 * float(spectrum.max() * np.linalg.norm(B_W, 2) + self.q * spectrum @ spectrum)

    def slope(self, Y: FloatArray) -> FloatArray:
        """X in dG/dt = c G X, (r + 1, r + 1)."""
        hold, total = self.hold(Y)
        X = boost(hold)
        X[:-1, :-1] -= scaled(Y, self.data.root)
        X[-1, -1] -= total
        return X


def _slow(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: FullSharp, G: FloatArray,
    fitted: float, times: FloatArray,
) -> list[_State]:  # fmt: skip
    """The course at `times`, after the fit, from G at its end."""
    rank = len(target)
    for _ in range(3):
        G = _onto_manifold(gram, G, target)
    at = _OnManifold.of(data, target, gram, G)
    values, vectors = np.linalg.eigh(at.B)
    Y = np.outer(vectors[:, -1], vectors[:, -1])
    bounce = _Bounce.of(float(values[-1]), dynamics)
    begin = fitted
    states: list[_State] = []
    while len(states) < len(times):
        step = _step_size(at, Y, bounce)
        Y = _shares(at, step * bounce.contraction, Y)
        check_expansion(_expansion(at, Y, bounce, dynamics), begin)
        X = bounce.contraction * at.slope(Y)
        middle = _OnManifold.of(data, target, gram, G @ (np.eye(rank + 1) + step / 2 * X))
        X = _Bounce.of(float(np.sum(Y * middle.B)), dynamics).contraction * middle.slope(Y)
        for time in times[len(states) :]:
            if time > begin + step:
                break
            inside = _propagated(G, X, float(time) - begin)
            states.append(_state(_OnManifold.of(data, target, gram, inside), inside, Y, dynamics))
        G = _onto_manifold(gram, _propagated(G, X, step), target)
        at, begin = _OnManifold.of(data, target, gram, G), begin + step
        bounce = _Bounce.of(float(np.sum(Y * at.B)), dynamics)
    return states


def _state(at: _OnManifold, G: FloatArray, Y: FloatArray, dynamics: FullSharp) -> _State:
    """The mean network and its bounce."""
    largest, root = float(np.sum(Y * at.B)), at.data.root
    bounce = _Bounce.of(largest, dynamics)
    C, inverse = bounce.square * scaled(Y, 1 / root), np.linalg.inv(at.A)
    return _State(
        G=G,
        delta=np.zeros(len(root)),
        Z=inverse @ C @ inverse,
        C=C,
        N=bounce.square * scaled(Y, root),
        expansion=_expansion(at, Y, bounce, dynamics),
    )


def _expansion(at: _OnManifold, Y: FloatArray, bounce: _Bounce, dynamics: FullSharp) -> float:
    """The largest of the small parameters."""
    largest, total = float(np.sum(Y * at.B)), float(at.data.spectrum @ Y.diagonal())
    falling = max(float(np.sum(Y * at.fall(Y))), 1e-300)
    apart = math.sqrt(bounce.contraction * falling / bounce.turning) / largest
    moved = dynamics.rho**2 * total / largest
    return max(apart, moved, moved * largest * total / falling)


def _propagated(G: FloatArray, X: FloatArray, time: float) -> FloatArray:
    """G after `time` at the slope X."""
    moved = G @ X
    return G + time * moved + time**2 / 2 * moved @ X


def _onto_manifold(gram: FloatArray, G: FloatArray, target: FloatArray) -> FloatArray:
    """A step of Newton's method for the boost of G onto theta_star."""
    P, q, theta = moments(gram, G)
    return G @ finite_boost(np.linalg.solve(P + q * np.eye(len(P)), target - theta))


def _step_size(at: _OnManifold, Y: FloatArray, bounce: _Bounce) -> float:
    """A step of the slow equation in which the modes change little."""
    fastest = float(np.linalg.norm(scaled(Y, at.data.root), 2))
    total = float(at.data.spectrum @ Y.diagonal())
    return min(CHANGE / fastest, TURN / total) / bounce.contraction


def _shares(at: _OnManifold, reach: float, guess: FloatArray) -> FloatArray:
    """Y of (4) for h c = `reach`, by an accelerated projected gradient that restarts."""
    gain = 1 / (reach * at.steepest)
    Y, ahead, weight = guess, guess, 1.0
    for _ in range(ITERATIONS):
        new = _projected(ahead + gain * (at.B - reach * at.fall(ahead)))
        if float(np.sum((ahead - new) * (new - Y))) > 0:
            weight = 1.0
        further = (1 + math.sqrt(1 + 4 * weight**2)) / 2
        change = new - Y
        ahead, weight = new + (weight - 1) / further * change, further
        Y = new
        if np.abs(change).max() <= ACCURACY:
            break
    return Y


def _projected(Y: FloatArray) -> FloatArray:
    """The nearest positive semidefinite matrix of trace 1."""
    values, vectors = np.linalg.eigh(Y)
    excess = np.cumsum(values[::-1]) - 1
    level = excess / np.arange(1, len(values) + 1)
    count = int(np.flatnonzero(values[::-1] > level)[-1])
    excess = np.maximum(values - level[count], 0.0)
    return (vectors * excess) @ vectors.T
