"""The command `papers`: the field's published results, run again beside the published numbers."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnsim.base.config import nearest
from lnsim.base.progress import reports
from lnsim.experiments.papers import NAMES
from lnsim.run.folder import RunFolder, locked

if TYPE_CHECKING:
    from lnsim.verdicts.judge import Verdict

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
    paper = published.load(arguments.name)
    with _noted() as note:
        runs = published.run(arguments.name, arguments.out, note)
    for line in published.lines(paper, published.judged(paper, runs)):
        print(line)
    return 0


def chosen(text: str) -> list[str]:
    """The names in "all" or a list with commas.  Raises ValueError for an unknown name."""
    if text == "all":
        return [*NAMES]
    names = [name.strip().replace("-", "_") for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown paper {name!r}: {nearest(name, NAMES)}")
    return names


def reproduce(out: Path, names: list[str]) -> list[Verdict]:
    """`reproduce --papers`: the page of the published results in the folder `out`."""
    from lnsim.verdicts import published  # with SciPy and Matplotlib, a slow import

    with RunFolder(out, reuse=True), locked(out), _noted() as note:
        return published.write(out, names, note)


def _noted() -> AbstractContextManager[Callable[[str], object]]:
    """The function that shows on a bar which run begins."""
    return reports(True, _begin, unit="run")


def _begin(bar: Any, run: str) -> None:
    bar.set_description(run)
    bar.update()
