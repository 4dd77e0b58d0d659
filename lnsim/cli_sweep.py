"""The commands `sweep` and `plot`: arguments in, exit codes out, as in cli.py."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lnsim import config as configs
from lnsim.store import RunFolder


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sweep`; --set is cli.py's."""
    parser.set_defaults(command=_sweep)
    parser.add_argument("experiment", help="one of those on the two-layer linear network")
    parser.add_argument(
        "--grid", action="extend", nargs="+", required=True, metavar="KEY=VALUES",
        help="FIRST:LAST:COUNT, FIRST:LAST:COUNT:log or V1,V2,...; may be given many times",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run every point with N seeds"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the sweep folder")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="run on a Dask cluster: its address, or local for one on this machine",
    )  # fmt: skip
    parser.add_argument("--backend", default="numba", help="default: %(default)s")


def add_plot(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plot`."""
    parser.set_defaults(command=_plot)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR",
        help="a run folder, or sweep folders to draw side by side",
    )  # fmt: skip
    parser.add_argument(
        "--column", action="extend", nargs="+", default=[], metavar="NAME", dest="columns",
        help="what to draw of a sweep, one panel each (default: regime, or last_escape)",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="draw or export only the points at which a swept key, or seed, has this value",
    )  # fmt: skip
    parser.add_argument(
        "--csv", metavar="FILE", help="write the points of a sweep to FILE, - for standard output"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the figure goes (default: the first folder)"
    )


def _sweep(arguments: argparse.Namespace) -> int:
    from lnsim import cli
    from lnsim.sweep import sweep
    from lnsim.sweep_grid import parse_axis

    grid: dict[str, str] = {}
    for text in arguments.grid:
        key, values = parse_axis(text)
        if key in grid:
            raise ValueError(f"{key} has two grids, {grid[key]!r} and {values!r}: give one")
        grid[key] = values
    with cli._interrupt() as stop:
        result = sweep(
            arguments.experiment,
            grid,
            out=arguments.out,
            seeds=arguments.seeds,
            base=dict(configs.parse_assignment(text) for text in arguments.assignments),
            backend=arguments.backend,
            scheduler=arguments.scheduler,
            progress=True,
            stop=stop,
        )
    if result.missing:
        print(f"stopped with {result.missing:,} points to go; the same command goes on")
        return cli.INTERRUPTED
    earlier = "" if result.new else ": nothing to do, all were there"
    print(f"points        {len(result.rows):,}, {result.new:,} of them run now{earlier}")
    counts = Counter(str(row["regime"]) for row in result.rows)
    print(f"regimes       {', '.join(f'{word} {counts[word]:,}' for word in sorted(counts))}")
    print(f"sweep folder  {arguments.out}; draw it with: lnsim plot {arguments.out}")
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    if (arguments.folders[0] / "config.toml").is_file():
        return _plot_run(arguments)
    from lnsim.sweep import Sweep

    where: dict[str, Any] = dict(configs.parse_assignment(text) for text in arguments.where)
    sweeps = [Sweep.load(folder).where(where) for folder in arguments.folders]
    if arguments.csv is not None:
        if len(sweeps) > 1:
            raise ValueError(f"--csv is of one sweep folder, got {len(sweeps)}")
        if arguments.csv == "-":
            sys.stdout.write(sweeps[0].csv())
        else:
            sweeps[0].to_csv(arguments.csv)
        return 0
    from lnsim import figures, figures_sweep

    figure = figures_sweep.figure(sweeps, arguments.columns)
    out = arguments.out or arguments.folders[0]
    with RunFolder(out, reuse=True):
        figures.save(figure, out)
    print(f"figure        {out / 'figure.png'}")
    return 0


def _plot_run(arguments: argparse.Namespace) -> int:
    """Draws a run's figures again, from its files alone."""
    from lnsim import cli, experiments, figures

    for name in ("columns", "where", "csv"):
        if getattr(arguments, name):
            raise ValueError(f"--{name.removesuffix('s')} is for sweep folders, not for a run's")
    if len(arguments.folders) > 1:
        raise ValueError("one run folder can be drawn at a time")
    trajectory = cli._newest(arguments.folders[0])
    drawn = {"figure": trajectory.plot()}
    module = experiments.load(str(trajectory.config["experiment"]))
    if hasattr(module, "extra_figures"):
        drawn |= module.extra_figures(trajectory)
    out = arguments.out or arguments.folders[0]
    with RunFolder(out, reuse=True):
        for stem, figure in drawn.items():
            figures.save(figure, out, stem)
    print(f"figure        {out / 'figure.png'}")
    return 0
