"""Schedules: which dynamics at which step."""

from __future__ import annotations

from dataclasses import dataclass

from lnsim.base import checks
from lnsim.dynamics.base import Dynamics, Schedule


@dataclass(frozen=True)
class Alternating(Schedule):
    """`dynamics` for `period` steps, `dynamics.off()` for `period` steps, and so on.

    The draws of the steps it is off are consumed all the same.  Raises ValueError for period < 1.
    """

    dynamics: Dynamics
    period: int = 5000

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"dynamics must be SGD, GD, SAM, ... of lnsim, got {self.dynamics!r}")
        checks.integer("period", self.period, 1, checks.MOST_STEPS)

    def at(self, step: int) -> tuple[Dynamics, int]:
        """On in windows 0, 2, 4, ... of `period` steps."""
        window = step // self.period
        now = self.dynamics if window % 2 == 0 else self.dynamics.off()
        return now, (window + 1) * self.period
