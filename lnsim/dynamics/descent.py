"""Gradient descent, on drawn samples (SGD) or on all of them (GD).

With momentum mu and weight decay w (heavy ball; Polyak 1964, in the form of torch.optim.SGD), the
step of each layer is

    V <- mu V + grad + w (weights),     weights <- weights - lr V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lnsim.base.checks import FloatArray, Scalar
from lnsim.dynamics.base import FULL_BATCH, Dynamics, later
from lnsim.dynamics.noise import Noise
from lnsim.theory import kicks


@dataclass(frozen=True, repr=False)
class SGD(Dynamics):
    """Stochastic gradient descent on `batch_size` samples per step, with or without replacement.

    Without `replacement` every sample is drawn once before any is drawn again.  `lr`, `momentum` in
    [0, 1), `weight_decay` and the noise's sigma may be arrays of one value per replica.
    `batch_size=0` uses every sample once per step.  Raises ValueError for values out of range.
    """

    lr: Scalar
    noise: Noise | tuple[Noise, ...] | None = None
    batch_size: int = 1
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    replacement: bool = later(True)

    ranges: ClassVar = {
        "lr": {"above": 0.0},
        "momentum": {"least": 0.0},
        "weight_decay": {"least": 0.0},
    }
    kernel: ClassVar = "descent"
    equivariant: ClassVar = True
    has_twin: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.any(np.asarray(self.momentum) >= 1.0):
            raise ValueError(f"momentum must be below 1, got {self.momentum}")

    def buffers(self, W: FloatArray, a: FloatArray) -> dict[str, FloatArray]:
        """The velocities V of both layers if there is momentum, else an empty dict."""
        if not np.any(np.asarray(self.momentum) > 0.0):
            return {}
        return {"W_velocity": np.zeros_like(W), "a_velocity": np.zeros_like(a)}

    @property
    def keeps_ledger(self) -> bool:
        """True without momentum and weight decay."""
        return not np.any(np.add(self.momentum, self.weight_decay))

    def kicks(self) -> kicks.Descent:
        """See Dynamics.  Raises ValueError with momentum, weight decay, or other noise."""
        if np.any(np.add(self.momentum, self.weight_decay)):
            raise ValueError(
                f"no theory is derived for momentum {self.momentum} and weight decay"
                f" {self.weight_decay}: both must be 0"
            )
        lr, sigma, law = self._plain()
        return kicks.Descent(lr, sigma, self.batch_size, law)

    @property
    def decays(self) -> bool:
        """True with weight decay."""
        return bool(np.any(self.weight_decay))

    def rest_scale(self, steps: int, replica: int) -> float:
        """The factor by which weight decay alone scales a weight in this number of steps.

        It follows the recursion above without the gradient, which is linear in (weights, V).  One
        matrix power gives all steps, so that the result does not depend on how they are split.
        """
        lr, momentum, decay = (
            float(value if np.ndim(value) == 0 else np.asarray(value)[replica])
            for value in (self.lr, self.momentum, self.weight_decay)
        )
        step = np.array([[1.0 - lr * decay, -lr * momentum], [decay, momentum]])
        return float(np.linalg.matrix_power(step, steps)[0, 0])


@dataclass(frozen=True, repr=False)
class GD(Dynamics):
    """Gradient descent on all samples; `noise`, if any, is drawn anew for every label and step.

    `lr` and the noise's sigma may be arrays of one value per replica.  Raises ValueError for values
    out of range.
    """

    lr: Scalar
    noise: Noise | tuple[Noise, ...] | None = None
    batch_size: ClassVar[int] = FULL_BATCH  # type: ignore[misc]

    ranges: ClassVar = {"lr": {"above": 0.0}}
    kernel: ClassVar = "descent"
    equivariant: ClassVar = True
    has_twin: ClassVar = True

    def kicks(self) -> kicks.Descent:
        """See Dynamics.  Raises ValueError with other noise than plain label noise."""
        lr, sigma, law = self._plain()
        return kicks.Descent(lr, sigma, FULL_BATCH, law)

    @property
    def keeps_ledger(self) -> bool:
        """Always true."""
        return True
