"""Classification with label noise in the model that has the theory (the paper's Algorithm 1).

A two-layer linear network with an output for each class, under cross-entropy: with probability tau
a label is replaced by another class's each time it is drawn.  Norms shrink as under label noise on
numbers, and the test loss stays low where training on clean labels overfits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lnsim.base.config import key
from lnsim.experiments import _models
from lnsim.models.two_layer import Network, ntk_init
from lnsim.run import quantities


@dataclass(frozen=True)
class Config(_models.LayersConfig):
    """Ten classes, width and samples of the paper's figures."""

    model: ClassVar[str] = quantities.TWO_LAYER_ANY

    loss: str = key("cross-entropy", "squared, logistic or cross-entropy")
    noise: str = key("flips", _models.NOISE)
    steps: int = key(300_000, "how long to train")
    record_every: int = key(1_000, "steps between records")
    problem: str = key("classes", _models.PROBLEM)
    outputs: int = key(10, _models.OUTPUTS)
    width: int = key(1000, "m, neurons of a hidden layer")
    balance: float = key(0.0, "of the starts balanced and unbalanced: see ntk_init")

    def make_model(self) -> Network:
        """See ModelConfig."""
        return ntk_init(
            self.width,
            self.dim,
            self.seed,
            outputs=self.outputs,
            start=self.start,
            scale=self.scale,
            balance=self.balance,
        )

    @property
    def parameters(self) -> int:
        """See ModelConfig."""
        rank = min(self.samples, self.dim) + self.outputs
        return min(self.width, rank) * rank


EXPERIMENT = _models.experiment(
    "two-layer",
    "linear network: classes under label flips (Algorithm 1)",
    Config,
    ("zhang2026", "reduction"),
)
