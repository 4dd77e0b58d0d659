"""The law of every neuron's displacement D_i(t) = w_i(t) - w_i(0) under label noise SGD.

M(t) = M(0) G(t) (I + X), G the mean course (course.py), w_i and a_i the rows of M(0) G.  The mean
of D_i to the second order in the fluctuations z and R (fit_noise.py) is

    E[D_i] = w_i + a_i zbar + w_i (Z - E[R R^T])/2 - w_i(0).

About it D_i fluctuates by five parts, each of mean zero.

Fast, forgotten within the time of relaxation:
    a_i z, of covariance a_i^2 Z, and w_i (z z^T - Z)/2, of covariance (Z w.Zw + Z w w^T Z)/4.

Slow, kept for good:
    The area of the path of z.  Boosts do not commute, [S(z), S(dz)] = z dz^T - dz z^T, so z leaves
    behind the rotation Omega = (1/2) int (dz z^T - z dz^T) of the inputs, a Levy area.  Near the
    manifold z relaxes in detailed balance: in the eigenbasis U of Sigma^(1/2) A Sigma^(1/2), with
    eigenvalues alpha_i, z = Sigma^(1/2) U y, and the y_i are independent, relax at the rates
    b_i = lr alpha_i and have variances c_i.  The area of a pair of them is the martingale

        Omega_ij = int (b_i y_i dB_j - b_j y_j dB_i)/(b_i + b_j),

    where y_i dy_j - y_j dy_i = (b_i - b_j) y_i y_j dt + noise, and int y_i y_j dt is noise over
    b_i + b_j.  It grows by c_i c_j 2 b_i b_j/(b_i + b_j) a step, pairs are independent, and with
    e_i = Sigma^(1/2) u_i sqrt(c_i) the displacement w Omega + a hold has the covariance

        sum_{i<j} rho_ij v v^T,   v = (w.e_i) e_j - (w.e_j) e_i + a A^-1 ((theta.e_j) e_i -
        (theta.e_i) e_j),   rho_ij = h_i h_j/(2 (b_i + b_j - b_i b_j)),   h_i = 2 b_i - b_i^2,

    with hold = A^-1 Omega theta, by which theta stays, and rho exact in the size of a step.

    The contraction.  The steps contract w by (lr^2/2) sum_t r_t^2 x_t (x_t.w), a sum of few large
    numbers.  Besides the draw, the loss it contains has a memory: with u = delta^T A^-1 delta, of
    mean ubar = tr(A^-1 C), one step changes u by

        Delta = (lr^2 s - 2 lr) f^2 + 2 (lr - lr^2 s) f epsilon + lr^2 s epsilon^2,

    f = x.delta, s = x.A x.  Take delta as sqrt(v) times a normal vector of covariance C, E[v] = 1.
    Then E[Delta] = -b ubar (v - 1) with b = lr^2 sigma^2 E[s]/ubar, and E[(u + Delta)^2] = E[u^2]
    is a linear equation for E[v^2] = 1 + excess.  The sum of all later effects of one step on the
    mean contraction is (Delta - E[Delta | u])/(b ubar) Q w, Q = E[f^2 x x^T], so each step adds

        (lr^2/2) (r^2 x (x.w) + (Delta - E[Delta | u])/(b ubar) Q w - mean),

    of which the covariance over samples and signs is taken.  If the equation has no positive
    solution, the loss has a tail without variance.  The median of its sum then is below the mean,
    by no power of the expansion; the excess is infinite, and what it adds is left out.

    A sum of squares has nearly a gamma law, so that the third cumulant of what has accumulated
    along E[D] is taken as twice the square of its variance over |E[D]|.

    What the fit leaves (fit_noise.py).

Of each covariance V only two numbers are needed (passage.py): that along E[D_i], and the trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.theory import course
from lnsim.theory.axes import scaled
from lnsim.theory.cloud_network import Mean
from lnsim.theory.fit_noise import Fit, State
from lnsim.theory.kicks import KURTOSIS, Descent
from lnsim.theory.manifold import drift
from lnsim.theory.passage import FAR, Law

Two = tuple[FloatArray, FloatArray]
"""Of a covariance: the variance along E[D] and the trace, each (m,)."""


class Displacements:
    """The laws of D at the times `at`, one after another.

    The course must have these times, begin at 0, and have enough times during the fit for its noise
    to be followed.
    """

    def __init__(self, mean: Mean, at: FloatArray) -> None:
        self.mean = mean
        path = mean.course
        self.memory = 0.0
        """The correlation of the fast part with that of the time before."""
        self.excess = -math.inf
        """The largest excess of the fourth moment of the residuals up to now."""
        inside = int(np.sum(path.times < path.fitted))
        self._fit_ends = min(inside, len(path.times) - 1)
        fit = Fit(mean.data, mean.target, mean.dynamics.lr, path.at(slice(self._fit_ends + 1)),
                  mean.gram)  # fmt: skip
        assert isinstance(mean.dynamics, Descent)
        self._kurtosis = KURTOSIS[mean.dynamics.law]
        self._zbar = path.zbar.copy()
        self._zbar[:inside] = fit.zbar()[:inside]
        self._states = fit.states()
        self._noise: State
        P, q, _ = course.moments(mean.gram, path.G[self._fit_ends])
        settled = drift(mean.data, mean.target, mean.dynamics, P, float(q)).C
        self._settled = P + q * np.eye(len(P)), settled
        self._stops = np.searchsorted(path.times, at[at > 0]).tolist()
        self._k = 0
        self.w, self.a = mean.M[:, :-1], mean.M[:, -1]
        m = len(mean.M)
        # Along E[D], the trace, and along E[D] of the contraction alone.
        self._rates: tuple[FloatArray, ...] = np.zeros(m), np.zeros(m), np.zeros(m)
        self._sums: tuple[FloatArray, ...] = np.zeros(m), np.zeros(m), np.zeros(m)

    def __iter__(self) -> Iterator[float]:
        """Goes from time to time."""
        for stop in self._stops:
            yield self._advance(stop)

    def _advance(self, stop: int) -> float:
        path, data = self.mean.course, self.mean.data
        step = path.times[stop] - path.times[self._k]
        for k in range(self._k + 1, min(stop, self._fit_ends) + 1):
            self._noise = next(self._states)
            if k == self._fit_ends:
                self._noise = self._noise.fewer()
        self._k = k = stop
        rows = self.mean.M @ path.G[k]
        before_step, self.w, self.a = self.w, rows[:, :-1], rows[:, -1]
        grown = _dot(self.w, self.w) / np.maximum(_dot(before_step, before_step), 1e-300)
        second = (path.Z[k] - self._noise.square) / 2
        moved = self.w + self.a[:, None] * self._zbar[k] + self.w @ second
        moved -= self.mean.M[:, :-1]
        self.size = np.linalg.norm(moved, axis=1)
        self.e = moved / np.maximum(self.size, 1e-300)[:, None]

        P, q, _ = course.moments(self.mean.gram, path.G[k])
        self.A = P + q * np.eye(len(P))
        alpha, U = np.linalg.eigh(scaled(self.A, data.root))
        axes = data.root[:, None] * U
        variances = np.maximum(np.diag(U.T @ scaled(path.C[k], data.root) @ U), 0.0) / alpha**2
        rates = self.mean.dynamics.lr * alpha
        of_modes = variances * np.sum(axes**2, axis=0)
        self.memory = float(of_modes @ np.exp(-rates * step)) / max(float(of_modes.sum()), 1e-300)

        parts = self._area(axes * np.sqrt(variances), rates), self._contraction()
        rates_now = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], parts[1][0]
        before, self._rates = self._rates, rates_now
        for total, earlier, now in zip(self._sums, before, self._rates, strict=True):
            total *= grown
            total += step * (grown * earlier + now) / 2
        return float(path.times[k])

    def law(self, of: NDArray[np.int64], radius: float = 0.0) -> Law:
        """The law of the displacements of these neurons at the present time.

        Of neurons that no path takes to `radius` some variances are not told apart.
        """
        w, a, e, Z = self.w[of], self.a[of], self.e[of], self.mean.course.Z[self._k]
        eZ, wZ = e @ Z, w @ Z
        eZe, wZw, wZe, trace = _dot(eZ, e), _dot(wZ, w), _dot(wZ, e), float(Z.trace())
        fast_along = a**2 * eZe + (eZe * wZw + wZe**2) / 4
        fast = a**2 * trace + (trace * wZw + _dot(wZ, wZ)) / 4
        slow_along, slow, contracted = (total[of].copy() for total in self._sums)
        u, uv = self._noise.total(w, a)
        slow, fast = slow + u, np.maximum(fast + uv, 0.0)
        near = self.size[of] + FAR * np.sqrt(slow + fast) > radius
        u, uv = self._noise.along(w[near], a[near], e[near])
        slow_along[near] += u
        fast_along[near] = np.maximum(fast_along[near] + uv, 0.0)
        return Law(
            size=self.size[of],
            slow_along=slow_along,
            slow_across=np.maximum(slow - slow_along, 0.0),
            fast_along=fast_along,
            fast_across=np.maximum(fast - fast_along, 0.0),
            third_along=2 * contracted**2 / np.maximum(self.size[of], 1e-300),
        )

    def _area(self, axes: FloatArray, rates: FloatArray) -> Two:
        """What the area of the path of z adds a step; `axes`: e_i sqrt(c_i), in columns."""
        forgets = 2 * rates - rates**2
        rho = np.outer(forgets, forgets) / (2 * (rates[:, None] + rates - np.outer(rates, rates)))
        a, theta = self.a, self.mean.target @ axes
        held = np.linalg.solve(self.A, axes)
        p, s, t = self.w @ axes, self.e @ axes, self.e @ held
        along = _dot(p**2 @ rho, s**2) - _dot((p * s) @ rho, p * s)
        along -= 2 * a * (_dot((p * theta) @ rho, s * t) - _dot((p * t) @ rho, s * theta))
        along += a**2 * ((t**2) @ (rho @ theta**2) - _dot((t * theta) @ rho, t * theta))
        ee, eh, hh = axes.T @ axes, axes.T @ held, held.T @ held
        trace = p**2 @ (rho @ np.diag(ee)) - _dot(p @ (rho * ee), p)
        trace -= 2 * a * (p @ (theta * (rho @ np.diag(eh)) - (rho * eh.T) @ theta))
        trace += a**2 * float(theta**2 @ rho @ np.diag(hh) - theta @ (rho * hh) @ theta)
        return along, trace

    def _contraction(self) -> Two:
        """What the fluctuation of the contraction adds a step."""
        path, k, x = self.mean.course, self._k, self.mean.data.samples
        lr, sigma = self.mean.dynamics.lr, self.mean.dynamics.sigma
        C, n = path.C[k], len(x)
        S = _dot(x @ C, x)
        kick = self.mean.dynamics.kick(x @ path.delta[k], S, S)
        Q = (x.T * (kick.square - sigma**2)) @ x / n
        scale = lr**2 / 2
        xw, xe = self.w @ x.T, self.e @ x.T
        contracted = self.w @ path.N[k]
        excess, cross, variance = self._memory_of_loss() if sigma > 0 else (0.0, np.zeros(n), 0.0)
        fourth = kick.fourth + 3 * excess * S**2
        Qw = self.w @ Q
        Qw_e, Qw_Qw = _dot(Qw, self.e), _dot(Qw, Qw)
        along = (xw**2 * xe**2) @ (fourth / n) + 2 * ((xw * xe) @ (cross / n)) * Qw_e
        along += variance * Qw_e**2 - _dot(contracted, self.e) ** 2
        trace = (xw**2) @ (fourth / n * np.sum(x**2, axis=1))
        trace += 2 * (xw * (Qw @ x.T)) @ (cross / n)
        trace += variance * Qw_Qw - _dot(contracted, contracted)
        return scale**2 * np.maximum(along, 0.0), scale**2 * np.maximum(trace, 0.0)

    def _memory_of_loss(self) -> tuple[float, FloatArray, float]:
        """The excess, and, with Y = (Delta - E[Delta | u])/(b ubar): E[r^2 Y] : (n,), E[Y^2]."""
        x, lr = self.mean.data.samples, self.mean.dynamics.lr
        noise = self.mean.dynamics.sigma**2
        A, C = self.A, self.mean.course.C[self._k]
        if self._k <= self._fit_ends:
            A, C = self._settled
        inverse = np.linalg.inv(A)
        ubar, CAC = float(np.sum(inverse * C)), C @ inverse @ C
        S = _dot(x @ C, x)
        s = _dot(x @ A, x)
        twice = _dot(x @ CAC, x)
        of_square, of_product, constant = (
            lr**2 * s - 2 * lr,
            2 * (lr - lr**2 * s),
            lr**2 * s * noise,
        )
        grows = float(np.mean(2 * of_square * (S * ubar + 2 * twice) + 3 * of_square**2 * S**2))
        added = np.mean(
            2 * constant * ubar + of_product**2 * noise * S + self._kurtosis * constant**2
            + 2 * of_square * constant * S
        )  # fmt: skip
        excess = -float(added) / grows - 1 if grows < 0 else math.inf
        self.excess = max(self.excess, excess)
        if math.isinf(excess):
            return 0.0, np.zeros(len(x)), 0.0
        fourth = 3 * (1 + excess) * S**2
        b = float(np.mean(constant)) / ubar
        change = of_square * fourth + (constant + noise * of_square - 2 * of_product * noise) * S
        change += self._kurtosis * constant * noise + b * ubar * excess * S
        square = of_square**2 * fourth + of_product**2 * noise * S + self._kurtosis * constant**2
        square += 2 * of_square * constant * S
        variance = float(np.mean(square)) - (b * ubar) ** 2 * excess
        return excess, change / (b * ubar), max(variance, 0.0) / (b * ubar) ** 2


def _dot(first: FloatArray, second: FloatArray) -> FloatArray:
    """The products of rows, (k,)."""
    return np.asarray(np.einsum("kr,kr->k", first, second))
