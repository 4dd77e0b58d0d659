"""Label noise makes a deep linear network forget directions that only noise in the data has.

The target has a few singular values, the data's labels have noise, and descent fits it with all
directions.  Label noise drives the small singular values of the predictor to zero, and the test
loss falls (stochastic collapse: Chen, Kunin, Yamamura, Ganguli 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lnsim.base import checks
from lnsim.base.config import key
from lnsim.experiments import _models
from lnsim.models.deep import DeepLinear, deep_init
from lnsim.run import quantities


@dataclass(frozen=True)
class Config(_models.LayersConfig):
    """Three layers, 16 inputs and outputs, a target of rank 4."""

    model: ClassVar[str] = quantities.DEEP

    samples: int = key(64, "n, training samples")
    dim: int = key(16, "d, the input dimension")
    data_noise: float = key(0.5, "deviation of the noise in a regression's labels, drawn once")
    sigma: float = key(4.0, "deviation of the noise on labels, gradient or parameters")
    lr: float = key(5e-3, "learning rate, eta in the paper")
    steps: int = key(200_000, "how long to train")
    drop_every: int = key(150_000, _models.DROPS)
    record_every: int = key(1_000, "steps between records")
    problem: str = key("low-rank", _models.PROBLEM)
    outputs: int = key(16, _models.OUTPUTS)
    orthonormal: bool = key(True, "whether a low-rank target's inputs have X^T X = n I")
    width: int = key(32, "m, neurons of a hidden layer")
    depth: int = key(3, "L, layers; one is the linear model itself")
    residual: bool = key(False, "whether hidden layers add their input to their output")

    def make_model(self) -> DeepLinear:
        """See ModelConfig."""
        depth = checks.integer("depth", self.depth, 1, checks.MOST_ENTRIES)
        return deep_init(
            self.dim,
            [self.width] * (depth - 1),
            self.outputs,
            self.seed,
            scale=self.scale,
            start=self.start,
            residual=self.residual,
        )

    @property
    def parameters(self) -> int:
        """See ModelConfig."""
        if self.depth == 1:
            return self.dim * self.outputs
        return self.width * (self.dim + self.outputs + self.width * max(self.depth - 2, 0))


EXPERIMENT = _models.experiment(
    "deep", "deep linear network: label noise keeps few directions", Config, ("chen2023",)
)
