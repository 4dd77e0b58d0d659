"""Runs the published results of experiments/papers, and judges ours beside theirs.

An arm's run is kept in OUT/PAPER/ARM, one folder an arm.  A run that is there already, of the same
data, start and dynamics, is read in place of being made again: a `papers` that was killed goes on.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lnsim.base import files, plugins
from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.experiments import papers
from lnsim.experiments.papers.published import AMONG, Arm, Claim, Published, Runs
from lnsim.figures import canvas, output
from lnsim.references.papers import short
from lnsim.run.folder import locked
from lnsim.simulation.trajectory import Trajectory
from lnsim.verdicts import page
from lnsim.verdicts.judge import FAILS, HOLDS, UNDECIDED, Statement, Verdict
from lnsim.verdicts.sections import Section

CONFIDENCE, MIDDLE = 0.95, 0.98
LEAST_SEEDS = 6
"""With fewer no interval about a median holds at 95 %."""
ASKED = "asked"
"""Begins the relation to a number that the paper does not give."""
WIDTH, INDENT = 80, 15


def load(name: str) -> Published:
    """The published result `name`.  Raises ValueError, naming the nearest, for another name."""
    name = name.strip().replace("-", "_")
    if name not in papers.NAMES:
        raise ValueError(f"unknown paper {name!r}: {nearest(name, papers.NAMES)}")
    module = plugins.load(f"{papers.__name__}.{name}", f"paper {name!r}")
    paper: Published = module.PAPER
    return paper


def run(
    name: str, folder: Path | None, note: Callable[[str], object], only: Iterable[str] | None = None
) -> Runs:
    """The runs of the arms of `name`, or of those in `only`; `note` is called with each arm's name.

    With `folder` they are kept there, and those that are there are read.
    """
    arms = load(name).arms
    chosen = arms if only is None else {arm: arms[arm] for arm in only}
    return {arm: _kept(name, arm, of, folder, note) for arm, of in chosen.items()}


def draw(name: str, runs: Runs, folder: Path) -> str:
    """Draws the paper's figure into `folder`/`name`; returns why it could not be drawn, or ""."""
    try:
        with output.guarded():
            for file in ("figure.png", "figure.pdf"):
                (folder / name / file).unlink(missing_ok=True)
            canvas.save(load(name).figure(runs), folder / name, "figure")
    except output.Undrawn as error:
        return f"{name}: {error}"
    return ""


def _kept(
    name: str, arm: str, of: Arm, folder: Path | None, note: Callable[[str], object]
) -> Trajectory:
    """The run of an arm, read where a whole one is kept: one that is killed has no environment."""
    config = {"paper": name, "arm": arm, **of.about()}
    place = None if folder is None else folder / name / of_arm(arm)
    if place is not None and (place / "trajectory.npz").is_file():
        with suppress(ValueError):  # a damaged one is made again
            kept = Trajectory.load(place)
            if kept.config == config and kept.provenance:
                return kept
    note(f"{name}: {arm}")
    made = of.run(config=config)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            made.save(place)
    return made


def of_arm(arm: str) -> str:
    """The folder of an arm's run."""
    return re.sub(r"[^\w.+-]+", "_", arm).strip("_")


def judged(paper: Published, runs: Runs) -> list[Verdict]:
    """The verdicts on the claims whose arms have run."""
    return [verdict(claim, runs) for claim in paper.claims if runs.keys() >= {*claim.arms}]


def verdict(claim: Claim, runs: Runs) -> Verdict:
    """The verdict on one claim: see experiments/papers/published.py."""
    try:
        measured = np.asarray(claim.measured(runs), dtype=float)
    except ArithmeticError as error:
        return _verdict(claim, math.nan, FAILS, str(error))
    values = np.atleast_1d(measured)
    if np.isnan(values).any():
        return _verdict(claim, math.nan, FAILS, "a number is missing: a run diverged")
    if claim.relation == AMONG:
        return _among(claim, values)
    statement = Statement(claim.place, claim.relation, claim.published, within=claim.within)
    if measured.ndim == 0:
        return _verdict(claim, values[0], HOLDS if statement.met(values[0]) else FAILS)
    if values.size < LEAST_SEEDS:
        return _verdict(claim, math.nan, UNDECIDED, f"{values.size} seeds are left")
    middle, low, high = interval(values, claim.statistic)
    ends = {statement.met(low), statement.met(high)}
    kind = UNDECIDED if len(ends) > 1 else HOLDS if ends == {True} else FAILS
    return _verdict(claim, middle, kind, f"{CONFIDENCE:.0%} interval {low:.4g} to {high:.4g}")


