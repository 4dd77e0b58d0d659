"""The page of `reproduce`, at sizes at which nothing of the paper shows, and its verdicts."""

import json
import math
import re

import numpy as np
import pytest

from lnsim.simulation.trajectory import Trajectory
from lnsim.verdicts import claims, page
from lnsim.verdicts.reproduce import SYNTHETIC, reproduce

TINY = {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 400, "record_every": 7}
OVERRIDES = dict.fromkeys(SYNTHETIC, TINY)
OVERRIDES |= {
    f"{name}-periodic": {**TINY, "period": 100} for name in ("label-noise", "oscillation")
}
SECTIONS = ["figure-2", "figure-4", "label-noise-periodic", "oscillation", "oscillation-periodic",
            "theory", "law-of-modes"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    begun = []
    verdicts = reproduce(folder, progress=begun.append, overrides=OVERRIDES)
    return folder, verdicts, begun


def test_every_experiment_leaves_a_run_folder(made):
    folder, _, begun = made
    for name in [*OVERRIDES, "label-noise-clean", "sam-without-rho"]:
        assert name in begun
        assert Trajectory.load(folder / name).config["width"] == 10
        assert (folder / name / "figure.png").exists()
    assert (folder / "label-noise" / "ledger.png").exists()


def test_the_page_has_every_section_and_asks_nothing_of_a_network(made):
    folder, verdicts, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)"', text) == [*SECTIONS, "condition-1"]
    assert text.count('class="verdict"') == len(verdicts)
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    without_pictures = re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert not re.search(r"https?:|//|@import|url\(", without_pictures)
    assert text.count("<section") == text.count("</section>")


def test_the_verdicts_are_strict_json(made):
    folder, verdicts, _ = made

    def refuse(constant):
        raise ValueError(constant)

    found = json.loads(
        (folder / "verdicts.json").read_text(encoding="utf-8"), parse_constant=refuse
    )
    assert [section["key"] for section in found["sections"]] == SECTIONS
    entries = [entry for section in found["sections"] for entry in section["verdicts"]]
    assert [e["claim"] for e in entries] == [v.claim for v in verdicts]
    kinds = {claims.HOLDS, claims.FAILS, claims.VACUOUS, claims.UNMET}
    assert {e["verdict"] for e in entries} <= kinds
    assert all(e["rule"] for e in entries)
    for entry in entries:
        if entry["verdict"] == claims.HOLDS and None not in (entry["predicted"], entry["measured"]):
            assert {"at most": entry["measured"] <= entry["predicted"],
                    "at least": entry["measured"] >= entry["predicted"],
                    "about": True}[entry["relation"]]  # fmt: skip


def test_the_norm_identity_holds_whatever_the_size(made):
    (verdict,) = [v for v in made[1] if v.source == "norm identity"]
    assert verdict.verdict == claims.HOLDS


@pytest.mark.small
def test_a_verdict_follows_its_rule():
    def verdict(relation, predicted, measured, **more):
        return claims.judge(
            "claim", "source", relation, predicted, measured, "rule", **more
        ).verdict

    assert verdict("at most", 1.0, 1.0) == claims.HOLDS
    assert verdict("at most", 1.0, 1.1) == claims.FAILS
    assert verdict("at least", 1.0, 0.9, unmet="premise") == claims.UNMET
    assert verdict("at least", 1.0, 1.1, unmet="premise") == claims.HOLDS
    assert verdict("at least", -1.0, 1.1, vacuous="below 0") == claims.VACUOUS
    assert verdict("about", 1.0, 1.04, within=0.05) == claims.HOLDS
    assert verdict("about", 1.0, 1.06, within=0.05) == claims.FAILS
    # What was not reached does not hold.
    for relation in ("at most", "at least", "about"):
        assert verdict(relation, 1.0, math.nan, within=0.05) == claims.FAILS
    line = str(claims.judge("the claim", "Lemma 1", "at most", 1, 0, "rule"))
    assert line.split() == ["holds", "Lemma", "1:", "the", "claim"]


@pytest.mark.small
def test_numbers_and_symbols_for_reading():
    assert [page.number(x) for x in (1234567.0, 0.123456, np.inf, np.nan)] == [
        "1,234,567", "0.1235", "unbounded", "not reached",
    ]  # fmt: skip
    assert page._text("all |w_i|^2 <= sqrt(lr), already") == (
        "All |w<sub>i</sub>|<sup>2</sup> ≤ √η, already"
    )
    assert page._text("1 - rho m^(-1/8) & <b>") == "1 - ρ m<sup>−1/8</sup> &amp; &lt;b&gt;"
