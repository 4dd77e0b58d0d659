"""First passage of many fluctuating paths through one radius, at the looks of the watch.

A path is the distance |D| of a neuron from its start.  D has a mean, a slow part, whose increments
are independent, and a fast part, which forgets.  Only two of its coordinates are kept: that along
the mean, which is normal, and the squared length across it, a sum of squares of many normals, whose
cube root is nearly normal (Wilson, Hilferty 1931).  With the mean square T and k degrees of freedom

    |D_across|^2 = T (1 - h + sqrt(h) g)^3,   h = 2/(9 k),   g normal.

g has a slow part, in proportion to the slow mean square, and a fast one.  So four normal sequences
describe a path.

The watch sees a path at its looks only.  The first look at which |D| exceeds the radius gives the
passage, between it and the look before, by linear interpolation of |D|, as in simulation/watch.py.

The median over the noise is a sum over NODES fixed paths, the same for every neuron: at each look
each of the four normals takes every quantile (j + 1/2)/NODES once, in an order of its own (a Latin
hypercube).  No number depends on when or where it is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray

NODES = 512
"""Paths.  Other orders of the quantiles move a neuron's median by 1.5/sqrt(NODES) of the standard
deviation between runs (measured), the same way for many neurons."""

FAR = 5.0
"""Standard deviations from the radius at which no path of a neuron passes."""


@dataclass(frozen=True)
class Law:
    """The law of D at one time, for k neurons; squares of lengths, each (k,)."""

    size: FloatArray  # |E[D]|
    slow_along: FloatArray  # variance along E[D] of what has accumulated
    slow_across: FloatArray  # mean square across it
    fast_along: FloatArray
    fast_across: FloatArray
    third_along: FloatArray  # third cumulant of what has accumulated along E[D]

    @property
    def mean_square(self) -> FloatArray:
        """E|D|^2."""
        across = self.slow_across + self.fast_across
        return np.asarray(self.size**2 + self.slow_along + self.fast_along + across)

    def inside(self, radius: float, dimensions: int) -> FloatArray:
        """The probability that |D| is at most `radius`, (k,), without the third cumulant."""
        from scipy.special import ndtr  # a slow import

        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        spread = np.sqrt(np.maximum(self.slow_along + self.fast_along, 1e-300))[:, None]
        across = (self.slow_across + self.fast_across)[:, None] * _square(nodes, dimensions)
        room = radius**2 - across
        edge, size = np.sqrt(np.maximum(room, 0.0)), self.size[:, None]
        share = ndtr((edge - size) / spread) - ndtr((-edge - size) / spread)
        return np.asarray(np.where(room > 0, share, 0.0) @ (weights / weights.sum()))


class Watch:
    """The paths of `neurons` neurons, look by look; D has `dimensions` coordinates."""

    def __init__(self, neurons: int, radius: float, dimensions: int, seed: int = 0) -> None:
        from scipy.special import ndtri  # a slow import

        self.radius, self.dimensions = radius, dimensions
        self.passed = np.full((neurons, NODES), np.inf)
        self.waits = np.ones(neurons, dtype=bool)
        self._order = np.random.default_rng(seed)
        self._quantiles = ndtri((np.arange(NODES) + 0.5) / NODES)
        self._time = 0.0
        self._distance = np.zeros((neurons, NODES))
        self._along = np.zeros((neurons, NODES))
        self._across = np.zeros((neurons, NODES))
        self._slow_along = np.zeros(neurons)
        self._slow_across = np.zeros(neurons)
        self._fast = np.zeros((2, NODES))

    @property
    def waiting(self) -> NDArray[np.int64]:
        """The neurons of which no more than half of the paths have passed."""
        return np.flatnonzero(self.waits)

    def look(self, time: float, law: Law, memory: float) -> None:
        """A look at the neurons `waiting`, of law `law`; `memory`: that of the fast part."""
        for part in self._fast:
            part[:] = memory * part + math.sqrt(1 - memory**2) * self._normals()
        slow = self._normals(), self._normals()
        rows = self.waiting
        reach = law.size + FAR * np.sqrt(law.slow_along + law.fast_along)
        across = FAR**2 * (law.slow_across + law.fast_across)
        near = reach**2 + across > self.radius**2
        far = rows[~near]
        self._distance[far] = np.sqrt(law.mean_square[~near])[:, None]
        if near.any():
            self._move(time, law, rows, near, slow)
        self._time = time

    def median(self) -> FloatArray:
        """The median over the paths of the time of passage, infinite where it is later."""
        return np.asarray(np.median(self.passed, axis=1))

    def _move(
        self, time: float, law: Law, rows: NDArray[np.int64], near: NDArray[np.bool_],
        slow: tuple[FloatArray, FloatArray],
    ) -> None:  # fmt: skip
        at = rows[near]
        self._along[at] += _root(law.slow_along[near] - self._slow_along[at]) * slow[0]
        self._slow_along[at] = np.maximum(law.slow_along[near], self._slow_along[at])
        grown = law.slow_across[near] ** 2 - self._slow_across[at] ** 2
        self._across[at] += _root(grown) * slow[1]
        self._slow_across[at] = np.maximum(law.slow_across[near], self._slow_across[at])
        accumulated = self._slow_across[at]
        total = accumulated + law.fast_across[near]
        fast = _root(total**2 - accumulated**2) * self._fast[1]
        g = (self._across[at] + fast) / np.maximum(total, 1e-300)[:, None]
        square = total[:, None] * _square(g, self.dimensions)
        along = (
            law.size[near, None]
            + self._skewed(at, law.third_along[near])
            + _root(law.fast_along[near]) * self._fast[0]
        )
        distance, before = np.sqrt(along**2 + square), self._distance[at]
        passed = self.passed[at]
        new = (distance > self.radius) & np.isinf(passed)
        share = (self.radius - before[new]) / (distance[new] - before[new])
        passed[new] = self._time + (time - self._time) * np.clip(share, 0.0, 1.0)
        self.passed[at] = passed
        self._distance[at] = distance
        self.waits[at] = np.isfinite(passed).sum(axis=1) <= NODES // 2

    def _skewed(self, at: NDArray[np.int64], third: FloatArray) -> FloatArray:
        """The accumulated normal variables, given their third cumulant (Cornish, Fisher 1938)."""
        variance = np.maximum(self._slow_along[at], 1e-300)[:, None]
        return (
            self._along[at] + third[:, None] / variance * (self._along[at] ** 2 / variance - 1) / 6
        )

    def _normals(self) -> FloatArray:
        return np.asarray(self._quantiles[self._order.permutation(NODES)])


def _root(variance: FloatArray) -> FloatArray:
    return np.sqrt(np.maximum(variance, 0.0))[:, None]


def _square(g: FloatArray, dimensions: int) -> FloatArray:
    """|D_across|^2 over its mean, of normal scores g."""
    if dimensions < 2:
        return np.zeros_like(g)
    h = 2 / (9 * (dimensions - 1))
    return np.asarray(np.maximum(1 - h + math.sqrt(h) * g, 0.0) ** 3)
