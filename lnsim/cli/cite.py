"""The command `cite`: the papers that an experiment, a run or a result rests on, as BibTeX.

Text outside entries is a comment to BibTeX; it begins with `%` here, and says what each paper is
for and what is lnsim's own.
"""

from __future__ import annotations

import argparse
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lnsim.base.config import nearest
from lnsim.cli.folders import newest
from lnsim.cli.info import version
from lnsim.references import credits
from lnsim.references.paper import entry
from lnsim.references.papers import PAPERS, bibtex
from lnsim.run import experiment
from lnsim.run.quantities import TABLE

WIDTH, INDENT = 80, 24
TITLE = "{lnsim: how noise in training carries a network from the lazy to the rich regime}"


class Cited(NamedTuple):
    """What is cited: its name, what it is, and what it rests on, as credits.papers_of takes it."""

    name: str
    says: str
    rests_on: tuple[str, ...]


def add_cite(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `cite`."""
    parser.set_defaults(command=_cite)
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="an experiment, a statement of theory, a method, a measure, a paper's key or a run"
        " folder; without one: list them",
    )  # fmt: skip


def _cite(arguments: argparse.Namespace) -> int:
    cited = [_named(name) for name in arguments.names]
    for line in _bibliography(cited) if cited else _listing():
        print(line)
    return 0


def _named(name: str) -> Cited:
    """What `name` stands for.  Raises ValueError, naming the nearest, for an unknown name."""
    if name in experiment.names():
        chosen = experiment.load(name)
        return Cited(name, chosen.meaning, chosen.rests_on)
    if name in credits.CREDITS:
        return Cited(name, credits.CREDITS[name].says, (name,))
    if name in PAPERS:
        return Cited(name, PAPERS[name].short, (name,))
    if Path(name).exists():
        return _of_run(Path(name))
    if name in TABLE:
        raise ValueError(f"{name} is recorded, but rests on no paper that lnsim names")
    known = (*experiment.names(), *credits.CREDITS, *PAPERS)
    raise ValueError(f"nothing to cite is called {name!r}, nor a run folder: {_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, or where they are listed: they are many."""
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else "`lnsim cite` lists what there is"


def _of_run(folder: Path) -> Cited:
    """The experiment of a run folder, with the methods that its configuration uses."""
    config = newest(folder).config
    if "experiment" not in config:
        raise ValueError(f"the run in {folder} is of no experiment: name what it rests on")
    chosen = experiment.load(str(config["experiment"]))
    return Cited(
        str(folder), f"a run of {chosen.name}", (*chosen.rests_on, *credits.used_by(config))
    )


def _bibliography(cited: list[Cited]) -> Iterator[str]:
    """Comments on everything cited, then each paper's entry once, and that of lnsim."""
    for part in cited:
        yield from _wrapped(f"{part.name}: {part.says}" if part.says else part.name, 0)
        yield "%"
        for key in credits.papers_of(*part.rests_on):
            yield from _wrapped(f"{key:<{INDENT - 2}}{PAPERS[key].gave}", INDENT - 2)
        for name, share in credits.whose(*part.rests_on).items():
            yield from _wrapped(f"{name:<{INDENT - 2}}{share}", INDENT - 2)
        yield "%"
    every = [name for part in cited for name in part.rests_on]
    yield ""
    if keys := credits.papers_of(*every):
        yield bibtex(keys)
        yield ""
    yield entry("misc", "lnsim", {
        "author": "{the lnsim authors}",
        "title": TITLE,
        "year": "2026",
        "note": f"Version {version('lnsim') or 'unknown'}",
    })  # fmt: skip


def _wrapped(text: str, indent: int) -> list[str]:
    """`text` as comments in ASCII; BibTeX would take an @, as in a folder's name, for an entry."""
    letters = unicodedata.normalize("NFD", text.replace("@", "(at)"))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return _lines(text, initial_indent="% ", subsequent_indent=f"% {' ' * indent}")


def _listing() -> Iterator[str]:
    """What can be cited, by kind, with the papers of each; no line is longer than WIDTH."""
    experiments = {name: experiment.load(name).rests_on for name in experiment.names()}
    kinds = {"experiments": experiments}
    kinds |= {kind: {name: (name,) for name in table} for kind, table in credits.BY_KIND.items()}
    for kind, table in kinds.items():
        yield kind
        for name, rests_on in table.items():
            papers = credits.named(*rests_on) or "lnsim's own"
            yield from _lines(f"  {name:<{INDENT - 2}}{papers}", subsequent_indent=" " * INDENT)


def _lines(text: str, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """`text` in lines of at most WIDTH, none of which ends between "et al." and the year."""
    unbroken = re.sub(r" et al\. (?=\d)", "\xa0et\xa0al.\xa0", text)
    lines = textwrap.wrap(
        unbroken, WIDTH, break_long_words=False, break_on_hyphens=False,
        initial_indent=initial_indent, subsequent_indent=subsequent_indent,
    )  # fmt: skip
    return [line.replace("\xa0", " ") for line in lines]
