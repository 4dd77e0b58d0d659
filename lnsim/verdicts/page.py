"""The page of `reproduce`: one HTML file that contains its figures and loads nothing else.

sections.py has the text, page.html the markup; this module fills one with the other.
"""

from __future__ import annotations

import base64
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from lnsim.references.credits import papers_of, whose
from lnsim.references.papers import PAPERS, short
from lnsim.theory.paper import Condition
from lnsim.verdicts.judge import FAILS, HOLDS, UNDECIDED, UNMET, VACUOUS, Verdict
from lnsim.verdicts.sections import Section

# Plain text, after escaping, and the symbol of the paper that replaces it.
SYMBOLS = (
    (r"\btheta\b", "θ"), (r"\b(?:lr|eta)\b", "η"), (r"\bsigma\b", "σ"), (r"\brho\b", "ρ"),
    (r"\blambda(?=_|\b)", "λ"), (r"\bdW", "ΔW"), (r"\bsqrt\((\w+)\)", r"√\1"),
    (r"\bsqrt\b", "√"), (r"\bsum\b(?= \|)", "Σ"), (r"&lt;=", "≤"), (r"&gt;=", "≥"),
    (r"\+-", "±"), (r"_max\b", "<sub>max</sub>"), (r"_(\w)\b|_(\w)(?=\^)", r"<sub>\1\2</sub>"),
    (r"(?<=\^)-|(?<=\^\()-", "−"), (r"\^\(([^)]*)\)|\^(−?\w+)", r"<sup>\1\2</sup>"),
)  # fmt: skip
COLOURS = {
    HOLDS: "#009E73", FAILS: "#D55E00", UNMET: "#8a6100", UNDECIDED: "#8a6100", VACUOUS: "#767676",
}  # fmt: skip
"""Of each verdict, in the order in which they are counted."""


@functools.cache
def _templates() -> dict[str, Template]:
    """The blocks of page.html, by name."""
    text = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
    _, *blocks = re.split(r"<!-- (\w+) -->\n", re.sub(r"\n +", "", text))
    return {
        name: Template(block.rstrip("\n"))
        for name, block in zip(blocks[::2], blocks[1::2], strict=True)
    }


def _fill(block: str, **values: object) -> str:
    return _templates()[block].substitute(values)


def render(
    folder: Path,
    sections: Sequence[Section],
    conditions: Sequence[Condition],
    provenance: Mapping[str, Any],
) -> str:
    """The page of the paper as HTML, with the pictures in `folder`."""
    return _page(
        "paper_intro", "the paper's claims", folder, sections, provenance, "Predicted or asked",
        _fill("conditions", conditions="".join(map(_condition, conditions))),
        "lnsim run --config FOLDER/config.toml repeats one bit for bit",
    )  # fmt: skip


def render_papers(folder: Path, sections: Sequence[Section], provenance: Mapping[str, Any]) -> str:
    """The page of the published results (verdicts/published.py), with the pictures in `folder`."""
    return _page(
        "papers_intro", "published results", folder, sections, provenance, "Published or asked", "",
        "lnsim papers NAME repeats those of a paper bit for bit",
    )  # fmt: skip


def _page(
    intro: str,
    title: str,
    folder: Path,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    asked: str,
    further: str,
    again: str,
) -> str:
    """A page; `asked` is the heading of the numbers that ours stand beside."""
    counts = Counter(verdict.verdict for section in sections for verdict in section.verdicts)
    tally = ", ".join(f"{counts[kind]} {_coloured(kind)}" for kind in COLOURS if counts[kind])
    versions = provenance.get("versions", {})
    installed = ", ".join(f"{k} {v}" for k, v in versions.items() if v != "not installed")
    return _fill(
        "page",
        title=title,
        intro=_fill(intro, tally=tally),
        links="".join(_fill("link", key=s.key, title=escape(s.title)) + " " for s in sections),
        sections="\n".join(_section(folder, section, asked) for section in sections),
        further=further,
        again=again,
        references=_references(sections),
        installed=escape(installed),
        python=escape(str(provenance.get("python", ""))),
    )


def plain(sections: Sequence[Section], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts as plain data for strict JSON: a number that is not finite becomes null."""

    def entry(verdict: Verdict) -> dict[str, Any]:
        values = asdict(verdict)
        for key in ("predicted", "measured"):
            if not math.isfinite(values[key]):
                values[key] = None
        return values

    return {
        "sections": [
            {"key": s.key, "title": s.title, "verdicts": [entry(v) for v in s.verdicts]}
            for s in sections
        ],
        "environment": dict(provenance),
    }


def _section(folder: Path, section: Section, asked: str) -> str:
    return _fill(
        "section",
        key=section.key,
        title=escape(section.title),
        claim=_text(section.claim),
        papers=_papers(section.rests_on),
        pictures="".join(_picture(folder / name, caption) for name, caption in section.pictures),
        asked=asked,
        rows="".join(_row(verdict, asked) for verdict in section.verdicts),
    )


def _papers(rests_on: Sequence[str]) -> str:
    """The papers of a section, each a link to its reference, and what is whose."""
    links = ", ".join(
        _fill("link", key=key, title=escape(short(key))) for key in papers_of(*rests_on)
    )
    shares = " ".join(map(_text, whose(*rests_on).values()))
    return _fill("papers", links=links, shares=shares) if links else ""


def _references(sections: Sequence[Section]) -> str:
    """The papers of all sections, in the order of their keys."""
    keys = papers_of(*(name for section in sections for name in section.rests_on))
    return "".join(
        _fill("reference", key=key, text=escape(PAPERS[key].reference)) for key in sorted(keys)
    )


def _row(verdict: Verdict, asked: str) -> str:
    return _fill(
        "row",
        claim=_text(verdict.claim),
        rule=_text(verdict.rule),
        note=f" {_text(verdict.note)}." if verdict.note else "",
        source=escape(verdict.source),
        asked=asked,
        relation=verdict.relation,
        predicted=number(verdict.predicted),
        measured=number(verdict.measured),
        verdict=_coloured(verdict.verdict),
    )


def _text(plain: str) -> str:
    """A sentence as HTML, with the paper's symbols."""
    text = escape(plain[:1].upper() + plain[1:])
    for pattern, symbol in SYMBOLS:
        text = re.sub(pattern, symbol, text)
    return text


def _coloured(kind: str) -> str:
    return _fill("verdict", colour=COLOURS[kind], kind=kind)


def _picture(path: Path, caption: str) -> str:
    if not path.is_file():
        return _fill("missing", caption=_text(caption))
    data = base64.b64encode(path.read_bytes()).decode()
    return _fill("picture", alt=escape(caption), data=data, caption=_text(caption))


def _condition(condition: Condition) -> str:
    verdicts = {True: HOLDS, False: FAILS, None: "constant unstated"}
    return _fill(
        "condition",
        name=condition.name,
        statement=_text(condition.statement),
        value=number(condition.value),
        threshold=number(condition.threshold),
        holds=verdicts[condition.holds],
        note=_text(condition.note),
    )


def number(value: float) -> str:
    """A number as text: from 1000 on with commas, otherwise to four digits."""
    if math.isnan(value):
        return "not reached"
    if math.isinf(value):
        return "unbounded" if value > 0 else "none"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
