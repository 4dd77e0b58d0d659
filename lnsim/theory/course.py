"""The mean course of training: one matrix G(t) carries every neuron.

Training multiplies M = [W | a] : (m, r + 1) from the right (modes.py), so M(t) = M(0) G(t) with one
random G : (r + 1, r + 1) for all neurons.  Its mean course has two parts, each an ordinary
differential equation; times are in steps, coordinates the principal axes of the data.

Fit.  Write M(t) = M(0) G exp(S(z)), G the mean course and z the fast fluctuation, of covariance Z.
With the kicks of kicks.py, mean predictor delta = W^T a - theta_star of M(0) G, residuals of mean
mu_k = x_k.delta and variance x_k.C x_k, C = A Z A, the first two moments of a step are

    dG/dt = -lr G S(gbar) - (lr^2/2) G diag(N', tr N'),   gbar = E[e x],
    dC/dt = -lr (A R C + C R A) + lr^2 A (N - gbar gbar^T) A,
    N = E[g g^T],   N' = N + (2/lr) E[k x x^T],   R = E[c x x^T],   A = W^T W + |a|^2 I.

At first the labels are fitted: delta decays at the rates of lr A R, and N is large because the
residuals are.  C grows from 0 to its quasi-stationary value at twice these rates.  After FITTED of
the slowest of these times both are slaved, and the second part takes over: the drift along the
interpolators (manifold.py),

    dG/dt = -(lr^2/2) G K + lr^2 G S(hold),

from the G of the fit, moved onto theta = theta_star by one boost.  The corrections of second order
in z in K are left out during the fit, of which they are a small part.

A step is taken as a differential, so a mode of rate b a step decays too slowly by a share of about
b/2: what is left of the labels after many such times, as without noise, is too large.

The twin, linearised at the start, has the same two equations with A frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lnsim.base.checks import DIVERGED_ABOVE, FloatArray
from lnsim.theory import descent
from lnsim.theory.axes import Data, boost, finite_boost
from lnsim.theory.integrator import integrate
from lnsim.theory.interpolation import hermite, pchip
from lnsim.theory.kicks import Descent, Dynamics
from lnsim.theory.manifold import SWEEPS, TOLERANCE, Drift, drift, drift_of_fields, shares

FITTED = 20.0
"""The fit is over after this many times the slowest time of relaxation."""
LARGEST_EXPANSION = 1.0
"""The theory predicts nothing where its small parameter, (4) of modes.py, is larger."""


_MANY = ContextVar("many", default=False)


@contextmanager
def many() -> Iterator[None]:
    """Has the slopes computed by compiled loops: worth their loading where many courses follow.

    The numbers are those of NumPy up to rounding.
    """
    token = _MANY.set(True)
    try:
        yield
    finally:
        _MANY.reset(token)


def _slopes() -> Any:
    """The module whose fit_slope and slow_slope are used."""
    if not _MANY.get():
        return descent
    from lnsim.theory import descent_loop  # with numba, a slow import

    return descent_loop


class BeyondExpansion(ValueError):
    """The small parameter is too large at step `time`."""

    def __init__(self, message: str, time: float) -> None:
        super().__init__(message)
        self.time = float(time)


@dataclass(frozen=True)
class Course:
    """The mean course at T times, in the principal axes of the data.

    The mean network is M(0) G (I + S(zbar) + diag(Z, tr Z)/2), the network at a moment
    M(0) G exp(S(z)) with z normal of mean zbar and covariance Z.
    """

    times: FloatArray  # (T,)
    G: FloatArray  # (T, r + 1, r + 1)
    delta: FloatArray  # W^T a - theta_star of M(0) G, (T, r)
    Z: FloatArray  # (T, r, r)
    zbar: FloatArray  # (T, r)
    C: FloatArray  # covariance of theta, (T, r, r)
    N: FloatArray  # E[g g^T], (T, r, r)
    expansion: FloatArray  # (T,)
    fitted: float  # the time at which the fit is over

    def at(self, chosen: Any) -> Course:
        """The course at some of its times, an array of their indices."""
        return at_times(self, chosen)


C = TypeVar("C", bound=Any)


def at_times(course: C, chosen: Any) -> C:
    """A course of one output or of several at some of its times, an array of their indices."""
    parts = {f.name: getattr(course, f.name)[chosen] for f in fields(course) if f.name != "fitted"}
    return replace(course, **parts)


def follow(
    data: Data, target: FloatArray, M: FloatArray, dynamics: Dynamics, times: FloatArray
) -> Course:
    """The course from M = [W | a] : (m, r + 1) in the principal axes; `times` : (T,) ascend.

    Raises ValueError if there is no quasi-stationary state, or if the small parameter exceeds
    LARGEST_EXPANSION up to the last time; ArithmeticError if the fit cannot be integrated.
    """
    gram, rank = M.T @ M, len(target)
    P, q, theta = moments(gram, np.eye(rank + 1))
    check_start(theta, target)
    first = drift(data, target, dynamics, P, q)
    if isinstance(dynamics, Descent) and dynamics.sigma == 0:
        # Without label noise C = 0, but the residuals of the start still amplify themselves where
        # any noise does: (1) is linear in sigma^2.
        drift(data, target, replace(dynamics, sigma=1.0), P, q)
    check_expansion(first.expansion, 0.0)
    fitted = end_of_fit(first.slowest)
    early = times[times < fitted]
    fit = _fit(data, target, gram, dynamics, np.append(early, fitted))
    slow = _slow(data, target, gram, dynamics, fit, times[len(early) :])
    return joined(fit, slow)


def check_start(theta: FloatArray, target: FloatArray) -> None:
    """Raises ArithmeticError if a run from the predictor `theta` diverges at once."""
    if np.abs(theta - target).max() > math.sqrt(DIVERGED_ABOVE):
        raise ArithmeticError("theta_star is so large that a run diverges at once")


def end_of_fit(slowest: float) -> float:
    """The time at which the fit is over.  Raises ArithmeticError if there is none."""
    fitted = FITTED / slowest if slowest > 0 else math.inf
    if math.isinf(fitted):
        raise ArithmeticError("lr is too small for the first transient to end")
    return fitted


def joined(fit: C, slow: C) -> C:
    """The course of the fit, but for its last time, and then `slow`, but for its first."""
    parts = {
        f.name: np.concatenate([getattr(fit, f.name)[:-1], getattr(slow, f.name)[1:]])
        for f in fields(fit)
        if f.name != "fitted"
    }
    # The small parameter is of the drift, which begins when the fit ends.
    parts["expansion"][: len(fit.times) - 1] = slow.expansion[0]
    return replace(slow, **parts)


def follow_twin(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: Dynamics, times: FloatArray
) -> Course:
    """delta and C of the twin, linearised at the start; gram = M(0)^T M(0), and `times` ascend."""
    P, q, _ = moments(gram, np.eye(len(gram)))
    fitted = end_of_fit(drift(data, target, dynamics, P, q).slowest)
    early = times[times < fitted]
    fit = _fit(data, target, gram, dynamics, np.append(early, fitted), frozen=True)
    at = np.minimum(np.arange(len(times)), len(early))
    return replace(fit, times=times, delta=fit.delta[at], C=fit.C[at])


def _fit(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: Dynamics, times: FloatArray,
    frozen: bool = False,
) -> Course:  # fmt: skip
    """The fit at `times`; with `frozen` that of the linearised twin, whose G stays I."""
    rank, lr = len(target), dynamics.lr
    width = (rank + 1) ** 2
    of_step = _Moments(data, dynamics)
    of_descent = shares(data, dynamics) if isinstance(dynamics, Descent) else None
    slopes = _slopes()

    def unpack(state: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        G, C, delta = np.split(state, [width, width + rank**2])
        return G.reshape(rank + 1, rank + 1), C.reshape(rank, rank), delta

    def law(state: FloatArray) -> _Fit:
        if of_descent is not None:
            slope, tangent = slopes.fit_slope(state, gram, data, lr, of_descent, frozen)
            return _FitOfDescent(slope, tangent, data.spectrum)
        G, C, delta = unpack(state)
        P, q, theta = moments(gram, G)
        A = P + q * np.eye(rank)
        at = of_step.at(A, C, delta)
        K = at.contracting
        dG = -lr * G @ boost(at.pull)
        dG[:, :-1] -= lr**2 / 2 * G[:, :-1] @ K
        dG[:, -1] -= lr**2 / 2 * float(K.trace()) * G[:, -1]
        if frozen:
            dG, K = np.zeros_like(G), np.zeros_like(K)
        relaxing = A @ at.restoring
        restoring = relaxing @ C
        dC = lr**2 * A @ (at.N - np.outer(at.pull, at.pull)) @ A - lr * (restoring + restoring.T)
        d_delta = -lr * A @ at.pull - lr**2 / 2 * (K @ theta + float(K.trace()) * theta)
        return _Fit(np.concatenate([dG.ravel(), dC.ravel(), d_delta]), lr * relaxing)

    _, _, theta = moments(gram, np.eye(rank + 1))
    start = np.concatenate([np.eye(rank + 1).ravel(), np.zeros(rank**2), theta - target])
    parts = slice(width), slice(width, width + rank**2), slice(width + rank**2, None)
    with np.errstate(all="ignore"):  # a trial step that overflows is rejected
        grid, path, laws = integrate(law, start, times[-1], parts)
    slopes = np.stack([each.slope for each in laws], axis=1)
    states = [unpack(state) for state in hermite(grid, path, slopes, times)]
    G, C, delta = (np.stack(parts) for parts in zip(*states, strict=True))
    P, q, _ = moments(gram, G)
    A = P + q[:, None, None] * np.eye(rank)
    inverse = np.linalg.inv(A)
    N = np.stack([of_step.noise(*each) for each in zip(A, C, delta, strict=True)])
    Z = inverse @ C @ inverse
    # delta is the mean predictor's: what Z adds to that of M(0) G to second order, zbar takes away.
    mean = (target + delta)[:, :, None]
    second = (3 * Z @ mean + np.trace(Z, axis1=1, axis2=2)[:, None, None] * mean) / 2
    zbar = -(inverse @ second)[:, :, 0]
    return Course(times, G, delta, Z, zbar, C, N, np.zeros(len(times)), times[-1])


def _slow(
    data: Data, target: FloatArray, gram: FloatArray, dynamics: Dynamics, fit: Course,
    times: FloatArray,
) -> Course:  # fmt: skip
    """The course from the end of the fit on: there and at `times`."""
    rank, begin, lr = len(target), fit.fitted, dynamics.lr
    G = fit.G[-1]
    P, q, _ = moments(gram, G)
    check_expansion(drift(data, target, dynamics, P, q, fit.C[-1]).expansion, begin)
    for _ in range(3):  # Newton's method for the boost onto theta_star
        P, q, theta = moments(gram, G)
        z = np.linalg.solve(P + q * np.eye(rank), target - theta)
        if not np.abs(z).max() <= 1.0:
            raise ArithmeticError("the labels cannot be fitted: the weights are too small")
        G = G @ finite_boost(z)
    guess = fit.C[-1]

    of_descent = shares(data, dynamics) if isinstance(dynamics, Descent) else None
    slopes = _slopes()

    def law(state: FloatArray) -> _Slow:
        nonlocal guess
        if isinstance(dynamics, Descent) and of_descent is not None:
            slope, fields, settled = slopes.slow_slope(
                state, gram, data, target, lr, of_descent, guess, TOLERANCE, SWEEPS
            )
            at = drift_of_fields(data, dynamics, fields, settled)
            guess = at.C
            return _Slow(slope, at)
        G = state.reshape(rank + 1, rank + 1)
        P, q, theta = moments(gram, G)
        at = drift(data, target, dynamics, P, q, guess)
        guess = at.C
        # Rounding and the integrator's errors move theta away: turn it back at the largest rate.
        hold = at.hold + at.stiffness / (4 * lr**2) * np.linalg.solve(
            P + q * np.eye(rank), target - theta
        )
        K = np.zeros((rank + 1, rank + 1))
        K[:-1, :-1], K[:-1, -1], K[-1, :-1], K[-1, -1] = at.K_W, at.w, -at.w, at.K_a
        return _Slow((lr**2 * G @ (boost(hold) - K / 2)).ravel(), at)

    end = max(times[-1] - begin, 0.0) + 1 if len(times) else 1.0  # + 1 avoids an empty interval
    index = np.arange((rank + 1) ** 2).reshape(rank + 1, rank + 1)
    parts = index[:, :-1].ravel(), index[:, -1]
    with np.errstate(all="ignore"):  # a trial step that overflows is rejected
        grid, states, laws = integrate(law, G.ravel(), end, parts)
    drifts = [each.at for each in laws]
    for time, at in zip(grid, drifts, strict=True):
        check_expansion(at.expansion, begin + time)
    at_times = np.append(0.0, times - begin)
    slopes = np.stack([each.slope for each in laws], axis=1)
    G = hermite(grid, states, slopes, at_times)

    upper = np.triu_indices(rank)

    def smooth(name: str) -> FloatArray:
        values = np.stack([np.asarray(getattr(at, name)) for at in drifts])
        symmetric = values.ndim == 3
        values = values[:, *upper] if symmetric else values
        between = pchip(grid, values, at_times)
        if not symmetric:
            return between
        whole = np.empty((len(at_times), rank, rank))
        whole[:, *upper] = between
        whole[:, *upper[::-1]] = between
        return whole

    return Course(
        times=np.append(begin, times),
        G=G.reshape(-1, rank + 1, rank + 1),
        delta=np.zeros((len(at_times), rank)),
        fitted=begin,
        **{name: smooth(name) for name in ("Z", "zbar", "C", "N", "expansion")},
    )


@dataclass(frozen=True)
class _Slow:
    """The slow equation at one state, for the integrator."""

    slope: FloatArray
    at: Drift

    @property
    def stiffness(self) -> float:
        return self.at.stiffness

    @property
    def expansion(self) -> float:
        return self.at.expansion


@dataclass(frozen=True)
class _Fit:
    """The equations of the fit at one state, for the integrator."""

    slope: FloatArray
    relaxing: FloatArray  # lr A R, (r, r)
    expansion = 0.0

    @cached_property
    def stiffness(self) -> float:
        """C relaxes at twice the largest rate of delta, which grows a little until the next."""
        return 2.2 * float(np.abs(np.linalg.eigvals(self.relaxing)).max())


@dataclass(frozen=True)
class _FitOfDescent(_Fit):
    """The same for SGD: R = Sigma, and `relaxing` is lr A."""

    spectrum: FloatArray

    @cached_property
    def stiffness(self) -> float:
        """See _Fit."""
        return 2.2 * descent.largest_rate(self.relaxing, self.spectrum)


class _Step(NamedTuple):
    """The moments of one step during the fit, in the principal axes."""

    pull: FloatArray  # E[g], (r,)
    N: FloatArray  # E[g g^T], (r, r)
    contracting: FloatArray  # N + (2/lr) E[k x x^T], (r, r)
    restoring: FloatArray  # R, (r, r)


@dataclass(frozen=True)
class _Moments:
    """The moments of one step, from the samples."""

    data: Data
    dynamics: Dynamics

    def noise(self, A: FloatArray, C: FloatArray, delta: FloatArray) -> FloatArray:
        """N alone."""
        if not isinstance(self.dynamics, Descent):
            return self.at(A, C, delta).N
        return descent.moments(self.data, C, delta, shares(self.data, self.dynamics))

    def at(self, A: FloatArray, C: FloatArray, delta: FloatArray) -> _Step:
        """At A, C : (r, r) and a mean predictor theta_star + delta : (r,)."""
        x = self.data.samples
        count = len(x)
        variance = np.einsum("kr,kr->k", x @ C, x)
        size = np.einsum("kr,kr->k", x @ A, x)
        kick = self.dynamics.kick(x @ delta, variance, size)
        of_square, of_mean = self.dynamics.shares(count)
        pull = kick.pull @ x / count
        restoring = (x.T * kick.restoring) @ x / count
        N = of_square * (x.T * kick.square) @ x / count
        if of_mean:
            N = N + of_mean * (restoring @ C @ restoring.T + np.outer(pull, pull))
        besides = 2 / self.dynamics.lr * kick.contraction
        contracting = N + (x.T * besides) @ x / count if besides.any() else N
        return _Step(pull, N, contracting, restoring)


def moments(gram: FloatArray, G: FloatArray) -> tuple[FloatArray, Any, FloatArray]:
    """P = W^T W, q = |a|^2, theta = W^T a of M(0) G, gram = M(0)^T M(0); G may be a stack."""
    product = np.swapaxes(G, -1, -2) @ gram @ G
    return product[..., :-1, :-1], product[..., -1, -1], product[..., :-1, -1]


def check_expansion(expansion: float, time: float) -> None:
    """Raises ValueError if the small parameter at `time` is too large for the theory."""
    if expansion > LARGEST_EXPANSION:
        raise BeyondExpansion(
            f"the theory predicts nothing here: its small parameter is {expansion:.3g} at step"
            f" {time:,.0f}, and must be at most {LARGEST_EXPANSION:g}",
            time,
        )
