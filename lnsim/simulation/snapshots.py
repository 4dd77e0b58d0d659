"""When a run is observed, and the networks that wait for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray


def cloud_records(count: int) -> list[int]:
    """The records, out of the first `count`, at which all neurons are kept: 0, 1, 2, 4, 5, 8, ...

    These are the integer parts of the powers of sqrt(2), so that the choice does not depend on
    how long the run goes on.
    """
    powers = {int(2 ** (k / 2)) for k in range(2 * count.bit_length())}
    return sorted(record for record in {0} | powers if record < count)


def waypoint_records(count: int) -> list[int]:
    """The records, out of the first `count`, whose state is kept (verify.py): 1, 2, 4, 8, ..."""
    return [1 << k for k in range((count - 1).bit_length())]


def waypoint(record: int) -> str:
    """How the names of the state kept at this record begin."""
    return f"at {record}: "


def watch_steps(steps: int) -> list[int]:
    """The steps at which neurons are watched for lazy escape: four an octave, whatever is recorded.

    So a time of escape does not depend on how often is recorded.
    """
    return sorted({int(2 ** (k / 4)) for k in range(4 * steps.bit_length())})


@dataclass
class Snapshots:
    """B networks to observe, reduced, with their twins' predictors; a replica's steps ascend."""

    replica: NDArray[np.int64]
    record: NDArray[np.int64]
    step: NDArray[np.int64]
    twin_theta: FloatArray
    weights: list[FloatArray]

    def at(self, numbers: NDArray[np.int64]) -> Snapshots:
        """Those of these numbers."""
        return Snapshots(
            self.replica[numbers],
            self.record[numbers],
            self.step[numbers],
            self.twin_theta[numbers],
            [array[numbers] for array in self.weights],
        )

    @classmethod
    def together(cls, parts: list[Snapshots]) -> Snapshots:
        """All of `parts`, one after another."""
        return cls(
            np.concatenate([part.replica for part in parts]),
            np.concatenate([part.record for part in parts]),
            np.concatenate([part.step for part in parts]),
            np.concatenate([part.twin_theta for part in parts]),
            [np.concatenate(same) for same in zip(*(part.weights for part in parts), strict=True)],
        )
