"""Whole runs of wide networks: the start, the steps and all records, in seconds and in memory.

python -m bench.widths [--out FILE.json]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import lnsim
from bench.tables import Cell, Table, parser, report

ROUNDS = 3
STEPS, RECORDS = 100_000, 100
SIZES = ((1_000, 20), (10_000, 20), (100_000, 20), (1_000_000, 20), (300_000, 100))
"""Width and input dimension of each row."""


def run(width: int, dim: int, steps: int, record_every: int) -> float:
    """Seconds of drawing a problem and a network and training it."""
    start = time.perf_counter()
    problem, network = lnsim.gaussian_regression(200, dim), lnsim.ntk_init(width, dim)
    # A tenth of the step size at which the fit is unstable (benchmarks/cases.py).
    dynamics = lnsim.SGD(0.1 / (dim + width), lnsim.LabelNoise(4.0))
    lnsim.simulate(problem, network, dynamics, steps=steps, record_every=record_every)
    return time.perf_counter() - start


def one(width: int, dim: int) -> tuple[float, float, float]:
    """Seconds of the whole run and of one of no step; the memory of the first, in weights.

    It is the peak above that of this process after a small run.
    """
    run(20 * dim, dim, 1_000, 500)
    before = _peak()
    whole = run(width, dim, STEPS, STEPS // RECORDS)
    memory = (_peak() - before) / (8 * width * (dim + 1))
    return whole, run(width, dim, 0, 1), memory


def _peak() -> float:
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measured(sizes: Sequence[tuple[int, int]] = SIZES, rounds: int = ROUNDS) -> Table:
    """Every size in a process of its own, round by round."""
    values: dict[tuple[int, int], list[tuple[float, ...]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for width, dim in sizes:
            command = [sys.executable, "-m", "bench.widths", "--one", str(width), str(dim)]
            done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
            values[width, dim].append(tuple(json.loads(done.stdout)))
    rows: dict[str, tuple[Cell, ...]] = {}
    for (width, dim), found in values.items():
        whole, ends, memory = (list(column) for column in zip(*found, strict=True))
        weights = f"{8 * width * (dim + 1) / 2**20:,.3g} MiB"
        rows[f"m = {width:,}, d = {dim}"] = (
            whole, ends, [(s - e) / RECORDS * 1e3 for s, e in zip(whole, ends, strict=True)],
            weights, memory if width * dim > 10**6 else None,
        )  # fmt: skip
    return Table(
        "Whole runs over the width",
        f"Drawing the problem and the network, {STEPS:,} steps of label noise SGD with the "
        f"linearised twin, {RECORDS + 1} records of all neurons and every look for their escape, "
        f"on all cores; {rounds} rounds, each run in a process of its own. A step costs the same "
        "at every width, as d + 1 neurons are trained; a record costs a product of the weights "
        "with a square matrix. Memory is the peak of what the run adds to its process: the "
        "weights at the start and at the end, and the clouds.",
        (
            "whole run, s",
            "of it start and end, s",
            f"{STEPS // RECORDS:,} steps and a record, ms",
            "weights",
            "peak, in weights",
        ),
        rows,
    )


if __name__ == "__main__":
    asked = parser(__doc__)
    asked.add_argument("--one", nargs=2, type=int, metavar=("WIDTH", "DIM"), help="as JSON")
    arguments = asked.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
    else:
        report([measured()], "python -m bench.widths", arguments.out)
