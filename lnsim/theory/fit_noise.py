"""What noise does to the network while the labels are fitted, to the first order in the noise.

Write M(t) = M(0) G(t) (I + X), G the mean course (course.py).  A step multiplies M by I - lr S(g)
from the right, and in the mean pulls by pbar = Sigma delta, so

    dX/dt = -lr [X, S(pbar)] - lr S(Sigma delta') + noise,   noise = -lr S(g - pbar).

Of the pull, what holds theta against the contraction of G, (lr/2) A^-1 (N + tr N) theta, is left
out of the commutator, as the contraction is: both are of second order in lr, last for good, and
together leave next to nothing.

X is a boost and a rotation of the inputs, X = S(z) + diag(R, 0), R^T = -R.  The predictor moves by
delta' = A z - R theta, as R turns W and so theta, and [S(z), S(p)] = diag(z p^T - p z^T, 0),
[diag(R, 0), S(p)] = S(R p).  Hence

    dz/dt = -lr (Sigma A z - Sigma R theta + R pbar) + noise,
    dR/dt = -lr (z pbar^T - pbar z^T).

z forgets, but R keeps what it has when the labels are fitted: a kick and the pull of the labels do
not commute.  z then follows R at hold = A^-1 (R theta - Sigma^-1 R pbar), by which theta stays.
The displacement w_i R + a_i z of a neuron so has a slow part u = w_i R + a_i hold, and a fast one,
v = a_i (z - hold), whose square is known: a_i^2 Z with the Z of the course.

Noise is white, of covariance lr^2 (N - pbar pbar^T) a step.  It enters at some nodes in time, in r
directions at each, with the weight of the time that the node stands for; every source is followed
to the end of the fit.

The mean of theta beyond that of M(0) G, to the second order in z, E = E[theta] - theta:

    dE/dt = -lr A Sigma E - lr (Z A Sigma theta + tr(Sigma A Z) theta + 2 Sigma A Z theta)
            - lr A_2 Sigma delta + (lr^2/2) (3 N theta + tr(N) theta),
    A_2 = q Z + (Z P + P Z)/2 + tr(P Z) + q tr Z + theta zbar^T + zbar theta^T + 2 theta.zbar,
    A zbar = E - (3 Z + tr Z) theta/2,

the mean of A' Sigma delta' for the A' of first order, that of A_2, and what a step adds in second
order, lr^2 (theta.g) g, less what G contracts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory import course
from lnsim.theory.axes import Data, scaled
from lnsim.theory.course import Course

SOURCES = 20
"""Nodes in time at which noise enters, at most."""
NUMBERS = 8_000_000
"""Numbers of all sources' rotations, which bounds the nodes where there are many inputs."""
LAST_SOURCE = 0.3
"""Share of the fit after which noise no longer meets a pull that matters (exp(-6))."""
KEPT = 1e-4
"""Share of the sources' squares left out once the fit is over."""


