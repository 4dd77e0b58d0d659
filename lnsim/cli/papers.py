"""The command `papers`: the field's published results, run again beside the published numbers."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from lnsim.base.config import nearest
from lnsim.base.progress import reports
from lnsim.cli.exits import LOST
from lnsim.experiments.papers import NAMES
from lnsim.run.folder import RunFolder, locked

INDENT = 22


def add_papers(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `papers`."""
    parser.set_defaults(command=_papers)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a paper; without one: list them")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep the runs and the figure in DIR/NAME; runs"
        " that are there already are not made again",
    )  # fmt: skip


def _papers(arguments: argparse.Namespace) -> int:
    from lnsim.verdicts import published  # with SciPy and Matplotlib, a slow import

    if arguments.name is None:
        for name in NAMES:
            first = f"{name:<{INDENT}}"
            print(textwrap.fill(published.load(name).line, 80, initial_indent=first,
                                subsequent_indent=" " * INDENT))  # fmt: skip
        return 0
    paper, out = published.load(arguments.name), arguments.out
    undrawn = ""
    with ExitStack() as held:
        if out is not None:
            held.enter_context(RunFolder(out, reuse=True))
            held.enter_context(locked(out))
        name = paper_name(arguments.name)
        runs = published.run(name, out, held.enter_context(_noted()))
        if out is not None:
            undrawn = published.draw(name, runs, out)
    for line in published.lines(paper, published.judged(paper, runs)):
        print(line)
    return _told([undrawn] if undrawn else [])


def paper_name(text: str) -> str:
    """The name of a paper, which may be written with hyphens."""
    return text.strip().replace("-", "_")


def chosen(text: str) -> list[str]:
    """The names in "all" or a list with commas.  Raises ValueError for an unknown name."""
    if text == "all":
        return [*NAMES]
    names = [*dict.fromkeys(map(paper_name, text.split(",")))]
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown paper {name!r}: {nearest(name, NAMES)}")
    return names


def reproduce(out: Path, names: list[str]) -> int:
    """`reproduce --papers`: the page of the published results in the folder `out`."""
    from lnsim.verdicts import published  # with SciPy and Matplotlib, a slow import

    if (out / "index.html").exists() and not any((out / name).is_dir() for name in NAMES):
        raise ValueError(f"{out} has another page: choose another folder")
    undrawn: list[str] = []
    with RunFolder(out, reuse=True), locked(out), _noted() as note:
        verdicts = published.write(out, names, note, undrawn.append)
    for verdict in verdicts:
        print(verdict)
    print(f"page          {out / 'index.html'}")
    return _told(undrawn)


def _told(undrawn: list[str]) -> int:
    """Says which figures could not be drawn; the exit code."""
    for line in undrawn:
        print(f"lnsim: {line}", file=sys.stderr)
    return LOST if undrawn else 0


def _noted() -> AbstractContextManager[Callable[[str], object]]:
    """The function that shows on a bar which run begins."""
    return reports(True, _begin, unit="run")


def _begin(bar: Any, run: str) -> None:
    bar.set_description(run)
    bar.update()
