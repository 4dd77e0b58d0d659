"""Times lnsim and alternatives side by side in one run, on the same work.

    python -m bench.peers [--rounds N] [--seconds S] [--out FILE.json]

Prints a table of times and ratios; --out writes all rounds as JSON.  Every contender's result is
first compared with lnsim's on the same draws or inputs: a difference above TOLERANCE ends the run.
All compute in float64, and are compiled and warmed up before the timing; each returns an array on
the host, so that work on a GPU has ended when the clock is read.

The loops of the linear network run on both states: the dense one and, in separate columns, lnsim's
exact reduction of it.  Their ratios are to lnsim's numba backend on the reduced state, the default
of lnsim.simulate; this backend and the NumPy loop use the CPU even in the tables of a GPU.  Ratios
of kernels are to lnsim_torch.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lnsim
from bench import linear_peers
from bench.rounds import Key, Work, cuda_device, importable, interleaved, machine, timer

TOLERANCE = 1e-9
CHECKED_STEPS, MOST_STEPS = 2_000, 5_000_000
STATES = {"dense": False, "reduced": True}
COLUMNS = 80


@dataclass
class Table:
    """Contenders by column and name, and the reasons why others are missing, by name.

    `reference` is the contender with which those of a column are compared; `unit`, in seconds, is
    the unit of printed times; results are compared after `checked` units of work, and a timing does
    at most `most` units.
    """

    title: str
    unit: float
    work: dict[Key, Work] = field(default_factory=dict)
    reference: dict[str, Key] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    checked: int = 1
    most: int = 1000

    def _references(self) -> dict[Key, Key]:
        return {key: self.reference[key[0]] for key in self.work}

    def _differences(self) -> dict[Key, float]:
        """Relative difference of every result from its reference; ValueError if above TOLERANCE."""
        results = {key: work(self.checked) for key, work in self.work.items()}
        differences = {}
        for key, other in self._references().items():
            gap = np.linalg.norm(results[key] - results[other])
            differences[key] = float(gap / np.linalg.norm(results[other]))
            if not differences[key] <= TOLERANCE:
                difference = f"{differences[key]:.1e}"
                raise ValueError(f"{key} differs from {other} by {difference}: {self.title}")
        return differences

    def measured(self, rounds: int, seconds: float) -> dict[str, Any]:
        """Checks all contenders and times them; returns plain data, with times in seconds."""
        differences = self._differences()
        timers = {
            key: timer(work, seconds, self.checked, self.most) for key, work in self.work.items()
        }
        times = interleaved(timers, rounds)
        rows = [
            {
                "column": key[0],
                "name": key[1],
                "difference": differences[key],
                "median": statistics.median(mine),
                "ratio": statistics.median(
                    m / r for m, r in zip(mine, times[self._references()[key]], strict=True)
                ),
                "rounds": mine,
            }
            for key, mine in times.items()
        ]
        return {"title": self.title, "unit": self.unit, "rows": rows, "missing": self.missing}


def linear_table(device: str, samples: int = 200, dim: int = 20, width: int = 1000) -> Table:
    """Label noise SGD, by default at the figures' setting."""
    problem, network = lnsim.gaussian_regression(samples, dim), lnsim.ntk_init(width, dim)
    calls, missing = linear_peers.contenders(device)

    def work(call: linear_peers.Call, reduced: bool, steps: int) -> NDArray[np.float64]:
        return np.column_stack(call(problem, network, steps, reduced))

    return Table(
        f"Label noise SGD on {device}, n = {samples}, d = {dim}, m = {width}: microseconds a step",
        1e-6,
        {
            (state, name): partial(work, call, reduced)
            for state, reduced in STATES.items()
            for name, call in calls.items()
        },
        dict.fromkeys(STATES, ("reduced", linear_peers.OURS)),
        missing,
        CHECKED_STEPS,
        MOST_STEPS,
    )


def kernel_table(device: str) -> Table:
    """The whole kernel of two small networks; without torch an empty table with the reason."""
    title = f"Empirical tangent kernel on {device}, 16 samples, 10 x 10 outputs: milliseconds"
    if not importable("torch"):
        return Table(title, 1e-3, missing={"lnsim_torch": "PyTorch is not installed"})
    from bench import kernel_peers

    kernels, missing = kernel_peers.contenders(device)
    networks = kernel_peers.networks(device)

    def work(kernel: kernel_peers.Kernel, column: str, times: int) -> NDArray[np.float64]:
        return [kernel(*networks[column]) for _ in range(times)][-1]

    return Table(
        title,
        1e-3,
        {
            (column, name): partial(work, kernel, column)
            for column in networks
            for name, kernel in kernels.items()
        },
        {column: (column, kernel_peers.OURS) for column in networks},
        missing,
    )


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The lines of a table from the data of `measured`, 80 columns wide."""
    cells = {(row["column"], row["name"]): row for row in result["rows"]}
    columns = list(dict.fromkeys(column for column, _ in cells))
    yield result["title"]
    if cells:
        yield f"{'':22}" + "".join(f"{column:>8}{'range':>14}{'ratio':>7}" for column in columns)
    for name in dict.fromkeys(name for _, name in cells):
        yield f"{name:22}" + "".join(_cell(cells[key, name], result["unit"]) for key in columns)
    for name, reason in result["missing"].items():
        yield f"{name:22}  {reason}"
    if cells:
        worst = max(row["difference"] for row in cells.values())
        yield f"All results agree: largest relative difference {worst:.0e}."


def _cell(row: dict[str, Any], unit: float) -> str:
    median, low, high = (
        _digits(time / unit, row["median"] / unit)
        for time in (row["median"], min(row["rounds"]), max(row["rounds"]))
    )
    return f"{median:>8}{f'{low}-{high}':>14}{_digits(row['ratio'], row['ratio']):>7}"


def _digits(value: float, scale: float) -> str:
    """`value` with the decimals that give `scale` three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(scale)))}f}"


def header(description: dict[str, str], rounds: int) -> Iterator[str]:
    """The lines on the machine and the method, 80 columns wide."""
    yield from textwrap.wrap(", ".join(f"{k} {v}" for k, v in description.items()), COLUMNS)
    yield f"Medians and ranges of {rounds} interleaved rounds; ratios to the line of ratio 1."


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints all tables; exit code 0, 1 where a contender disagrees, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        help="length of a round of one contender (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every round here")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or not arguments.seconds >= 0.0:
        parser.error("--rounds must be at least 1, --seconds at least 0")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    description = machine()
    print(*header(description, arguments.rounds), sep="\n")
    devices = ["cpu", *(["cuda"] if cuda_device() else [])]
    results = []
    try:
        for table, device in ((table, device) for device in devices for table in TABLES):
            results.append(table(device).measured(arguments.rounds, arguments.seconds))
            print("", *lines(results[-1]), sep="\n")
    except ValueError as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    if "cuda" not in devices:
        print("\nCUDA: there is no device here.")
    if arguments.out is not None:
        written = {"machine": description, "rounds": arguments.rounds, "tables": results}
        arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


TABLES = (linear_table, kernel_table)

if __name__ == "__main__":
    sys.exit(main())