@dataclass(frozen=True)
class State:
    """The sources at one time: K of them, in the principal axes."""

    R: FloatArray  # (K, r, r)
    hold: FloatArray  # (K, r)
    fast: FloatArray  # z - hold, (K, r)

    @cached_property
    def turn(self) -> FloatArray:
        """R above the diagonal, (K, r (r - 1)/2)."""
        i, j = np.triu_indices(self.R.shape[1], 1)
        return np.ascontiguousarray(self.R[:, i, j])

    @property
    def square(self) -> FloatArray:
        """E[R R^T], (r, r)."""
        return self._products[0]

    def total(self, w: FloatArray, a: FloatArray) -> tuple[FloatArray, FloatArray]:
        """E|u|^2 and 2 E[u.v] of neurons w : (k, r), a : (k,)."""
        square, R_hold, R_fast = self._products
        slow = np.einsum("ki,ki->k", w @ square, w) + 2 * a * (w @ R_hold)
        slow = slow + a**2 * np.sum(self.hold**2)
        return slow, 2 * a * (w @ R_fast) + 2 * a**2 * np.sum(self.hold * self.fast)

    def along(
        self, w: FloatArray, a: FloatArray, e: FloatArray, block: int = 512
    ) -> tuple[FloatArray, FloatArray]:
        """E[(u.e)^2] and 2 E[(u.e) (v.e)], for a direction e : (k, r) of each neuron."""
        i, j = np.triu_indices(w.shape[1], 1)
        slow, both = np.empty(len(w)), np.empty(len(w))
        for first in range(0, len(w), block):
            at = slice(first, first + block)
            b, c = w[at], e[at]
            turned = (b[:, i] * c[:, j] - b[:, j] * c[:, i]) @ self.turn.T
            u = turned + a[at, None] * (c @ self.hold.T)
            v = a[at, None] * (c @ self.fast.T)
            slow[at] = np.einsum("ks,ks->k", u, u)
            both[at] = 2 * np.einsum("ks,ks->k", u, v)
        return slow, both

    def fewer(self) -> State:
        """The same squares to a share KEPT from as few sources as possible."""
        features = np.hstack([self.turn, self.hold, self.fast])
        _, size, axes = np.linalg.svd(features, full_matrices=False)
        missing = np.cumsum(size[::-1] ** 2)[::-1]
        count = max(1, int(np.sum(missing > KEPT * missing[0])))
        pairs, rank = self.turn.shape[1], self.hold.shape[1]
        turn, hold, fast = np.split(
            size[:count, None] * axes[:count], [pairs, pairs + rank], axis=1
        )
        R = np.zeros((count, rank, rank))
        i, j = np.triu_indices(rank, 1)
        R[:, i, j], R[:, j, i] = turn, -turn
        return State(R, hold, fast)

    @cached_property
    def _products(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """E[R R^T], E[R hold], E[R (z - hold)]; R^T = -R."""
        flat = self.R.reshape(-1, self.R.shape[2])
        return flat.T @ flat, -(self.hold.ravel() @ flat), -(self.fast.ravel() @ flat)


@dataclass(frozen=True)
class Fit:
    """The course of the fit at `path.times`, in which the noise is followed."""

    data: Data
    target: FloatArray
    lr: float
    path: Course  # from time 0 to the end of the fit
    gram: FloatArray  # M(0)^T M(0)

    def states(self) -> Iterator[State]:
        """The sources at each time of the path but the first."""
        path, lr, rank = self.path, self.lr, len(self.target)
        spectrum, times = self.data.spectrum, path.times
        mean = path.delta * spectrum
        A, _, _ = self._tangents()
        pull = np.stack([self._pull(k, A[k]) for k in range(len(times))])
        enters = self._entrances()
        weights = _weights(times[enters])
        z, R = np.zeros((0, rank)), np.zeros((0, rank, rank))
        for k in range(len(times) - 1):
            if k in enters:
                noise = path.N[k] - np.outer(mean[k], mean[k])
                size, axes = np.linalg.eigh(noise)
                strength = lr**2 * weights[enters.index(k)] * np.maximum(size, 0.0)
                z = np.vstack([z, np.sqrt(strength)[:, None] * axes.T])
                R = np.concatenate([R, np.zeros((rank, rank, rank))])
            step, tangent = times[k + 1] - times[k], (A[k] + A[k + 1]) / 2
            p = (pull[k] + pull[k + 1]) / 2
            theta = self.target + (path.delta[k] + path.delta[k + 1]) / 2
            decay, integral = self._decay(tangent, step)
            hold = self._hold(R, tangent, theta, p)
            away = z - hold
            z = hold + away @ decay.T
            moved = step * hold + away @ integral.T
            R = R - lr * (moved[:, :, None] * p - p[:, None] * moved[:, None, :])
            theta = self.target + path.delta[k + 1]
            hold = self._hold(R, A[k + 1], theta, pull[k + 1])
            yield State(R, hold, z - hold)

    def zbar(self) -> FloatArray:
        """E[z] about M(0) G at each time of the path, (T, r)."""
        path, lr, rank = self.path, self.lr, len(self.target)
        spectrum = self.data.spectrum
        A, P, q = self._tangents()
        excess, zbar = np.zeros(rank), np.zeros((len(path.times), rank))
        for k in range(1, len(path.times)):
            step = path.times[k] - path.times[k - 1]
            theta, Z, delta = self.target + path.delta[k], path.Z[k], path.delta[k]
            pull = spectrum * delta
            N = path.N[k] - np.outer(pull, pull)
            SAZ, trace = spectrum[:, None] * (A[k] @ Z), float(Z.trace())
            before = zbar[k - 1]
            quadratic = q[k] * Z + (Z @ P[k] + P[k] @ Z) / 2
            scalar = float(np.sum(P[k] * Z)) + q[k] * trace + 2 * float(theta @ before)
            pulled = quadratic @ pull + scalar * pull
            pulled = pulled + theta * float(before @ pull) + before * float(theta @ pull)
            source = -lr * (SAZ.T @ theta + float(SAZ.trace()) * theta + 2 * SAZ @ theta + pulled)
            source = source + lr**2 / 2 * (3 * N @ theta + float(N.trace()) * theta)
            decay, integral = self._decay(A[k], step)
            # A Sigma is the transpose of Sigma A.
            excess = decay.T @ excess + integral.T @ source
            zbar[k] = np.linalg.solve(A[k], excess - (3 * Z @ theta + trace * theta) / 2)
        return zbar

    def _tangents(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """A, P : (T, r, r) and q : (T,) of M(0) G."""
        P, q, _ = course.moments(self.gram, self.path.G)
        return P + q[:, None, None] * np.eye(len(self.target)), P, q

    def _decay(self, A: FloatArray, step: float) -> tuple[FloatArray, FloatArray]:
        """exp(-lr Sigma A step), and its integral from 0 to `step`."""
        root = self.data.root
        alpha, U = np.linalg.eigh(scaled(A, root))
        rates = self.lr * np.maximum(alpha, 1e-12 * alpha[-1])
        left, right = root[:, None] * U, U.T / root
        decayed = np.exp(-rates * step)
        return (left * decayed) @ right, (left * (-np.expm1(-rates * step) / rates)) @ right

    def _pull(self, k: int, A: FloatArray) -> FloatArray:
        """Sigma delta at the k-th time, less what holds theta against the contraction."""
        theta, N = self.target + self.path.delta[k], self.path.N[k]
        contracted = N @ theta + float(N.trace()) * theta
        against = self.lr / 2 * np.linalg.solve(A, contracted)
        return np.asarray(self.data.spectrum * self.path.delta[k] + against)

    def _hold(self, R: FloatArray, A: FloatArray, theta: FloatArray, p: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.solve(A, (R @ theta - (R @ p) / self.data.spectrum).T).T)

    def _entrances(self) -> list[int]:
        """The numbers of the times at which noise enters."""
        times, rank = self.path.times, len(self.target)
        count = int(np.clip(NUMBERS // max(rank, 1) ** 3, 4, SOURCES))
        last = max(times[1], LAST_SOURCE * times[-1])
        wanted = np.append(0.0, np.geomspace(times[1], last, count - 1))
        places = np.searchsorted(times, wanted * (1 - 1e-9))
        return sorted({int(k) for k in places if k < len(times) - 1})


def _weights(times: FloatArray) -> FloatArray:
    """The weights of the trapezoidal rule, (k,)."""
    gaps = np.diff(times)
    return np.append(gaps, 0.0) / 2 + np.append(0.0, gaps) / 2
