"""Label noise: its size and its law."""

from __future__ import annotations

from dataclasses import dataclass

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import Scalar


@dataclass(frozen=True)
class LabelNoise:
    """Fresh noise on every label drawn: mean 0, standard deviation `sigma`.

    `law`: "rademacher" (+sigma or -sigma, the paper's), "gaussian" or "uniform" (on
    [-sqrt(3) sigma, sqrt(3) sigma]).  Raises ValueError for sigma < 0 or an unknown law.
    """

    sigma: Scalar
    law: str = "rademacher"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", checks.real("sigma", self.sigma, least=0.0))
        checks.choice("law", self.law, streams.LAWS)
