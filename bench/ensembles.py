"""Ensembles beside as many single runs as there are cores, and what the records of a run cost.

    python -m bench.ensembles [--rounds 5] [--only 1024] [--out FILE.json]

The ceiling of an ensemble is measured before and after it in every round: the steps a second of
one single run a core, side by side, as the cores of a virtual machine may share one real core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lnsim
from bench.tables import Cell, Table, parser, ratios, report
from lnsim.base import threads

DYNAMICS = lnsim.SGD(1e-3, lnsim.LabelNoise(4.0))
LONG = 2_000_000
ENSEMBLES = ((1_024, 20_000), (4_096, 20_000), (64, LONG))


def seconds(steps: int, records: int = 1, **options: Any) -> float:
    """Seconds of a run at the setting of the figures, recorded at 0 and `records` times more."""
    problem, network = lnsim.gaussian_regression(200, 20), lnsim.ntk_init(1000, 20)
    start = time.perf_counter()
    lnsim.simulate(
        problem, network, DYNAMICS, steps=steps, record_every=steps // records, **options
    )
    return time.perf_counter() - start


def ceiling() -> float:
    """Steps a second of one single run a core, side by side."""

    def alone(_: int) -> float:
        with threads.one_thread():
            return seconds(LONG)

    with ThreadPoolExecutor(threads.number()) as pool:
        return sum(LONG / each for each in pool.map(alone, range(threads.number())))


def ensembles(rounds: int, only: int | None) -> Table:
    """Every ensemble between two measurements of its ceiling."""
    rows: dict[str, tuple[Cell, ...]] = {}
    seconds(2, replicas=2)
    for replicas, steps in ENSEMBLES:
        for records in (1, 10):
            if only in (None, replicas):
                speeds: list[float] = []
                ceilings: list[float] = []
                for _ in range(rounds):
                    before = ceiling()
                    taken = seconds(steps, records, replicas=replicas)
                    speeds.append(replicas * steps / taken)
                    ceilings.append((before + ceiling()) / 2.0)
                name = f"{replicas:,} x {steps:,} steps, {records + 1} records"
                rows[name] = (
                    [speed / 1e6 for speed in speeds],
                    [most / 1e6 for most in ceilings],
                    ratios(speeds, ceilings),
                )
    return Table(
        "Ensembles",
        "Whole `simulate()` calls, default measures, twin and watch included, on all cores, beside"
        f" one single run of {LONG:,} steps a core.",
        ("million steps a second", "ceiling", "ratio"),
        rows,
    )


def records(rounds: int) -> Table:
    """A run of 1,000 records beside the same with two."""
    few, many, bare = [], [], []
    for _ in range(rounds):
        few.append(seconds(LONG))
        many.append(seconds(LONG, 1_000))
        bare.append(seconds(LONG, 1_000, measures="none"))
    rows: dict[str, tuple[Cell, ...]] = {
        "2 records": (few, ratios(few, few)),
        "1,001 records": (many, ratios(many, few)),
        "1,001 records without measures": (bare, ratios(bare, few)),
    }
    return Table(
        "Records of one run",
        f"Whole `simulate()` calls of {LONG:,} steps, on all cores.",
        ("seconds", "to the run of 2 records"),
        rows,
    )


def measured(rounds: int, only: int | None) -> Iterator[Table]:
    """The tables, one when it is measured."""
    yield ensembles(rounds, only)
    if only is None:
        yield records(rounds)


if __name__ == "__main__":
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--only", type=int, metavar="REPLICAS", help="this ensemble alone")
    arguments = made.parse_args()
    report(measured(arguments.rounds, arguments.only), "python -m bench.ensembles", arguments.out)
