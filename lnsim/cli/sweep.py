"""The command `sweep`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from lnsim.base import config as configs
from lnsim.cli.exits import interrupted
from lnsim.run.folder import in_shell
from lnsim.sweeps.grid import parse_axis
from lnsim.sweeps.sweep import sweep


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sweep`, except --set, which main.py adds."""
    parser.set_defaults(command=_sweep)
    parser.add_argument(
        "experiment", help="an experiment that trains one network a run, not on images"
    )
    parser.add_argument(
        "--grid", action="extend", nargs="+", required=True, metavar="KEY=VALUES",
        help="FIRST:LAST:COUNT, FIRST:LAST:COUNT:log or V1,V2,...; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run every point with N seeds"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the sweep folder")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="run on a Dask cluster: its address, or local for a cluster on this machine",
    )  # fmt: skip
    parser.add_argument("--backend", default="numba", help="default: %(default)s")
    parser.add_argument(
        "--predict", action="store_true",
        help="fill the table from theory, without a run (label-noise and sam)",
    )  # fmt: skip


def _sweep(arguments: argparse.Namespace) -> int:
    grid: dict[str, str] = {}
    for text in arguments.grid:
        key, values = parse_axis(text)
        if key in grid:
            raise ValueError(f"{key} has two grids, {grid[key]!r} and {values!r}: give one")
        grid[key] = values
    with interrupted() as stop:
        result = sweep(
            arguments.experiment,
            grid,
            out=arguments.out,
            seeds=arguments.seeds,
            base=dict(configs.parse_assignment(text) for text in arguments.assignments),
            backend=arguments.backend,
            scheduler=arguments.scheduler,
            predict=arguments.predict,
            progress=True,
            stop=stop,
        )
    if result.missing:
        print(f"stopped with {result.missing:,} points to go; the same command goes on")
        return stop.code
    earlier = "" if result.new else ": nothing to do, all were stored"
    verb = "predicted" if result.predicted else "run"
    print(f"points        {len(result.rows):,}, {result.new:,} of them {verb} now{earlier}")
    counts = Counter(row["regime"] or "not predicted" for row in result.rows)
    print(f"regimes       {', '.join(f'{word} {counts[word]:,}' for word in sorted(counts))}")
    refused = Counter(row["status"] for row in result.rows if row["regime"] is None)
    for reason, count in refused.most_common(1):
        print(f"not predicted {count:,} for this reason: {reason}")
    print(f"sweep folder  {arguments.out}; draw it with: lnsim plot {in_shell(arguments.out)}")
    return 0
