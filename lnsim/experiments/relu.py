"""The two phases of label noise in a network that is not linear.

A two-layer ReLU network with few samples of a linear target: under label noise the neurons leave
the lazy regime, their norms shrink, they turn towards the target, and the test loss falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lnsim.base.config import key
from lnsim.experiments import _models
from lnsim.models.relu import ReLUNetwork, relu_init
from lnsim.run import quantities


@dataclass(frozen=True)
class Config(_models.LayersConfig):
    """A hundred neurons, 40 samples, a target of norm 1."""

    model: ClassVar[str] = quantities.RELU

    samples: int = key(40, "n, training samples")
    dim: int = key(10, "d, the input dimension")
    lr: float = key(5e-3, "learning rate, eta in the paper")
    steps: int = key(1_000_000, "how long to train")
    record_every: int = key(2_000, "steps between records")
    theta_norm: float = key(1.0, "|theta*| to scale a regression's labels to; 0: as drawn")
    activation: str = key("relu", "relu or erf")
    balance: float = key(0.0, "of the starts balanced and unbalanced: see ntk_init")

    def make_model(self) -> ReLUNetwork:
        """See ModelConfig."""
        return relu_init(
            self.width,
            self.dim,
            self.seed,
            outputs=self.outputs,
            activation=self.activation,
            start=self.start,
            scale=self.scale,
            balance=self.balance,
        )

    @property
    def parameters(self) -> int:
        """See ModelConfig."""
        return self.width * (min(self.samples, self.dim) + self.outputs)


EXPERIMENT = _models.experiment(
    "relu", "ReLU or erf network: two phases under label noise", Config, ("zhang2026",)
)
