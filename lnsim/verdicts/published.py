"""Runs the published results of experiments/papers, and judges ours beside theirs.

An arm's run is kept in OUT/PAPER/ARM, one folder an arm.  A run that is there already, of the same
arm, is read in place of being made again: a `papers` that was killed goes on.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
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
from lnsim.simulation.trajectory import Trajectory
from lnsim.verdicts import page
from lnsim.verdicts.judge import FAILS, HOLDS, UNDECIDED, Statement, Verdict
from lnsim.verdicts.sections import Section

CONFIDENCE, MIDDLE = 0.95, 0.98
WIDTH, INDENT = 80, 15


def load(name: str) -> Published:
    """The published result `name`.  Raises ValueError, naming the nearest, for another name."""
    if name not in papers.NAMES:
        raise ValueError(f"unknown paper {name!r}: {nearest(name, papers.NAMES)}")
    module = plugins.load(f"{papers.__name__}.{name}", f"paper {name!r}")
    paper: Published = module.PAPER
    return paper


def run(
    name: str, folder: Path | None, note: Callable[[str], object], only: Iterable[str] | None = None
) -> Runs:
    """The runs of the arms of `name`, or of those in `only`; `note` is called with each arm's name.

    With `folder` they are kept there, with the paper's figure, and those that are there are read.
    """
    paper = load(name)
    arms = paper.arms if only is None else {arm: paper.arms[arm] for arm in only}
    runs = {arm: _kept(name, arm, of, folder, note) for arm, of in arms.items()}
    if folder is not None and only is None:
        with output.guarded():
            canvas.save(paper.figure(runs), folder / name, "figure")
    return runs


def _kept(
    name: str, arm: str, of: Arm, folder: Path | None, note: Callable[[str], object]
) -> Trajectory:
    config = {"paper": name, "arm": arm, "recipe": repr(of.dynamics), "steps": of.steps,
              "records": of.records, "seeds": of.seeds}  # fmt: skip
    place = None if folder is None else folder / name / of_arm(arm)
    if place is not None and (place / "trajectory.npz").is_file():
        kept = Trajectory.load(place)
        if kept.config == config:
            return kept
    note(f"{name}: {arm}")
    made = of.run(config=config)
    if place is not None:
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
    values = np.atleast_1d(np.asarray(claim.measured(runs), dtype=float))
    if claim.relation == AMONG:
        return _among(claim, values)
    statement = Statement(claim.place, claim.relation, claim.published, within=claim.within)
    if values.size == 1:
        return statement.verdict(claim.statement, values[0], claim.rule, note=claim.note)
    middle, low, high = interval(values, claim.statistic)
    ends = {statement.met(low), statement.met(high)}
    kind = UNDECIDED if len(ends) > 1 else HOLDS if ends == {True} else FAILS
    note = f"{CONFIDENCE:.0%} interval {low:.4g} to {high:.4g}"
    return Verdict(
        claim.statement, claim.place, claim.relation, claim.published, middle, kind, claim.rule,
        f"{claim.note}; {note}" if claim.note else note,
    )  # fmt: skip


def interval(values: FloatArray, statistic: str) -> tuple[float, float, float]:
    """The mean or the median of independent values, (S,), and the 95 % interval about it.

    Student's for the mean; for the median that of two order statistics, which holds for any law
    (and is at least 95 %); with fewer than six values that is their whole range.
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
    low, high = np.quantile(values, [(1 - MIDDLE) / 2, (1 + MIDDLE) / 2])
    kind = HOLDS if low <= claim.published <= high else FAILS
    share = float((values < claim.published).mean())
    note = f"ours {low:.3g} to {high:.3g} ({MIDDLE:.0%}), {share:.0%} of them below theirs"
    return Verdict(
        claim.statement, claim.place, AMONG, claim.published, float(np.median(values)), kind,
        claim.rule, f"{claim.note}; {note}" if claim.note else note,
    )  # fmt: skip


def lines(paper: Published, verdicts: Iterable[Verdict]) -> list[str]:
    """What `lnsim papers NAME` prints, 80 columns wide: each claim, published, ours, the rule."""
    found = [short(paper.key), *textwrap.wrap(f"{paper.line}. {paper.setting}.", WIDTH)]
    for each in verdicts:
        found.append("")
        found += _wrapped(f"{each.verdict:<{INDENT}}", f"{each.claim} ({each.source})")
        numbers = (
            f"{each.relation} {page.number(each.predicted)}; ours {page.number(each.measured)}"
        )
        found += _wrapped(" " * INDENT, f"published: {numbers}")
        found += _wrapped(" " * INDENT, f"{each.rule}{'; ' + each.note if each.note else ''}")
    return found


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT, break_on_hyphens=False
    )


def write(folder: Path, names: Iterable[str], note: Callable[[str], object]) -> list[Verdict]:
    """Runs the papers `names` into `folder`, writes its page, and returns the verdicts.

    `index.html` has a section for each paper, `verdicts.json` the same as numbers.
    """
    parts: list[Section] = []
    provenance: Mapping[str, Any] = {}
    for name in names:
        paper = load(name)
        runs = run(name, folder, note)
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
