"""Schedules: which dynamics at which step, and how lr and the noise change along a run.

A `Factor` is a function of the step that multiplies the learning rate or the strength of the noise.
The piecewise constant one changes the dynamics at its boundaries, so that every kernel can train by
it; one that changes at every step is handed to the kernels for any model as numbers of every step.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray, Scalar
from lnsim.dynamics.base import Dynamics, Schedule


@dataclass(frozen=True)
class Alternating(Schedule):
    """`dynamics` for `period` steps, `dynamics.off()` for `period` steps, and so on.

    The draws of the steps it is off are consumed all the same.  Raises ValueError for period < 1.
    """

    dynamics: Dynamics
    period: int = 5000

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"dynamics must be SGD, GD, SAM, ... of lnsim, got {self.dynamics!r}")
        checks.integer("period", self.period, 1, checks.MOST_STEPS)

    @property
    def general(self) -> bool:  # type: ignore[override]
        """As the dynamics."""
        return self.dynamics.general

    def at(self, step: int) -> tuple[Dynamics, int]:
        """On in windows 0, 2, 4, ... of `period` steps."""
        window = step // self.period
        now = self.dynamics if window % 2 == 0 else self.dynamics.off()
        return now, (window + 1) * self.period


class Factor(ABC):
    """What something is multiplied by, step by step."""

    @abstractmethod
    def at(self, steps: NDArray[np.int64]) -> FloatArray:
        """The factor at each of `steps` : (T,), shape (T,) or, one for each replica, (S, T)."""


@dataclass(frozen=True)
class Piecewise(Factor):
    """values[k] from step boundaries[k-1] to before boundaries[k]; one value more than boundaries.

    A value is one number, or an array of one number per replica.  Raises ValueError for boundaries
    that do not ascend and values that are negative or of another count.
    """

    boundaries: tuple[int, ...]
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        boundaries = tuple(
            checks.integer("boundaries", step, 1, checks.MOST_STEPS) for step in self.boundaries
        )
        if any(b <= a for a, b in itertools.pairwise(boundaries)):
            raise ValueError(f"boundaries must ascend, got {boundaries}")
        if len(self.values) != len(boundaries) + 1:
            raise ValueError(
                f"values must be {len(boundaries) + 1} for {len(boundaries)} boundaries, got"
                f" {len(self.values)}"
            )
        object.__setattr__(self, "boundaries", boundaries)
        values = tuple(checks.real("values", value, least=0.0) for value in self.values)
        replicas = {np.size(value) for value in values if np.ndim(value)}
        if len(replicas) > 1:
            raise ValueError(f"values must be of as many replicas each, got {sorted(replicas)}")
        object.__setattr__(self, "values", values)

    def at(self, steps: NDArray[np.int64]) -> FloatArray:
        """See Factor."""
        values = np.array(np.broadcast_arrays(*self.values))
        return np.asarray(values[np.searchsorted(self.boundaries, steps, side="right")].T)

    def next_change(self, step: int) -> int:
        """The first boundary after `step`, or MOST_STEPS."""
        k = int(np.searchsorted(self.boundaries, step, side="right"))
        return self.boundaries[k] if k < len(self.boundaries) else checks.MOST_STEPS


@dataclass(frozen=True)
class WarmUp(Factor):
    """Linear from 1/steps at the first step to 1 at step `steps` - 1, then 1.

    `steps` >= 1 is one number, or an array of one number per replica.
    """

    steps: Scalar

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checks.real("steps", self.steps, least=1.0))

    def at(self, steps: NDArray[np.int64]) -> FloatArray:
        """See Factor."""
        return np.minimum(1.0, (steps + 1.0) / _column(self.steps))


@dataclass(frozen=True)
class Decay(Factor):
    """From 1 at step 0 to `end` at step `steps`, and `end` after it, along a curve.

    `curve`: "cosine" (half a period), "linear" or "exponential".  `steps` >= 1 and `end` are one
    number, or arrays of one number per replica.  Raises ValueError for `end` outside [0, 1], an end
    of 0 for "exponential", an unknown curve.
    """

    steps: Scalar
    end: Scalar = 0.0
    curve: str = "cosine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checks.real("steps", self.steps, least=1.0))
        checks.choice("curve", self.curve, ("cosine", "exponential", "linear"))
        end = checks.real("end", self.end, least=0.0)
        if np.any(np.asarray(end) > 1.0):
            raise ValueError(f"end must be at most 1, got {np.max(end):g}")
        if self.curve == "exponential" and np.any(np.asarray(end) == 0.0):
            raise ValueError("end must be above 0 for an exponential decay, got 0")
        object.__setattr__(self, "end", end)

    def at(self, steps: NDArray[np.int64]) -> FloatArray:
        """See Factor."""
        share, end = np.minimum(1.0, steps / _column(self.steps)), _column(self.end)
        if self.curve == "exponential":
            return np.asarray(end**share)
        if self.curve == "cosine":
            share = 0.5 - 0.5 * np.cos(np.pi * share)
        return np.asarray(1.0 - (1.0 - end) * share)


def _column(value: Scalar) -> Scalar:
    """One number, or the numbers of all replicas in a column, (S, 1)."""
    return value if isinstance(value, float) else np.reshape(value, (-1, 1))


@dataclass(frozen=True)
class Scheduled(Schedule):
    """`dynamics` with its learning rate and the strength of its noise multiplied by factors.

    `lr`, `noise`: a Factor or several, whose product is taken.  `dynamics` may be an Alternating.
    Raises TypeError for what is neither.
    """

    dynamics: Schedule
    lr: Factor | tuple[Factor, ...] = field(default=())
    noise: Factor | tuple[Factor, ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Schedule) or isinstance(self.dynamics, Scheduled):
            raise TypeError(f"dynamics must be SGD, GD, SAM, ... of lnsim, got {self.dynamics!r}")
        for name in ("lr", "noise"):
            factors: Any = getattr(self, name)
            factors = factors if isinstance(factors, tuple) else (factors,)
            for factor in factors:
                if not isinstance(factor, Factor):
                    raise TypeError(f"{name} must be Factors such as WarmUp, got {factor!r}")
            object.__setattr__(self, name, factors)
        base, _ = self.dynamics.at(0)
        if self.lr and "lr" not in base.ranges:
            raise ValueError(
                f"lr must be left out for a {type(base).__name__}, which has no learning rate"
            )
        # A number that is out of range is found here, not in the middle of a run.
        for step in (0, *(step for factor in self._piecewise for step in factor.boundaries)):
            base.scaled(*self._constant(step))

    def check_replicas(self, replicas: int) -> None:
        """Those of the dynamics, and every factor that has one value for each replica."""
        super().check_replicas(replicas)
        for name in ("lr", "noise"):
            for factor in getattr(self, name):
                values = factor.at(np.zeros(1, dtype=np.int64))
                if values.ndim == 2:
                    checks.per_replica(f"the factor of {name}", values[:, 0], replicas)

    @property
    def _piecewise(self) -> tuple[Piecewise, ...]:
        factors: Any = (*self.lr, *self.noise)  # type: ignore[misc]
        return tuple(factor for factor in factors if isinstance(factor, Piecewise))

    @property
    def general(self) -> bool:  # type: ignore[override]
        """Where a factor changes at every step, and for weight decay, which lr multiplies."""
        smooth = len(self._piecewise) < len(self.lr) + len(self.noise)  # type: ignore[arg-type]
        return smooth or self.dynamics.general or self.dynamics.at(0)[0].decays

    def at(self, step: int) -> tuple[Dynamics, int]:
        """With the factors that are piecewise constant, until the next of them changes."""
        dynamics, until = self.dynamics.at(step)
        until = min([until, *(factor.next_change(step) for factor in self._piecewise)])
        return dynamics.scaled(*self._constant(step)), until

    def _constant(self, step: int) -> tuple[Scalar, Scalar]:
        """The product of the factors that are piecewise constant, for lr and for the noise."""
        now = np.array([step])
        lr, noise = (_product(factors, now, True) for factors in (self.lr, self.noise))
        return _one(lr), _one(noise)

    def factors(self, first_step: int, count: int) -> tuple[FloatArray | None, FloatArray | None]:
        """The product of the factors that change at every step."""
        steps = np.arange(first_step, first_step + count)
        return _product(self.lr, steps, False), _product(self.noise, steps, False)


def _product(factors: Any, steps: NDArray[np.int64], piecewise: bool) -> FloatArray | None:
    """The product of the factors that are piecewise constant, or of the others; None for none."""
    product: FloatArray | None = None
    for factor in factors:
        if isinstance(factor, Piecewise) == piecewise:
            value = factor.at(steps)
            product = value if product is None else product * value
    return product


def _one(factor: FloatArray | None) -> Scalar:
    """A factor at one step, (1,) or (S, 1), as a scalar of a dynamics."""
    if factor is None:
        return 1.0
    return float(factor[0]) if factor.ndim == 1 else np.ascontiguousarray(factor[:, 0])
