"""Sharpness-aware minimisation: the gradient of weights moved along their own gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import Scalar
from lnsim.dynamics.base import FULL_BATCH, Dynamics, later
from lnsim.dynamics.noise import Noise
from lnsim.theory import kicks

LAYERS = ("both", "first", "second")
THROUGH = ("both", "jacobian", "loss")


@dataclass(frozen=True, repr=False)
class SAM(Dynamics):
    """Sharpness-aware minimisation: theta <- theta - lr grad(theta + rho grad(theta) / |grad|).

    Foret et al. 2021.  With one sample a step it lowers tr H along the interpolators, as label
    noise does, and with all of them the largest eigenvalue of H (Wen, Ma, Li 2022).

    Both gradients are of the same batch with the same labels; `batch_size=0` takes all samples.
    `rho` >= 0 (the paper leaves it open), `lr` and the noises' strengths may be arrays of one value
    per replica.

    `normalized=False` moves by rho grad, of the loss's mean over the (micro-)batch (Andriushchenko
    and Flammarion 2022).  `micro_batch` = k moves the weights for every k samples of the batch by
    the gradient of these alone (m-SAM; k = 1 over the full batch is 1-SAM).  `layers`: "both", or
    "first" or "second" for moving that layer alone; of a deeper network all layers but the first
    count as the second.  `through`: the gradient at the moved weights is J^T g, J the derivative of
    the prediction and g that of the loss; "both" are taken there, or "loss", g alone, with J of the
    weights as they are, or "jacobian", J alone (Baek et al. 2024, arXiv 2405.03676).

    Raises ValueError for values out of range.
    """

    lr: Scalar
    rho: Scalar
    noise: Noise | tuple[Noise, ...] | None = None
    batch_size: int = 1
    normalized: bool = later(True)
    micro_batch: int | None = later(None)
    layers: str = later("both")
    through: str = later("both")
    replacement: bool = later(True)

    ranges: ClassVar = {"lr": {"above": 0.0}, "rho": {"least": 0.0}}
    kernel: ClassVar = "descent"
    equivariant: ClassVar = True
    has_twin: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("layers", self.layers, LAYERS)
        checks.choice("through", self.through, THROUGH)
        if self.micro_batch is not None:
            checks.integer("micro_batch", self.micro_batch, 1)
            if self.batch_size:
                self.parts(self.batch_size)

    @property
    def general(self) -> bool:  # type: ignore[override]
        """With any other form than the normalised one of whole batches."""
        plain = self.normalized and self.layers == self.through == "both"
        return super().general or not plain or self.micro_batch is not None

    def parts(self, batch: int) -> int:
        """The number of micro-batches of a batch.  Raises ValueError unless they divide it."""
        size = self.micro_batch or batch
        if batch % size:
            raise ValueError(f"micro_batch must divide the batch of {batch} samples, got {size}")
        return batch // size

    def kicks(self) -> kicks.Descent | kicks.Sharp | kicks.FullSharp:
        """See Dynamics.  Raises ValueError for batches of several samples, and for other forms."""
        lr, sigma, law = self._plain()
        rho = float(np.asarray(self.rho))
        if rho == 0.0:
            return kicks.Descent(lr, sigma, self.batch_size, law)
        if self.batch_size == 1:
            return kicks.Sharp(lr, rho, sigma, law)
        if self.batch_size == FULL_BATCH and sigma == 0.0:
            return kicks.FullSharp(lr, rho)
        raise ValueError(
            "theory is derived for SAM with one sample a step, or with all of them and sigma 0: got"
            f" batch_size {self.batch_size}"
        )

    def off(self) -> Dynamics:
        """Plain SGD on the same draws: rho = 0 and no label noise."""
        return replace(cast(SAM, super().off()), rho=0.0)
