"""A rule of the user's own; simulation/custom.py takes its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.dynamics.base import Dynamics
from lnsim.dynamics.noise import Noise


@dataclass(frozen=True, repr=False)
class CustomDynamics(Dynamics):
    """A rule of your own: step(W, a, X, y, t) -> (W, a), float64 arrays, all of it in NumPy.

    W : (p, r) and a : (p,) are the weights at step `t`, the step's to change; X : (B, r) and
    y : (B,) its samples and their labels, noise included, from the same draws as SGD's.  The rule
    must depend on its arguments alone.  With `memory` = K > 0 it keeps K more copies of the
    weights' shapes, zero at the start: step(W, a, X, y, t, V_W, V_a) -> (W, a, V_W, V_a) with
    V_W : (K, p, r), V_a : (K, p).

    For another model, loss or noise it is step(*parameters, X, y, t) -> parameters, with y : (B, C)
    what the loss compares with, without `memory`, and trains dense.

    It is reduced where a check finds that it may be (custom.py), and trains the dense network where
    not: `provenance["reduced"]` of the trajectory names the sides that were.  A `step` compiled by
    numba.njit runs from a compiled loop.  A run is resumed by the name of its `step`, or by its
    repr if it has none: as a dataclass with __call__ it carries its numbers there.

    Raises TypeError for a `step` that is no function, ValueError for values out of range.
    """

    step: Callable[..., Any]
    noise: Noise | tuple[Noise, ...] | None = None
    batch_size: int = 1
    memory: int = 0

    ranges: ClassVar = {}
    kernel: ClassVar = "custom"
    equivariant: ClassVar = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.step):
            raise TypeError(f"step must be a function, got {self.step!r}")
        checks.integer("memory", self.memory, 0)

    def buffers(self, W: FloatArray, a: FloatArray) -> dict[str, FloatArray]:
        """`memory` copies of both layers' shapes, zero at the start."""
        if self.memory == 0:
            return {}
        return {
            "W_velocity": np.zeros((len(W), self.memory, *W.shape[1:])),
            "a_velocity": np.zeros((len(a), self.memory, *a.shape[1:])),
        }

    def __repr__(self) -> str:
        name = getattr(self.step, "__qualname__", None) or repr(self.step)
        return (
            f"CustomDynamics(step={name}, noise={self.noise!r}, "
            f"batch_size={self.batch_size}, memory={self.memory})"
        )
