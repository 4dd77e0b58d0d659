"""Resuming an earlier run: whether this is possible, and which of its records are kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from lnsim.run.record import Ending, Record, Status


def check_continues(earlier: Record, config: Mapping[str, Any]) -> None:
    """Refuses to resume `earlier` with another configuration: only `steps` may change.

    The functions of this module refuse with a ValueError that begins with "cannot resume".
    """
    for key in earlier.config.keys() | config.keys():
        before, asked = earlier.config.get(key), config.get(key)
        if key != "steps" and before != asked:
            raise ValueError(f"cannot resume: {key} was {before!r} and is {asked!r} now")


def check_not_diverged(earlier: Status) -> None:
    """Refuses to resume a run that diverged."""
    if earlier.code == Ending.DIVERGED:
        raise ValueError(f"cannot resume: the earlier run {earlier}")


def check_before(earlier: Status, end: int) -> None:
    """Refuses to resume a run that diverged, or that is past step `end`."""
    check_not_diverged(earlier)
    if earlier.step > end:
        raise ValueError(f"cannot resume: the earlier run is at step {earlier.step}, past the end")


def count_kept(recorded: list[int], plan: list[int], step: int) -> int:
    """Number of leading records, of those at the steps `recorded`, that a run of this `plan` keeps.

    The earlier run ended at `step`.  It must have recorded all steps of the plan up to `step`, and
    no other but `step` itself, which the plan may lack.
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
