"""The page of `reproduce`: one HTML file that holds its figures and asks nothing of a network."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lnsim.theory.paper import Condition
from lnsim.verdicts.claims import FAILS, HOLDS, UNMET, VACUOUS, Verdict


@dataclass(frozen=True)
class Section:
    """A figure of the paper, or a part of its theory.  `pictures`: (file, caption)."""

    key: str
    title: str
    claim: str
    pictures: tuple[tuple[str, str], ...]
    verdicts: Sequence[Verdict]


LOSSES = "(a) losses on clean labels, with those of the linearised twin trained on the same draws"
PHASES = (
    f"{LOSSES}; (b) mean norm (solid) and mean alignment (dashed); (c) single neurons"
    " from their start (dot), darker later;"
    " (d) all neurons at four times; dotted: full alignment, which no neuron can exceed."
    " Bands: the way out of the lazy regime, Phase I, Phase II as measured"
)
WINDOWS = (
    "(b) norms of the neurons, (c) single second-layer weights. Shaded: on. Losses below 10^-12 of"
    " the largest are not shown"
)


def figure_2(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "figure-2",
        "Figure 2: label noise SGD",
        "Label noise SGD leaves the lazy regime. In Phase I the norms of the neurons shrink, in"
        " Phase II the neurons turn to the interpolator. Without label noise training stays lazy.",
        (
            (
                "label-noise/figure.png",
                f"{PHASES}. (e) |W|_F^2 measured, and as the law of modes gives it with no fitted"
                " parameter.",
            ),
            ("label-noise-clean/figure.png", "Control: the same with sigma = 0."),
        ),
        verdicts,
    )


def figure_4(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "figure-4",
        "Figure 4: sharpness-aware minimisation",
        "SAM, without label noise, passes through the same two phases. Its rho is unstated in the"
        " paper; here it is 0.1 unless set otherwise.",
        (
            ("sam/figure.png", f"{PHASES}."),
            ("sam-without-rho/figure.png", "Control: the same with rho = 0."),
        ),
        verdicts,
    )


def periodic(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "label-noise-periodic",
        "Periodic label noise",
        "With the noise on for 5,000 steps and off for 5,000, neuron norms fall while it is on and"
        " stop falling while it is off; second-layer weights oscillate near zero, and settle.",
        (("label-noise-periodic/figure.png", f"{LOSSES}, {WINDOWS}."),),
        verdicts,
    )


def oscillation(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "oscillation",
        "Oscillation simulation",
        "An oscillating second layer is enough: with every a_i an independent chain on 0 and"
        " +-lr^(1/4), gradient descent on the clean loss shrinks the first layer (Lemma 4).",
        (
            (
                "oscillation/figure.png",
                f"{LOSSES}, by plain descent; (b) mean norm and mean squared norm with the level"
                " and the latest time of Lemma 4; (c) mean norm (solid) and mean alignment"
                " (dashed); (d) four second-layer weights at the start.",
            ),
        ),
        verdicts,
    )


def oscillation_periodic(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "oscillation-periodic",
        "Periodic oscillation",
        "The same in windows: norms fall while the second layer oscillates and stop falling while"
        " it does not. What a does while off is unstated; here both layers follow plain gradient"
        " descent.",
        (("oscillation-periodic/figure.png", f"{LOSSES}, {WINDOWS}."),),
        verdicts,
    )


def paper_theory(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "theory",
        "The paper's theory",
        "Theorem 2, the norm identity and Lemma 3 in the run of Figure 2. Lemmas 5 and 6 start from"
        " Phase II, all weights at most sqrt(lr), which that run never reaches; they are tested by"
        " gradient descent from such weights with m = 1/sqrt(lr), |theta*| = m^(-1/4) and"
        " n = infinity, where Condition 1 holds as far as its constants are stated.",
        (
            (
                "label-noise/ledger.png",
                "(a) the sums of the norm identity, means over neurons; (b) both sums of every"
                " neuron at the end; (c) the probabilities of Lemma 3, the lazy regime shaded.",
            ),
        ),
        verdicts,
    )


def our_theory(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "law-of-modes",
        "Beyond the paper: law of modes and stationary state",
        "The modes of W off theta* decay at rates proportional to the eigenvalues of the data's"
        " covariance; that gives |W(t)|_F^2 with no fitted parameter (panel (e) of Figure 2). The"
        " noise comes to rest at a rank-one network of known norms.",
        (),
        verdicts,
    )


# What plain text has for the paper's symbols, after escaping.
SYMBOLS = (
    (r"\btheta\b", "θ"), (r"\blr\b", "η"), (r"\bsigma\b", "σ"), (r"\brho\b", "ρ"),
    (r"\blambda(?=_|\b)", "λ"), (r"\bdW", "ΔW"), (r"\bsqrt\((\w+)\)", r"√\1"),
    (r"\bsqrt\b", "√"), (r"\bsum\b(?= \|)", "Σ"), (r"&lt;=", "≤"), (r"&gt;=", "≥"),
    (r"\+-", "±"), (r"_(\w)\b|_(\w)(?=\^)", r"<sub>\1\2</sub>"),
    (r"(?<=\^)-|(?<=\^\()-", "−"), (r"\^\(([^)]*)\)|\^(−?\w+)", r"<sup>\1\2</sup>"),
)  # fmt: skip
COLOURS = {HOLDS: "#009E73", FAILS: "#D55E00", VACUOUS: "#767676", UNMET: "#8a6100"}
STYLE = """
body{font:16px/1.5 Georgia,'Times New Roman',serif;color:#111;background:#fff;max-width:60rem;
margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.25rem;margin:2.2rem 0 .4rem;
border-top:1px solid #bbb;padding-top:1rem}
img{width:100%;height:auto}sup,sub{line-height:0}
figure{margin:1rem 0}figcaption,.rule,footer{font-size:.85rem;color:#444}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid #ddd}
td.number{white-space:nowrap}
.verdict{font-weight:bold;white-space:nowrap}
nav a{margin-right:1rem;white-space:nowrap}
@media(max-width:40rem){thead{display:none}tr{display:block;border-bottom:1px solid #ddd;
padding:.5rem 0}td{display:block;border:0;padding:.1rem 0}
figure{overflow-x:auto}img{width:44rem;max-width:none}
td[data-label]::before{content:attr(data-label) ': ';color:#444}td.number{white-space:normal}}
@media print{body{max-width:none;padding:0;font-size:10pt}h2{break-after:avoid}
figure,tr{break-inside:avoid}nav{display:none}}
"""


def render(
    folder: Path,
    sections: Sequence[Section],
    conditions: Sequence[Condition],
    provenance: Mapping[str, Any],
) -> str:
    """The page; pictures are read from `folder`."""
    counts = Counter(verdict.verdict for section in sections for verdict in section.verdicts)
    order = (HOLDS, FAILS, UNMET, VACUOUS)
    tally = ", ".join(f"{counts[kind]} {_coloured(kind)}" for kind in order if counts[kind])
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a> ' for s in sections)
    versions = provenance.get("versions", {})
    made = ", ".join(f"{k} {v}" for k, v in versions.items() if v != "not installed")
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>lnsim: the paper's claims</title><style>{STYLE}</style></head><body>",
            "<h1>Label noise SGD on two-layer linear networks: what holds</h1>",
            "<p>The synthetic experiments of “On the Learning Dynamics of Two-layer Linear Networks"
            " with Label Noise SGD” (AAAI 2026), run anew. Every verdict is computed from the runs"
            f" by the rule below it: {tally}.</p>",
            "<p><em>Premise not met</em>: the claim fails here, and so does an assumption it rests"
            " on. <em>Vacuous</em>: the statement says nothing at these numbers.</p>",
            f"<nav>{links}</nav>",
            *(_section(folder, section) for section in sections),
            _conditions(conditions),
            f"<footer><p>{escape(made)}. Python {escape(str(provenance.get('python', '')))}. The"
            " numbers are in verdicts.json, the runs in the folders beside it; lnsim run --config"
            " FOLDER/config.toml repeats one bit for bit.</p></footer></body></html>",
        ]
    )


def _section(folder: Path, section: Section) -> str:
    rows = "".join(_row(verdict) for verdict in section.verdicts)
    return (
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>'
        f"<p><strong>Claim.</strong> {_text(section.claim)}</p>"
        + "".join(_picture(folder / name, caption) for name, caption in section.pictures)
        + "<table><thead><tr><th>Statement<th>Source<th>Predicted or asked<th>Measured<th>Verdict"
        "</tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _row(verdict: Verdict) -> str:
    note = f" {_text(verdict.note)}." if verdict.note else ""
    return (
        f"<tr><td>{_text(verdict.claim)}"
        f'<div class="rule">Rule: {_text(verdict.rule)}.{note}</div>'
        f'<td data-label="Source">{escape(verdict.source)}'
        f'<td class="number" data-label="Predicted or asked">{verdict.relation}'
        f" {number(verdict.predicted)}"
        f'<td class="number" data-label="Measured">{number(verdict.measured)}'
        f'<td class="verdict">{_coloured(verdict.verdict)}</tr>'
    )


def _text(plain: str) -> str:
    """A sentence as HTML, with the paper's symbols."""
    text = escape(plain[:1].upper() + plain[1:])
    for pattern, symbol in SYMBOLS:
        text = re.sub(pattern, symbol, text)
    return text


def _coloured(kind: str) -> str:
    return f'<span style="color:{COLOURS[kind]}">{kind}</span>'


def _picture(path: Path, caption: str) -> str:
    if not path.is_file():
        return f"<figure><figcaption>(not drawn) {_text(caption)}</figcaption></figure>"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _conditions(conditions: Sequence[Condition]) -> str:
    words = {True: HOLDS, False: FAILS, None: "constant unstated"}
    rows = "".join(
        f"<tr><td>{c.name}: {_text(c.statement)}"
        f'<td data-label="Here">{number(c.value)}<td data-label="Asked">{number(c.threshold)}'
        f"<td>{words[c.holds]}; {_text(c.note)}</tr>"
        for c in conditions
    )
    return (
        '<section id="condition-1"><h2>Condition 1 at the setting of Figure 2</h2>'
        "<p>The theory asks for it throughout; the paper's own figures do not satisfy it.</p>"
        "<table><thead><tr><th>Assumption<th>Here<th>Asked<th>Remark</tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def number(value: float) -> str:
    """A number for reading: steps with commas, the rest to four digits."""
    if math.isnan(value):
        return "not reached"
    if math.isinf(value):
        return "unbounded" if value > 0 else "none"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
