"""Going on from an earlier run: whether it can be done, and which of its records are kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from lnsim.run.record import Ending, Record, Status


def check_continues(earlier: Record, config: Mapping[str, Any]) -> None:
    """Refuses to go on from `earlier` under another configuration: only `steps` may change.

    This and the other functions here refuse by a ValueError that begins with "cannot resume".
    """
    for key in earlier.config.keys() | config.keys():
        before, now = earlier.config.get(key), config.get(key)
        if key != "steps" and before != now:
            raise ValueError(f"cannot resume: {key} was {before!r} and is {now!r} now")


def check_not_diverged(earlier: Status) -> None:
    """Refuses to go on from a run that diverged."""
    if earlier.code == Ending.DIVERGED:
        raise ValueError(f"cannot resume: the earlier run {earlier}")


def check_before(earlier: Status, end: int) -> None:
    """Refuses to go on from a run that diverged, or that is past step `end`."""
    check_not_diverged(earlier)
    if earlier.step > end:
        raise ValueError(f"cannot resume: the earlier run is at step {earlier.step}, past the end")


def count_kept(recorded: list[int], plan: list[int], step: int) -> int:
    """Number of leading records, of those at the steps `recorded`, that a run of this `plan` keeps.

    The earlier run ended at `step`.  All steps of the plan up to there must have been recorded, and
    nothing else but the earlier end, where this run may record nothing.
    """
    kept = bisect_right(plan, step)
    others = recorded[kept:]
    if recorded[:kept] != plan[:kept] or len(others) > 1 or any(t > step for t in others):
        raise ValueError("cannot resume: the earlier run was recorded at other steps")
    return kept


def records_kept(earlier: Record, config: Mapping[str, Any], plan: list[int]) -> int:
    """Number of leading records of `earlier` that a run of this configuration and plan keeps."""
    check_continues(earlier, config)
    check_before(earlier.status, plan[-1])
    return count_kept(earlier.steps.tolist(), plan, earlier.status.step)
