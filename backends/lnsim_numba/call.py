"""The arguments of an engine's call, in the form that the kernels take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim.backend import State
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics
from lnsim.models.problem import Problem
from lnsim.models.twin import Twin

Numbers = NDArray[np.intp]
"""Indices of replicas."""


def scalars(*names: str) -> np.dtype[np.void]:
    """The dtype of the record in which a kernel takes these scalars of a dynamics, as float64."""
    return np.dtype([(name, np.float64) for name in names])


def rates(dynamics: Dynamics, replicas: int, kind: np.dtype[np.void]) -> NDArray[np.void]:
    """The scalars of every replica, (S,), as records of a dtype made by `scalars`.

    A scalar that the dynamics lacks is 0; one that the record lacks is left out.
    """
    records = np.zeros(replicas, dtype=kind)
    for name, value in dynamics.scalars().items():
        if name in (kind.names or ()):
            records[name] = value
    return records


@dataclass(frozen=True)
class Call:
    """The arguments of LinearEngine.advance."""

    state: State
    problem: Problem
    dynamics: Dynamics
    words: NDArray[np.uint64]
    first_step: int
    rows: FloatArray | None
    twin: Twin | None

    def rates(self, kind: np.dtype[np.void]) -> NDArray[np.void]:
        """See `rates`."""
        return rates(self.dynamics, len(self.words), kind)

    @cached_property
    def noise(self) -> FloatArray | None:
        """Unit label noise, (S, T, draws); None for Rademacher signs, which are bits of words."""
        noise = self.dynamics.label_noise
        if noise is None or noise.law == "rademacher":
            return None
        return streams.unit_noise(self.words, noise.law)

    @property
    def data(self) -> tuple[Any, ...]:
        """The problem (common.py)."""
        problem = self.problem
        return problem.X, problem.y, problem.gram, problem.moment, problem.square
