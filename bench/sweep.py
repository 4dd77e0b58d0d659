"""A whole sweep against its bare steps, at the speed of single runs side by side, interleaved.

    python -m bench.sweep [--side 32] [--seeds 8] [--steps 200000] [--rounds 3] [--out FILE.json]

The sweep is `lnsim sweep label-noise` over side x side values of sigma and lr, a command of its
own: imports, checks, processes, records, predictions and the results file are in its time.  Its
bare steps are those that were trained: of a point that diverged, those before.  The ceiling is the
steps a second of one single-replica run a core, recorded at both ends and added up; processes
repeat such runs side by side for some seconds before and after every sweep.  A round's ratio is the
sweep's time over that of its bare steps at the mean of the two ceilings.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from typing import Any

import lnsim
from bench.tables import Table, parser, report
from lnsim.base.threads import cores, one_thread

SIGMA, LR = "0:8", "1e-4:1e-2"
CEILING_SECONDS = 3.0
CEILING_STEPS = 2_000_000
"""Steps of each run of the ceiling, which starts anew: as many as label-noise has by default."""


def repeat(ready: Any, results: Any) -> None:
    """Repeats single-replica runs once all cores are ready; puts their steps a second."""
    problem, network = lnsim.gaussian_regression(200, 20), lnsim.ntk_init(1000, 20)
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(4.0))

    def run(steps: int) -> None:
        lnsim.simulate(
            problem, network, dynamics, steps=steps, record_every=steps, linearized=False,
            tracked=0, clouds=False,
        )  # fmt: skip

    with one_thread():
        run(1)
        ready.wait()
        start, steps = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < CEILING_SECONDS:
            run(CEILING_STEPS)
            steps += CEILING_STEPS
    results.put(steps / taken)


def ceiling() -> float:
    """Steps a second of single-replica runs, one a core, side by side."""
    spawn = multiprocessing.get_context("spawn")
    ready, results = spawn.Barrier(cores()), spawn.Queue()
    processes = [spawn.Process(target=repeat, args=(ready, results)) for _ in range(cores())]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def swept(side: int, seeds: int, steps: int) -> tuple[float, int]:
    """The seconds of the command, and the steps that its points took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lnsim", "sweep", "label-noise",
            "--grid", f"sigma={SIGMA}:{side}", f"lr={LR}:{side}:log",
            "--seeds", str(seeds), "--set", f"steps={steps}", "--out", f"{folder}/sweep",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        rows = lnsim.Sweep.load(f"{folder}/sweep").rows
    assert len(rows) == side * side * seeds
    return seconds, sum(row["diverged_at"] or steps for row in rows)


def measured(side: int, seeds: int, steps: int) -> dict[str, float]:
    """One round."""
    before = ceiling()
    seconds, trained = swept(side, seeds, steps)
    speed = (before + ceiling()) / 2
    bare = trained / speed
    return {"seconds": seconds, "bare": bare, "speed": speed, "ratio": seconds / bare}


def table(side: int, seeds: int, steps: int, count: int) -> Table:
    """Measures `count` rounds."""
    swept(2, 1, 10)  # compiles
    rounds = [measured(side, seeds, steps) for _ in range(count)]
    row = tuple([one[key] for one in rounds] for key in ("seconds", "bare", "ratio"))
    return Table(
        "A sweep beside its bare steps",
        f"`lnsim sweep label-noise`, {side} values of sigma ({SIGMA}) and of lr ({LR}), {seeds}"
        f" seeds, {steps:,} steps, as a command of its own: imports, processes and results file are"
        " in its time. Its bare steps, those before a point diverged, are taken at the speed of"
        f" single-replica runs, one a core, side by side; {count} rounds.",
        ("seconds", "bare steps, seconds", "ratio"),
        {f"{side} × {side} × {seeds} points": row},
    )


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--side", type=int, default=32, help="values of each key")
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--steps", type=int, default=200_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    result = table(chosen.side, chosen.seeds, chosen.steps, chosen.rounds)
    report([result], "python -m bench.sweep", chosen.out)
