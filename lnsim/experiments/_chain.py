"""The dynamics that the two oscillation experiments share: the chain of the second layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lnsim.base.config import key
from lnsim.dynamics import Oscillation
from lnsim.experiments._synthetic import LinearConfig


@dataclass(frozen=True)
class ChainConfig(LinearConfig):
    """The setting of Lemma 4.  The default `amplitude` is lr^(1/4).

    A chain at 0 at one even step is at 0 at every even step: only an odd `record_every` shows it
    move.
    """

    reduces: ClassVar[bool] = False

    amplitude: float = key(math.nan, "|a_i| while it oscillates; left out, lr^(1/4)")

    def __post_init__(self) -> None:
        if math.isnan(self.amplitude) and self.lr > 0:
            object.__setattr__(self, "amplitude", math.sqrt(math.sqrt(self.lr)))


def oscillation(config: ChainConfig) -> Oscillation:
    """The dynamics.  Raises ValueError for lr or amplitude <= 0."""
    return Oscillation(config.lr, config.amplitude)
