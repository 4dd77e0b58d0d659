"""Label noise finds the sparse solution of a diagonal network (HaoChen et al. 2021).

f(x) = <v v, x> has 100 coordinates and 40 samples of a target with five ones.  Noise on the label
of one sample, added to the full gradient, recovers the target; gradient descent (noise=none) and
Gaussian noise on the gradient (noise=gradient sigma=0.02) do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lnsim.base.config import key
from lnsim.experiments import _models
from lnsim.models.diagonal import Diagonal, diagonal_init
from lnsim.models.problem import Problem
from lnsim.run import quantities


@dataclass(frozen=True)
class Config(_models.ModelConfig):
    """The setting of HaoChen et al. on other draws of the data.

    Their loss is half of ours: lr 0.01 there is 0.005 here, and noise 0.01 on a gradient 0.02.
    """

    model: ClassVar[str] = quantities.DIAGONAL

    samples: int = key(40, "n, training samples")
    dim: int = key(100, "d, the input dimension")
    noise: str = key("label-k", _models.NOISE)
    law: str = key("gaussian", "of the label noise: rademacher, gaussian or uniform")
    lr: float = key(5e-3, "learning rate, eta in the paper")
    batch_size: int = key(0, "samples in a step; 0: all of them")
    drop_every: int = key(100_000, _models.DROPS)
    steps: int = key(300_000, "how long to train")
    record_every: int = key(1_000, "steps between records")
    nonzeros: int = key(5, "entries of theta* that are 1; the others are 0")
    form: str = key("square", "of beta: product (u v), difference (u^D - v^D) or square (v v)")
    power: int = key(2, "D of the difference")

    def make_problem(self) -> Problem:
        """See ModelConfig."""
        return _models.sparse_problem(self, self.nonzeros)

    def make_model(self) -> Diagonal:
        """See ModelConfig."""
        return diagonal_init(self.dim, self.scale, self.form, self.power)

    @property
    def parameters(self) -> int:
        """See ModelConfig."""
        return self.dim


EXPERIMENT = _models.experiment(
    "diagonal",
    "diagonal network: label noise finds the sparse solution",
    Config,
    ("haochen2021", "pillaudvivien2022"),
)
