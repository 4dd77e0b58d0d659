"""A rule that the user writes; simulation/custom.py takes its steps."""

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
    """A rule of your own: step(W, a, X, y, t) -> (W, a), on float64 NumPy arrays.

    W : (p, r) and a : (p,) are the weights at step `t`, which the rule may overwrite; X : (B, r)
    and y : (B,) are its samples and their labels, noise included, from the same draws as SGD's.
    The rule must depend on its arguments alone.  With `memory` = K > 0 it also has K buffers of
    the weights' shapes, zero at the start: step(W, a, X, y, t, V_W, V_a) -> (W, a, V_W, V_a) with
    V_W : (K, p, r), V_a : (K, p).

    For another model, loss, noise or schedule the rule is step(*parameters, X, y, t) -> parameters,
    where y : (B, C), or (B,) for an a : (m,), are the targets of the loss.  It has no `memory`, and
    trains the dense network.

    A run is reduced if a check finds that the rule allows it (simulation/custom.py), and dense if
    not: `provenance["reduced"]` of the trajectory names the sides that were reduced.  A `step`
    compiled by numba.njit runs in a compiled loop.  A resumed run compares the name of its `step`,
    or the repr if it has no name; that of a dataclass with __call__ contains its numbers.

    Raises TypeError for a `step` that is not callable, ValueError for values out of range.
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
        """`memory` buffers of each layer's shape, zero at the start."""
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
