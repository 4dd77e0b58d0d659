"""What every dynamics says of itself: its scalars, draws, start, symmetry and kernel.

To add a dynamics, write a frozen dataclass of `Dynamics` in a file of its own and a kernel for it:
an entry in the table KERNELS of a backend, under the name that the dynamics gives as `kernel`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, field, fields, replace
from typing import Any, ClassVar, cast

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray, Scalar
from lnsim.dynamics.noise import LabelNoise, Noise, ParameterNoise, check_noises
from lnsim.theory import kicks

FULL_BATCH = 0
"""As a batch size: all n samples, each once."""


def later(default: Any) -> Any:
    """A field that came after the first files were written: repr has it where it is not `default`.

    Runs are resumed by the repr of their dynamics.
    """
    return field(default=default, metadata={"later": True})


class Schedule(ABC):
    """What `simulate` trains by: it names a dynamics for every step."""

    general: bool = False
    """Whether only the kernels for any model can train by it, not those of the scalar network."""

    @abstractmethod
    def at(self, step: int) -> tuple[Dynamics, int]:
        """The dynamics of `step`, and the step before which it does not change."""

    def check_replicas(self, replicas: int) -> None:
        """Raises ValueError unless every scalar has one value, or one for each replica."""
        self.at(0)[0].check_replicas(replicas)

    def kicks(self) -> kicks.Dynamics:
        """What its steps do in the mean, for lnsim.theory.  Raises ValueError if none is derived.

        A dynamics whose steps the theory covers overrides it.
        """
        raise ValueError(f"no theory is derived for {type(self).__name__}")

    def factors(self, first_step: int, count: int) -> tuple[FloatArray | None, FloatArray | None]:
        """What lr and the noise are multiplied by at each of `count` steps, where they change.

        Of shape (count,), or (S, count) for a factor of each replica; None: by 1.
        """
        return None, None


class Dynamics(Schedule):
    """One rule for every step.  A subclass is a frozen dataclass, and sets `ranges` and `kernel`.

    A subclass has the fields that `ranges` names.  It may have `noise` and `batch_size` as fields
    or class variables.  Its fields are checked when it is made: ValueError for values out of range,
    TypeError for the wrong type.
    """

    noise: Noise | tuple[Noise, ...] | None = None
    batch_size: int = 1
    replacement: bool = True
    memory: int = 0
    """Buffers of the weights' shapes that a rule of the user's own keeps (custom.py)."""
    normalized: bool = True
    layers: str = "both"
    through: str = "both"
    """How SAM moves the weights (sam.py)."""

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
        for name in ("replacement", "normalized"):
            checks.flag(name, getattr(self, name))
        noises = check_noises(self.noise)
        if isinstance(self.noise, tuple):
            object.__setattr__(
                self, "noise", noises if len(noises) > 1 else next(iter(noises), None)
            )
        label_noise = self.label_noise
        if label_noise is not None and label_noise.labels is not None and self.batch_size:
            raise ValueError(
                f"batch_size must be 0 for noise on {label_noise.labels} labels of the full batch,"
                f" got {self.batch_size}"
            )

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in _shown(self))
        return f"{type(self).__name__}({shown})"

    @property
    def noises(self) -> tuple[Noise, ...]:
        """The noises of a step."""
        return check_noises(self.noise)

    @property
    def label_noise(self) -> LabelNoise | None:
        """The LabelNoise among the noises, if there is one."""
        return next((noise for noise in self.noises if isinstance(noise, LabelNoise)), None)

    @property
    def parameter_noise(self) -> ParameterNoise | None:
        """The ParameterNoise among the noises, if there is one."""
        return next((noise for noise in self.noises if isinstance(noise, ParameterNoise)), None)

    @property
    def general(self) -> bool:  # type: ignore[override]
        """With noise of other kinds than plain LabelNoise, or samples drawn without replacement."""
        plain = self.label_noise is None or self.label_noise.labels is None
        return not (plain and self.replacement and self.noises in ((), (self.label_noise,)))

    def scalars(self) -> dict[str, Scalar]:
        """What a kernel computes with, by name: the scalars and the label noise's sigma, if any."""
        values = {name: getattr(self, name) for name in self.ranges}
        noise = self.label_noise
        return values if noise is None else values | {"sigma": noise.sigma}

    def check_replicas(self, replicas: int) -> None:
        """Raises ValueError unless every scalar has one value, or one for each replica."""
        for name, value in self.scalars().items():
            checks.per_replica(name, value, replicas)
        for noise in self.noises:
            checks.per_replica(noise.strength, noise.scalar, replicas)

    def _plain(self) -> tuple[float, float, str]:
        """lr, sigma and the law of its label noise, for `kicks`, if that is its only noise."""
        if self.general or any(np.ndim(value) > 0 for value in self.scalars().values()):
            raise ValueError(
                "theory is derived for one lr and plain label noise on samples drawn with"
                f" replacement, got {self!r}"
            )
        noise = self.label_noise
        sigma, law = (0.0, "rademacher") if noise is None else (noise.sigma, noise.law)
        return float(np.asarray(self.scalars()["lr"])), float(np.asarray(sigma)), law

    def draws(self, samples: int, width: int) -> int:
        """Words of the training stream that one step uses, with n = `samples`, m = `width`."""
        if self.batch_size == FULL_BATCH:
            return 0 if self.noise is None else samples
        return self.batch_size

    def parts(self, batch: int) -> int:
        """The number of micro-batches of a batch, which SAM takes one by one."""
        return 1

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
        """The same steps on the same draws, without the noise."""
        return self.scaled(1.0, 0.0) if self.noises else self

    def scaled(self, lr: Scalar, noise: Scalar) -> Dynamics:
        """The same steps with the learning rate and the noises multiplied by these factors."""
        changes: dict[str, Any] = {}
        if np.any(lr != 1.0):
            if "lr" not in self.ranges:
                raise ValueError(f"a {type(self).__name__} has no lr to be scheduled")
            changes["lr"] = self.scalars()["lr"] * lr
        if self.noises:
            changes["noise"] = tuple(each.scaled(noise) for each in self.noises)
        return cast(Dynamics, replace(cast(Any, self), **changes))

    def at(self, step: int) -> tuple[Dynamics, int]:
        """The same at every step."""
        return self, sys.maxsize


def _shown(dynamics: Any) -> list[Field[Any]]:
    """The fields that repr has: all but those that came later and have their default."""
    return [
        f
        for f in fields(dynamics)
        if not f.metadata.get("later")
        or f.default is MISSING
        or getattr(dynamics, f.name) != f.default
    ]
