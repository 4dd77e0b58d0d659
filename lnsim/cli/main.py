"""The commands: they take arguments and return exit codes (exits.py)."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lnsim.base import config as configs
from lnsim.base import threads
from lnsim.cli import cite, info, keys, papers, plot, surroundings, sweep
from lnsim.cli.exits import BAD_INPUT, DIVERGED, INTERRUPTED, LOST, MISMATCH, interrupted
from lnsim.cli.folders import CHECKPOINT, hinting, how_to_resume, newest
from lnsim.experiments.case import Case
from lnsim.figures import output as figure_files
from lnsim.figures import style
from lnsim.figures.output import Undrawn
from lnsim.run import experiment
from lnsim.run.experiment import Experiment
from lnsim.run.folder import RunFolder, free_path, in_shell, locked
from lnsim.run.record import Ending
from lnsim.simulation.trajectory import Trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    with surroundings.settled() as output:
        code = _command(argv)
    return output.code(code)


def program() -> int:
    """The program `lnsim`: main, and an end of the process without a last search for garbage.

    Numba, Matplotlib and their tables are a million objects, and to take them apart at exit would
    last as long as drawing a figure.
    """
    code = main()
    gc.freeze()
    return code


def _command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        threads.check()
        with style.use(getattr(arguments, "style", None)):
            code: int = arguments.command(arguments)
    except Undrawn as error:
        print(f"lnsim: {error}", file=sys.stderr)
        return LOST
    except KeyboardInterrupt:
        print("lnsim: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MemoryError as error:
        print(
            f"lnsim: not enough memory: {error}; lower width, dim, samples or batch_size",
            file=sys.stderr,
        )
        return BAD_INPUT
    except (ValueError, TypeError, OSError) as error:
        print(f"lnsim: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return code


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"lnsim: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks up the version only on request, as that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> NoReturn:
        from importlib import metadata

        try:
            print(f"lnsim {metadata.version('lnsim')}")
        except metadata.PackageNotFoundError:  # imported from sources or an archive
            print("lnsim, version unknown: it is not installed")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lnsim",
        description="How noise in training carries a network from the lazy to the rich regime.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the experiments, or the keys of one")
    listing.set_defaults(command=_list)
    listing.add_argument("experiment", nargs="?", help="list the keys of this experiment")

    run = commands.add_parser(
        "run",
        help="run an experiment and write its run folder",
        description="Runs an experiment; writes its numbers, its figure and its configuration.",
    )
    run.set_defaults(command=_run)
    run.add_argument("experiment", nargs="?", help="a name that `lnsim list` prints")
    _add_assignments(run)
    run.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="read keys from a file, such as a run's"
    )
    run.add_argument("--seed", type=int, help="short for --set seed=SEED")
    run.add_argument("--backend", help="numba (default), or torch (default for networks on images)")
    run.add_argument(
        "--device", help="device of torch: cpu (default), cuda or cuda:N (cuda is the default for"
        " networks on images if there is one)",
    )  # fmt: skip
    run.add_argument(
        "--preset", help="for networks on images: paper (default on cuda) or small (default on"
        " the cpu); --set and --config override it",
    )  # fmt: skip
    run.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the run folder (default: runs/EXPERIMENT, or -2, -3, ...)",
    )
    existing = run.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="resume from the checkpoint in DIR")
    existing.add_argument("--force", action="store_true", help="overwrite the files in DIR")
    run.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="SECONDS",
        help="write a checkpoint this often (default: %(default)g)",
    )  # fmt: skip
    plot.add_style(run)

    verifying = commands.add_parser(
        "verify",
        help="recompute a random segment of a run and compare",
        description="Recomputes a random segment of a run from a state saved in it, and compares"
        " every number.",
    )
    verifying.set_defaults(command=_verify)
    verifying.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    verifying.add_argument("--seed", type=int, help="seed of the choice of the segment")
    verifying.add_argument(
        "--seconds", type=float, default=60.0, help="time limit (default: %(default)g)"
    )

    theory = commands.add_parser(
        "theory",
        help="print the theory of a setting, beside the measurements of a run",
        description="Prints conditions, times and bounds for a setting; for a run folder, measured"
        " beside predicted.",
    )
    theory.set_defaults(command=_theory)
    theory.add_argument(
        "folder", nargs="?", type=Path, metavar="RUN_FOLDER or EXPERIMENT",
        help="a run folder; for a setting label-noise (default) or sam",
    )  # fmt: skip
    _add_assignments(theory)

    sweeping = commands.add_parser(
        "sweep",
        help="run an experiment at every point of a grid",
        description="Runs an experiment at every point of a grid; keeps a summary of each in"
        " DIR/sweep.sqlite. Stopped in any way, the same command goes on where it was.",
    )
    _add_assignments(sweeping)
    sweep.add_sweep(sweeping)

    plotting = commands.add_parser(
        "plot",
        help="draw a sweep or a run, compare runs, or animate a run",
        description="Draws a sweep: a phase diagram over two swept keys, a curve with its power law"
        " over one. For one run folder it draws the run's figures again; for several it draws their"
        " curves, labelled by the keys in which they differ, as curves.png.",
    )
    plot.add_plot(plotting)

    everything = commands.add_parser(
        "reproduce",
        help="run every synthetic experiment and write one page of claims and verdicts",
        description="Runs every synthetic experiment of the paper, and large steps; writes"
        " index.html with the figures and, for each claim, prediction, measurement and verdict.",
    )
    everything.set_defaults(command=_reproduce)
    everything.add_argument("--out", type=Path, required=True, metavar="DIR")
    everything.add_argument("--force", action="store_true", help="overwrite the files in DIR")
    everything.add_argument("--backend", default="numba", help="default: %(default)s")
    everything.add_argument(
        "--data", default="", metavar="FILE", help="images, FILE.npz or cifar10, on which three"
        " small networks are trained and judged too; needs torch and takes minutes",
    )  # fmt: skip

    everything.add_argument(
        "--papers", metavar="NAMES", help="instead of the paper's experiments, the published"
        " results of others: all, or names of `lnsim papers` with commas; the same command goes on"
        " where it was",
    )  # fmt: skip

    publishing = commands.add_parser(
        "papers",
        help="list the field's published results, or run one and compare",
        description="Runs the setting of a paper and prints, for each of its claims, what is"
        " published, ours, and a verdict; without a name, lists the papers.",
    )
    papers.add_papers(publishing)

    citing = commands.add_parser(
        "cite",
        help="print the papers that an experiment, a run or a result rests on, as BibTeX",
        description="Prints the papers that an experiment, a run, a statement of theory, a method"
        " or a measure rests on, as BibTeX, with comments on what each is for and what is lnsim's"
        " own; without a name, lists what there is.",
    )
    cite.add_cite(citing)

    about = commands.add_parser(
        "info", help="print versions, backends, devices, and how to install what is missing"
    )
    about.set_defaults(command=_info)
    plot.add_style(everything)
    return parser


def _add_assignments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="assignments",
        help="set keys of the configuration; may be repeated",
    )  # fmt: skip


def _list(arguments: argparse.Namespace) -> int:
    if arguments.experiment is not None:
        print("\n".join(keys.described(arguments.experiment)))
        return 0
    for name in experiment.names():
        print(f"{name:<22}{experiment.load(name).meaning}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    chosen, backend, config = _configured(arguments)
    train = partial(chosen.run, config, backend=backend)
    if chosen.parallel is None:
        return _write_run(arguments, chosen, partial(train, device=arguments.device or ""))
    with chosen.parallel(backend, arguments.device) as (device, leads):
        train = partial(train, device=device)
        return _write_run(arguments, chosen, train) if leads else _follow(arguments, train)


def _configured(arguments: argparse.Namespace) -> tuple[Experiment, str, Any]:
    """The experiment, the backend and the configuration of the arguments."""
    values: dict[str, Any] = {}
    if arguments.resume and arguments.out is None:
        raise ValueError("--resume needs --out DIR, the run folder to resume")
    source = arguments.config or (arguments.out if arguments.resume else None)
    if arguments.config is not None:
        values = configs.read_toml(arguments.config)
    elif arguments.resume:
        values = dict(newest(arguments.out).config)
    source_experiment = values.pop("experiment", None)
    # argparse takes an experiment's name after --set KEY=VALUE for another assignment.
    words = [text for text in arguments.assignments if "=" not in text]
    if arguments.experiment is None and words:
        arguments.experiment = words[0]
        arguments.assignments.remove(words[0])
    name = arguments.experiment or source_experiment
    if not isinstance(name, str | None):
        raise TypeError(f"experiment must be a name, got {name!r}")
    if name is None:
        raise ValueError("name an experiment, or a --config FILE.toml that names one")
    if source_experiment not in (None, name):
        raise ValueError(f"{source} is of experiment {source_experiment!r}, not {name!r}")
    chosen = experiment.load(name)
    if arguments.config is None and arguments.resume:
        values = configs.completed(chosen.Config, values)
    backend = arguments.backend or values.pop("backend", chosen.backend)
    values.pop("backend", None)
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a name, got {backend!r}")
    if not arguments.checkpoint_every >= 0.0:
        raise ValueError(f"--checkpoint-every must be at least 0, got {arguments.checkpoint_every}")
    assigned = dict(configs.parse_assignment(text) for text in arguments.assignments)
    preset = assigned.pop("preset", arguments.preset)
    values |= assigned
    if arguments.seed is not None:
        values["seed"] = arguments.seed
    values = chosen.with_preset(preset, values, backend, arguments.device)
    return chosen, backend, configs.build(chosen.Config, values)


def _follow(arguments: argparse.Namespace, train: Callable[..., Trajectory]) -> int:
    """Trains together with the leading process, which alone writes and prints."""
    with interrupted() as stop:
        trajectory = train(stop=stop, resume=newest(arguments.out) if arguments.resume else None)
    return {"OK": 0, "STOPPED": stop.code, "DIVERGED": DIVERGED}[trajectory.status.code]


def _write_run(
    arguments: argparse.Namespace, chosen: Experiment, train: Callable[..., Trajectory]
) -> int:
    """Trains, writes the run folder, and prints a report."""
    out = arguments.out or free_path(Path("runs"), chosen.name)
    reuse = arguments.resume or arguments.force
    with RunFolder(out, reuse=reuse), locked(out), hinting(out), interrupted() as stop:
        trajectory = train(
            progress=True,
            resume=newest(out) if arguments.resume else None,
            checkpoint=lambda partial: partial.save(out, CHECKPOINT),
            checkpoint_every=arguments.checkpoint_every,
            stop=stop,
        )
        if trajectory.status.code == Ending.STOPPED:
            trajectory.save(out, CHECKPOINT)
            print(f"{trajectory.status}; go on with: {how_to_resume(out)}")
            return stop.code
        trajectory.save(out)
        (out / CHECKPOINT).unlink(missing_ok=True)
        undrawn = figure_files.write(trajectory, out)
    for line in chosen.report(trajectory):
        print(line)
    print(f"run folder    {out}")
    if undrawn:
        again = f"the numbers are kept; draw them with: lnsim plot {in_shell(out)}"
        print(f"lnsim: {undrawn}; {again}", file=sys.stderr)
    if trajectory.status.code == Ending.DIVERGED:
        print(f"lnsim: the run {trajectory.status}: try a smaller lr", file=sys.stderr)
        return DIVERGED
    return LOST if undrawn else 0


def _theory(arguments: argparse.Namespace) -> int:
    from lnsim.verdicts import table  # with the verdicts, a slow import

    folder, assignments = arguments.folder, arguments.assignments
    name = "label-noise" if folder is None else str(folder)
    if folder is None or (name in experiment.names() and (assignments or not folder.exists())):
        values = dict(configs.parse_assignment(text) for text in assignments)
        case = Case.of_setting(configs.build(experiment.load(name).Config, values), name)
    else:
        if assignments:
            raise ValueError("--set changes nothing about a run that is over: give either")
        case = Case.of_run(newest(folder))
    for line in table.table(case):
        print(line)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from lnsim.simulation.verify import verify

    result = verify(newest(arguments.folder), seed=arguments.seed, seconds=arguments.seconds)
    for line in result.lines:
        print(line)
    return 0 if result.same else MISMATCH


def _reproduce(arguments: argparse.Namespace) -> int:
    if arguments.papers is not None:
        if arguments.force or arguments.data or arguments.backend != "numba":
            raise ValueError("--papers takes none of --force, --data and --backend")
        return papers.reproduce(arguments.out, papers.chosen(arguments.papers))
    from lnsim.verdicts.reproduce import reproduce  # with all verdicts, a slow import

    folder = RunFolder(arguments.out, reuse=arguments.force, resumable=False)
    undrawn: list[str] = []
    with folder, locked(arguments.out):
        verdicts = reproduce(
            arguments.out, backend=arguments.backend, progress=True, undrawn=undrawn.append,
            data=arguments.data,
        )  # fmt: skip
    for verdict in verdicts:
        print(verdict)
    print(f"page          {arguments.out / 'index.html'}")
    for line in undrawn:
        print(f"lnsim: {line}", file=sys.stderr)
    return LOST if undrawn else 0


def _info(arguments: argparse.Namespace) -> int:
    for line in info.report():
        print(line)
    return 0
