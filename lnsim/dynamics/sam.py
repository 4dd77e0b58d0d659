"""Sharpness-aware minimisation: the gradient of weights moved along their own gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

from lnsim.base.checks import Scalar
from lnsim.dynamics.base import Dynamics
from lnsim.dynamics.noise import LabelNoise


@dataclass(frozen=True)
class SAM(Dynamics):
    """Sharpness-aware minimisation: theta <- theta - lr grad(theta + rho grad(theta) / |grad|).

    Both gradients are of the same batch with the same labels; `batch_size=0` takes all samples.
    `rho` >= 0 (the paper leaves it open), `lr` and the noise's sigma may be arrays of one value
    per replica.  Raises ValueError for values out of range.
    """

    lr: Scalar
    rho: Scalar
    noise: LabelNoise | None = None
    batch_size: int = 1

    ranges: ClassVar = {"lr": {"above": 0.0}, "rho": {"least": 0.0}}
    kernel: ClassVar = "descent"
    equivariant: ClassVar = True
    has_twin: ClassVar = True

    def off(self) -> Dynamics:
        """Plain SGD on the same draws: rho = 0 and no label noise."""
        return replace(cast(SAM, super().off()), rho=0.0)
