"""A run as plain data: the recorded arrays, its ending, and the state to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import DIVERGED_ABOVE


class Ending(StrEnum):
    """The ways in which a run can end; files hold these words."""

    OK = "OK"
    DIVERGED = "DIVERGED"
    STOPPED = "STOPPED"


MESSAGES = {
    Ending.OK: "finished after {step} steps",
    Ending.DIVERGED: "diverged at step {step}: a loss or a residual is not finite, or its square"
    f" is above {DIVERGED_ABOVE:g}",
    Ending.STOPPED: "stopped at step {step} before its end",
}


@dataclass(frozen=True)
class Status:
    """The ending of a run: `code` is an Ending or its word, `step` the step of the end.

    Raises ValueError for any other word.
    """

    code: Ending
    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", Ending(self.code))

    def __str__(self) -> str:
        return MESSAGES[self.code].format(step=self.step)


@dataclass(frozen=True)
class Record:
    """Recorded arrays, and the data needed to read, repeat or continue the run.

    `record[name]` is an array over records, or (S, records) for an ensemble; `arrays` holds them
    all (README, "The run folder").  `config` repeats the run.  `state` holds the weights at the
    last step, from which the run can go on bit for bit.  After a replica of an ensemble has
    diverged its records are NaN; `record["diverged_at"]` (S,) is the step of divergence, or -1.
    """

    arrays: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    status: Status
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays))
            raise KeyError(f"no array {name!r} in this trajectory; there are {known}") from None

    def __repr__(self) -> str:
        name = self.config.get("experiment", "simulation")
        replicas = self.arrays.get("diverged_at", self.steps[:1]).size
        of = f" of {replicas} replicas" if replicas > 1 else ""
        kind = type(self).__name__
        return f"<{kind} of {name}: {self.status}, {self.steps.size:,} records{of}>"

    @property
    def steps(self) -> NDArray[np.int64]:
        """The recorded steps, shape (records,)."""
        return self["step"]
