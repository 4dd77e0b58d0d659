"""The way of a run: the steps at which it is recorded."""

from __future__ import annotations

from lnsim.base import checks

MOST_RECORDS = 10_000_000
"""Of a run: they are kept in memory, a few hundred bytes each."""


def record_steps(steps: int, record_every: int, name: str = "steps") -> list[int]:
    """0, record_every, 2 record_every, ..., and `steps` itself, which a message calls `name`.

    Raises ValueError for more records than are kept.
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
