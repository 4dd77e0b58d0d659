"""Times lnsim and alternatives side by side in one run, on the same work.

    python -m bench.peers [--rounds N] [--seconds S] [--out FILE.json]

Every contender's result is first compared with lnsim's on the same draws or inputs: a difference
above TOLERANCE ends the run.  All compute in float64, and are compiled and warmed up before the
timing; each returns an array on the host, so that work on a GPU has ended when the clock is read.

The loops of the linear network run on both states: the dense one and, in separate columns, lnsim's
exact reduction of it.  Their ratios are to lnsim's numba backend on the reduced state, the default
of lnsim.simulate; this backend and the NumPy loop use the CPU even in the tables of a GPU.  Ratios
of kernels are to lnsim_torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

import lnsim
from bench import linear_peers
from bench.rounds import Key, Work, cuda_device, importable, interleaved, timer
from bench.tables import Cell, Table, parser, ratios, report

TOLERANCE = 1e-9
CHECKED_STEPS, MOST_STEPS = 2_000, 5_000_000
STATES = {"dense": False, "reduced": True}


@dataclass
class Contest:
    """Contenders by column and name, and the reasons why others are missing, by name.

    `reference` is the contender with which those of a column are compared; `unit`, in seconds, is
    the unit of `symbol`; results are compared after `checked` units of work, and a timing does at
    most `most` units.
    """

    title: str
    about: str
    unit: float
    symbol: str
    work: dict[Key, Work] = field(default_factory=dict)
    reference: dict[str, Key] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    checked: int = 1
    most: int = 1000

    def _difference(self) -> float:
        """The largest relative difference of a result from its reference.

        Raises ValueError if it is above TOLERANCE.
        """
        results = {key: work(self.checked) for key, work in self.work.items()}
        largest = 0.0
        for key, result in results.items():
            other = self.reference[key[0]]
            gap = np.linalg.norm(result - results[other]) / np.linalg.norm(results[other])
            if not gap <= TOLERANCE:
                raise ValueError(f"{key} differs from {other} by {gap:.1e}: {self.title}")
            largest = max(largest, float(gap))
        return largest

    def measured(self, rounds: int, seconds: float) -> Table:
        """Checks all contenders and times them."""
        about = [self.about]
        if self.work:
            about += [f"All results agree: largest relative difference {self._difference():.0e}."]
        about += [f"{name} is left out: {reason}." for name, reason in self.missing.items()]
        timers = {
            key: timer(work, seconds, self.checked, self.most) for key, work in self.work.items()
        }
        times = interleaved(timers, rounds)
        columns = [*self.reference]
        rows: dict[str, tuple[Cell, ...]] = {}
        for name in dict.fromkeys(name for _, name in times):
            cells: list[Cell] = []
            for column in columns:
                mine = times[column, name]
                cells += [[time / self.unit for time in mine]]
                cells += [ratios(mine, times[self.reference[column]])]
            rows[name] = tuple(cells)
        headings = [head for column in columns for head in (f"{column}, {self.symbol}", "ratio")]
        return Table(self.title, " ".join(about), tuple(headings), rows)


def linear_contest(device: str, samples: int = 200, dim: int = 20, width: int = 1000) -> Contest:
    """Label noise SGD, by default at the figures' setting."""
    problem, network = lnsim.gaussian_regression(samples, dim), lnsim.ntk_init(width, dim)
    calls, missing = linear_peers.contenders(device)

    def work(call: linear_peers.Call, reduced: bool, steps: int) -> NDArray[np.float64]:
        return np.column_stack(call(problem, network, steps, reduced))

    return Contest(
        f"Peers: label noise SGD on {device}",
        f"Whole calls, n = {samples}, d = {dim}, m = {width}. The peers get the reduction too, in "
        "columns of its own.",
        1e-6,
        "µs a step",
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


def kernel_contest(device: str) -> Contest:
    """The whole kernel of two small networks; without torch an empty table with the reason."""
    title = f"Peers: the empirical tangent kernel on {device}"
    about = "Float64, 16 samples, all 10 x 10 outputs."
    if not importable("torch"):
        missing = {"lnsim_torch": "PyTorch is not installed"}
        return Contest(title, about, 1e-3, "ms", missing=missing)
    from bench import kernel_peers

    kernels, missing = kernel_peers.contenders(device)
    networks = kernel_peers.networks(device)

    def work(kernel: kernel_peers.Kernel, column: str, times: int) -> NDArray[np.float64]:
        return [kernel(*networks[column]) for _ in range(times)][-1]

    return Contest(
        title,
        about,
        1e-3,
        "ms",
        {
            (column, name): partial(work, kernel, column)
            for column in networks
            for name, kernel in kernels.items()
        },
        {column: (column, kernel_peers.OURS) for column in networks},
        missing,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints all tables; exit code 0, 1 where a contender disagrees, 2 bad input."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    options.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        help="length of a round of one contender (default: %(default)s)",
    )
    arguments = options.parse_args(argv)
    if arguments.rounds < 1 or not arguments.seconds >= 0.0:
        options.error("--rounds must be at least 1, --seconds at least 0")
    devices = ["cpu", *(["cuda"] if cuda_device() else [])]
    tables = (
        contest(device).measured(arguments.rounds, arguments.seconds)
        for device in devices
        for contest in CONTESTS
    )
    try:
        report(tables, "python -m bench.peers", arguments.out)
    except ValueError as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    return 0


CONTESTS = (linear_contest, kernel_contest)

if __name__ == "__main__":
    sys.exit(main())
