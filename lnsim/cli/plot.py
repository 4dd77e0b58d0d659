"""The command `plot`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnsim.base import config as configs
from lnsim.cli.folders import newest
from lnsim.figures.output import guarded
from lnsim.run.folder import RunFolder
from lnsim.run.record import Ending
from lnsim.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from lnsim.simulation.trajectory import Trajectory
    from lnsim.theory import cloud

CURVES_STEM = "curves"
"""File name of a figure of chosen curves, or of several runs; a run's own figure stays."""


def add_style(parser: argparse.ArgumentParser) -> None:
    """Adds --style, which cli.main applies."""
    parser.add_argument(
        "--style", choices=("paper", "screen"), help="draw figures at print size (default), or"
        " larger for slides and web pages",
    )  # fmt: skip


def add_plot(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `plot`."""
    parser.set_defaults(command=_plot)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR",
        help="a run folder, run folders to compare, or sweep folders to draw side by side",
    )  # fmt: skip
    parser.add_argument(
        "--column", action="extend", nargs="+", default=[], metavar="NAME", dest="columns",
        help="columns to draw, one panel each: of a sweep (default: regime, or last_escape), or"
        " of runs, such as norm_mean",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="draw or export only the points at which a swept key, or seed, has this value",
    )  # fmt: skip
    parser.add_argument(
        "--csv", metavar="FILE", help="write the points of a sweep to FILE, - for standard output"
    )
    parser.add_argument(
        "--animate", type=Path, metavar="FILE",
        help="write an animation of a run's neurons to FILE, a .gif, or an .mp4 with ffmpeg",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the figure goes (default: the first folder)"
    )
    add_style(parser)


def _plot(arguments: argparse.Namespace) -> int:
    if _is_run(arguments.folders[0]):
        return _plot_runs(arguments)
    return _plot_sweeps(arguments)


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("trajectory.npz", "checkpoint.npz"))


def _plot_sweeps(arguments: argparse.Namespace) -> int:
    from lnsim.sweeps.store import FILE  # with sqlite3, a slow import

    _refuse(arguments, ("animate",), "run", "sweeps")
    where: dict[str, Any] = dict(configs.parse_assignment(text) for text in arguments.where)
    for folder in arguments.folders:
        if not (folder / FILE).is_file():
            raise ValueError(f"{folder} is not a folder of a run or a sweep: it has no {FILE}")
    sweeps = [Sweep.load(folder).where(where) for folder in arguments.folders]
    if arguments.csv is not None:
        if len(sweeps) > 1:
            raise ValueError(f"--csv takes one sweep folder, got {len(sweeps)}")
        if arguments.csv == "-":
            sys.stdout.write(sweeps[0].csv())
        else:
            sweeps[0].to_csv(arguments.csv)
        return 0
    with guarded():
        from lnsim.sweeps import figure as figures_sweep

    # The file name contains the options, so that no figure overwrites another.
    parts = [*arguments.columns, *arguments.where]
    stem = "-".join(re.sub(r"[^\w.=+-]", "_", part) for part in parts) or "figure"
    return _save(arguments, lambda: {stem: figures_sweep.figure(sweeps, arguments.columns)})


def _plot_runs(arguments: argparse.Namespace) -> int:
    """Draws a run's figures again from its files, or the requested curves or animation."""
    _refuse(arguments, ("where", "csv"), "sweep", "runs")
    runs = [newest(folder) for folder in arguments.folders]
    if arguments.animate is not None:
        return _animate(arguments, runs)
    with guarded():
        from lnsim.figures import curves, output
    if len(runs) == 1 and not arguments.columns:
        return _save(arguments, lambda: output.of_run(runs[0]))
    names = [str(folder) for folder in arguments.folders]
    labels = curves.labels([run.config for run in runs], names) if len(runs) > 1 else [""]
    for i, status in enumerate(run.status for run in runs):
        if status.code != Ending.OK:
            labels[i] += f" ({status.code.lower()} at {status.step:,})"

    def draw() -> dict[str, Any]:
        prediction = prediction_of(runs[0]) if len(runs) == 1 else ""
        return {CURVES_STEM: curves.figure(runs, labels, arguments.columns, prediction)}

    return _save(arguments, draw)


def prediction_of(run: Trajectory) -> cloud.Prediction | str:
    """The prediction of a run, the reason why there is none, or "" if theory is of other models."""
    from lnsim.experiments.case import Case

    try:
        case = Case.of_run(run)
    except ValueError:
        return ""
    return case.drawn


def _animate(arguments: argparse.Namespace, runs: Sequence[Any]) -> int:
    with guarded():
        from lnsim.figures import animation

    if len(runs) > 1:
        raise ValueError(f"--animate takes one run folder, got {len(runs)}")
    if arguments.columns:
        raise ValueError(
            "--column chooses curves and --animate shows neurons: give only one of them"
        )
    if not arguments.animate.parent.is_dir():
        raise ValueError(f"cannot write {arguments.animate}: No such file or directory")
    with guarded(ValueError):
        count = animation.write(runs[0], arguments.animate)
    print(f"animation     {arguments.animate}, {count} recorded clouds")
    return 0


def _refuse(arguments: argparse.Namespace, options: Sequence[str], kind: str, got: str) -> None:
    for option in options:
        if getattr(arguments, option):
            raise ValueError(f"--{option} is for {kind} folders, not for {got}")


def _save(arguments: argparse.Namespace, draw: Callable[[], dict[str, Any]]) -> int:
    """Writes the figures that `draw` returns by file name; its ValueError means bad input."""

    out = arguments.out or arguments.folders[0]
    with guarded(ValueError):
        from lnsim.figures import canvas

        figures = draw()
    with RunFolder(out, reuse=True), guarded():
        for stem, figure in figures.items():
            canvas.save(figure, out, stem)
    print(f"figure        {out / next(iter(figures))}.png")
    return 0
