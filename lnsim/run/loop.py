"""The loop of a run from record to record, and the steps at which it is recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from lnsim.base import checks
from lnsim.run.record import Ending, Status

MOST_RECORDS = 10_000_000
"""Limit on the records of a run: they are kept in memory, a few hundred bytes each."""

Result = TypeVar("Result", covariant=True)


def record_steps(steps: int, record_every: int, name: str = "steps") -> list[int]:
    """0, record_every, 2 record_every, ..., and `steps`, which error messages call `name`.

    Raises ValueError for more than MOST_RECORDS records.
    """
    checks.integer(name, steps, 0, checks.MOST_STEPS)
    if steps // record_every > MOST_RECORDS:
        least = -(-steps // MOST_RECORDS)
        raise ValueError(
            f"record_every must be at least {least:,} for {name}={steps:,}, got {record_every:,}: "
            f"a run has at most {MOST_RECORDS:,} records"
        )
    plan = list(range(0, steps + 1, record_every))
    return plan if plan[-1] == steps else [*plan, steps]


class Driven(Protocol[Result]):
    """A run, as `drive` sees it."""

    diverged_at: int | None
    """The step at which divergence was detected, or None."""

    def events(self, step: int) -> Iterable[int]:
        """The steps from `step` on that are observed.

        They ascend and end with the last step of the run.  `drive` takes each only after it has
        observed the one before.
        """

    def advance(self, step: int, target: int) -> Iterable[int]:
        """Runs from `step` to `target` or to divergence; yields the step reached by each part."""

    def observe(self, step: int) -> bool:
        """Observes the run at `step`, and returns whether it made a record.

        If the run has diverged, it sets `diverged_at` and records nothing.
        """

    def result(self, status: Status) -> Result:
        """The result of the run up to here, from which it can go on."""


def drive(
    run: Driven[Result],
    step: int,
    steps: int,
    *,
    report: Callable[[int], object],
    stop: Callable[[], bool] | None = None,
    checkpoint: Callable[[Result], object] | None = None,
    checkpoint_every: float = 60.0,
) -> Result:
    """Takes `run` from `step` to `steps`, record by record, and returns its result.

    `report` is called with the steps done.  `stop` is called at every record but the last; the run
    ends there if it returns true.  `checkpoint` is called with the result so far, at the first
    record, and then at the next record after every `checkpoint_every` seconds.
    """
    saved = -math.inf
    for target in run.events(step):
        for step_done in run.advance(step, target):
            step = step_done
            report(step)
        recorded = run.observe(step)
        if run.diverged_at is not None:
            return run.result(Status(Ending.DIVERGED, run.diverged_at))
        if not recorded:
            continue
        if step == steps:
            break
        if stop is not None and stop():
            return run.result(Status(Ending.STOPPED, step))
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_every:
            checkpoint(run.result(Status(Ending.STOPPED, step)))
            saved = time.monotonic()
    return run.result(Status(Ending.OK, step))
