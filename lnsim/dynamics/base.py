"""What every dynamics says of itself: its scalars, draws, start, symmetry and kernel.

To add a dynamics, write a frozen dataclass of `Dynamics` in a file of its own and a kernel for it:
an entry in the table KERNELS of a backend, under the name that the dynamics gives as `kernel`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, cast

from lnsim.base import checks
from lnsim.base.checks import FloatArray, Scalar
from lnsim.dynamics.noise import LabelNoise

FULL_BATCH = 0
"""As a batch size: all n samples, each once."""


class Schedule(ABC):
    """What `simulate` trains by: it names a dynamics for every step."""

    @abstractmethod
    def at(self, step: int) -> tuple[Dynamics, int]:
        """The dynamics of `step`, and the step before which it does not change."""


class Dynamics(Schedule):
    """One rule for every step.  A subclass is a frozen dataclass, and sets `ranges` and `kernel`.

    A subclass has the fields that `ranges` names.  It may have `noise` and `batch_size` as fields
    or class variables.  Its fields are checked when it is made: ValueError for values out of range,
    TypeError for the wrong type.
    """

    noise: LabelNoise | None = None
    batch_size: int = 1

    ranges: ClassVar[dict[str, dict[str, float]]]
    """The scalars, fields of one value or one per replica, by name: their bounds in checks.real."""
    kernel: ClassVar[str]
    """The name of its kernel in the tables of the engines."""
    equivariant: ClassVar[bool | None]
    """Whether a step commutes with rotations of the hidden layer (models/reduction.py).

    None: it is not known and found out by trying (simulation/custom.py).
    """
    has_twin: ClassVar[bool] = False
    """Whether its kernels train the linearised twin (models/twin.py) on the same draws."""

    def __post_init__(self) -> None:
        for name, bounds in self.ranges.items():
            object.__setattr__(self, name, checks.real(name, getattr(self, name), **bounds))
        checks.integer("batch_size", self.batch_size, 0, checks.MOST_ENTRIES)
        if self.noise is not None and not isinstance(self.noise, LabelNoise):
            raise TypeError(f"noise must be a LabelNoise or None, got {self.noise!r}")

    def scalars(self) -> dict[str, Scalar]:
        """What a kernel computes with, by name: the scalars and the label noise's sigma, if any."""
        values = {name: getattr(self, name) for name in self.ranges}
        return values if self.noise is None else values | {"sigma": self.noise.sigma}

    def check_replicas(self, replicas: int) -> None:
        """Raises ValueError unless every scalar has one value, or one for each replica."""
        for name, value in self.scalars().items():
            checks.per_replica(name, value, replicas)

    def draws(self, samples: int, width: int) -> int:
        """Words of the training stream that one step uses, with n = `samples`, m = `width`."""
        if self.batch_size == FULL_BATCH:
            return 0 if self.noise is None else samples
        return self.batch_size

    def start(self, a: FloatArray, seed: int | list[int]) -> FloatArray:
        """The second layer, (m,), that training starts from in place of the network's `a`."""
        return a

    def buffers(self, W: FloatArray, a: FloatArray) -> dict[str, FloatArray]:
        """What a step remembers besides the weights, at the start: fields of backend.State.

        W : (S, p, r), a : (S, p).
        """
        return {}

    @property
    def keeps_ledger(self) -> bool:
        """Whether every step moves a by -v and W by -a g^T with v = W g (models/ledger.py)."""
        return False

    @property
    def decays(self) -> bool:
        """Whether weights that have no gradient shrink."""
        return False

    def rest_scale(self, steps: int, replica: int) -> float:
        """What is left of a weight that has no gradient after `steps` steps, per unit of it."""
        return 1.0

    def off(self) -> Dynamics:
        """The same steps on the same draws, without the label noise."""
        if self.noise is None:
            return self
        return cast(Dynamics, replace(cast(Any, self), noise=replace(self.noise, sigma=0.0)))

    def at(self, step: int) -> tuple[Dynamics, int]:
        """The same at every step."""
        return self, sys.maxsize