def _verdict(claim: Claim, measured: float, kind: str, note: str = "") -> Verdict:
    notes = "; ".join(filter(None, (claim.note, note)))
    relation = f"{ASKED} {claim.relation}" if claim.asked else claim.relation
    return Verdict(
        claim.statement, claim.place, relation, claim.published, float(measured), kind, claim.rule,
        notes,
    )  # fmt: skip


def interval(values: FloatArray, statistic: str) -> tuple[float, float, float]:
    """The mean or the median of independent values, (S,), and the 95 % interval about it.

    Student's for the mean; for the median that of two order statistics, which holds for any law
    (and is at least 95 %).
    """
    count = values.size
    if statistic == "mean":
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stats.sem(values)
        middle = float(values.mean())
        return middle, middle - float(reach), middle + float(reach)
    below = max(0, int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)) - 1)
    ordered = np.sort(values)
    return float(np.median(values)), float(ordered[below]), float(ordered[count - 1 - below])


def _among(claim: Claim, values: FloatArray) -> Verdict:
    """Whether the published number, of one draw, lies among the middle 98 % of ours."""
    if values.size < LEAST_SEEDS:
        return _verdict(claim, math.nan, UNDECIDED, f"{values.size} seeds are left")
    low, high = np.quantile(values, [(1 - MIDDLE) / 2, (1 + MIDDLE) / 2])
    kind = HOLDS if low <= claim.published <= high else FAILS
    share = float((values < claim.published).mean())
    note = f"ours {low:.3g} to {high:.3g} ({MIDDLE:.0%}), {share:.0%} of them below theirs"
    return _verdict(claim, float(np.median(values)), kind, note)


def lines(paper: Published, verdicts: Iterable[Verdict]) -> list[str]:
    """What `lnsim papers NAME` prints, 80 columns wide: each claim, published, ours, the rule."""
    found = [short(paper.key), *textwrap.wrap(f"{paper.line}. {paper.setting}.", WIDTH)]
    for each in verdicts:
        found.append("")
        found += _wrapped(f"{each.verdict:<{INDENT}}", f"{each.claim} ({each.source})")
        numbers = (
            f"{each.relation} {page.number(each.predicted)}; ours {page.number(each.measured)}"
        )
        whose = "" if each.relation.startswith(ASKED) else "published: "
        found += _wrapped(" " * INDENT, f"{whose}{numbers}")
        found += _wrapped(" " * INDENT, f"{each.rule}{'; ' + each.note if each.note else ''}")
    return found


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT, break_on_hyphens=False
    )


def write(
    folder: Path,
    names: Iterable[str],
    note: Callable[[str], object],
    undrawn: Callable[[str], object],
) -> list[Verdict]:
    """Runs the papers `names` into `folder`, writes its page, and returns the verdicts.

    `index.html` has a section for each paper, `verdicts.json` the same as numbers.  `undrawn` is
    called with the reason why a figure could not be drawn; the page then lacks it.
    """
    parts: list[Section] = []
    provenance: Mapping[str, Any] = {}
    for name in names:
        paper = load(name)
        runs = run(name, folder, note)
        if reason := draw(name, runs, folder):
            undrawn(reason)
        provenance = next(iter(runs.values())).provenance
        parts.append(
            Section(
                name, f"{short(paper.key)}: {paper.line}", f"{paper.line}. Here: {paper.setting}.",
                ((f"{name}/figure.png", paper.caption),), judged(paper, runs), (paper.key,),
            )
        )  # fmt: skip
    files.write_json(folder / "verdicts.json", page.plain(parts, provenance))
    files.write_text(folder / "index.html", page.render_papers(folder, parts, provenance))
    return [verdict for section in parts for verdict in section.verdicts]
