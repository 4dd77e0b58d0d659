"""The page of `reproduce`, at sizes at which nothing of the paper shows, and its verdicts."""

import configparser
import json
import math
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
from drawn_once import drawn_once

from lnsim.references.papers import PAPERS
from lnsim.run import experiment
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import paper
from lnsim.verdicts import cloud, judge, page
from lnsim.verdicts.reproduce import SYNTHETIC, reproduce
from lnsim.verdicts.sections import Section

TINY = {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 400, "record_every": 7}
OVERRIDES = dict.fromkeys(SYNTHETIC, TINY)
OVERRIDES |= {
    f"{name}-periodic": {**TINY, "period": 100} for name in ("label-noise", "oscillation")
}
OVERRIDES |= {"large-steps": {"width": 10, "count": 17, "steps": 40, "samples": 12, "dim": 4}}
SECTIONS = ["figure-2", "figure-4", "label-noise-periodic", "oscillation", "oscillation-periodic",
            "theory", "law-of-modes", "flat-minima", "large-steps"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    begun = []
    with drawn_once():
        verdicts = reproduce(folder, progress=begun.append, overrides=OVERRIDES)
    return folder, verdicts, begun


def test_every_experiment_leaves_a_run_folder(made):
    folder, _, begun = made
    for name in [*OVERRIDES, "label-noise-clean", "sam-without-rho", "sam-with-label-noise",
                 "sam-full-batch", "large-steps-regression"]:  # fmt: skip
        assert name in begun
        assert Trajectory.load(folder / name).config["width"] == 10
        assert (folder / name / "figure.png").exists()
    assert (folder / "label-noise" / "ledger.png").exists()


def test_the_page_has_every_section_and_asks_nothing_of_a_network(made):
    folder, verdicts, _ = made
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)"', text) == [*SECTIONS, "condition-1", "references"]
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
    kinds = {judge.HOLDS, judge.FAILS, judge.VACUOUS, judge.UNMET}
    assert {e["verdict"] for e in entries} <= kinds
    assert all(e["rule"] for e in entries)
    for entry in entries:
        if entry["verdict"] == judge.HOLDS and None not in (entry["predicted"], entry["measured"]):
            assert {"at most": entry["measured"] <= entry["predicted"],
                    "at least": entry["measured"] >= entry["predicted"],
                    "about": True}[entry["relation"]]  # fmt: skip


def test_sam_with_label_noise_stands_beside_sam_alone(made):
    folder, verdicts, _ = made
    alone, noisy = (Trajectory.load(folder / n) for n in ("sam", "sam-with-label-noise"))
    differing = {key for key in alone.config if alone.config[key] != noisy.config[key]}
    assert differing == {"sigma"} and noisy.config["sigma"] == 4.0
    claims = {
        source: [v.claim for v in verdicts if v.source == source]
        for source in ("Figure 4", "SAM with label noise")
    }
    assert claims["SAM with label noise"] == claims["Figure 4"][:4]
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "SAM with label noise, σ as in Figure 2." in text


def test_the_law_of_the_cloud_is_judged_for_label_noise_and_sam(made):
    _, verdicts, begun = made
    claims = [
        [v for v in verdicts if v.source == source]
        for source in ("law of the cloud", "law of the cloud, SAM")
    ]
    courses = [f"{curve.says} over time" for curve in cloud.CURVES]
    steps = [f"the step at which {says}" for says in cloud.TIMES.values()]
    for made_of in claims:
        said = [v.claim for v in made_of]
        assert said[-len(courses) :] == courses and set(said) <= {*steps, *courses}
        assert set(steps[3:]) <= set(said)  # those before are predicted or not
    for name in ("label-noise", "sam"):
        assert f"{name}, 8 seeds" in begun
    for verdict in (*claims[0], *claims[1]):
        assert verdict.rule.count("8 seeds") == 1 and judge.ALLOWANCE in verdict.rule


def test_the_norm_identity_holds_whatever_the_size(made):
    (verdict,) = [v for v in made[1] if v.source == "norm identity"]
    assert verdict.verdict == judge.HOLDS


def test_every_section_names_its_papers_and_the_references_have_them_all(made):
    text = (made[0] / "index.html").read_text(encoding="utf-8")
    *sections, references = re.findall(r"<section id=.*?</section>", text, re.DOTALL)
    listed = re.findall(r'<li id="([^"]+)">', references)
    named = {key for s in sections for key in re.findall(r'<p class="papers">.*', s)}
    linked = {key for line in named for key in re.findall(r'href="#([^"]+)"', line)}
    assert len(named) == len(SECTIONS) and set(listed) == linked and listed == sorted(listed)
    ours = next(s for s in sections if s.startswith('<section id="law-of-modes"'))
    for key in ("blanc2020", "damian2021", "li2021", "wen2022", "ziyin2023", "ziyin2024"):
        assert f'href="#{key}"' in ours
    assert "second order in the fluctuations are ours" in ours
    assert f'<li id="damian2021">{escape(PAPERS["damian2021"].reference)}</li>' in references


@pytest.mark.parametrize(("name", "section"), [("label-noise", "figure-2"), ("sam", "figure-4")])
def test_a_caption_names_every_panel(name, section, made):
    text = (made[0] / "index.html").read_text(encoding="utf-8")
    caption = re.findall(rf'id="{section}".*?<figcaption>(.*?)</figcaption>', text, re.DOTALL)[0]
    drawn = experiment.load(name).figures(Trajectory.load(made[0] / name))["figure"]
    letters = [t.get_text() for axes in drawn.axes for t in axes.texts]
    panels = sorted(text for text in letters if re.fullmatch(r"\([a-f]\)", text))
    assert len(panels) >= 5 and sorted({*re.findall(r"\([a-f]\)", caption)}) == panels


@pytest.mark.small
def test_a_verdict_follows_its_rule():
    def verdict(relation, predicted, measured, **more):
        return judge.judge("claim", "source", relation, predicted, measured, "rule", **more).verdict

    assert verdict("at most", 1.0, 1.0) == judge.HOLDS
    assert verdict("at most", 1.0, 1.1) == judge.FAILS
    assert verdict("at least", 1.0, 0.9, unmet="premise") == judge.UNMET
    assert verdict("at least", 1.0, 1.1, unmet="premise") == judge.HOLDS
    assert verdict("at least", -1.0, 1.1, vacuous="below 0") == judge.VACUOUS
    assert verdict("about", 1.0, 1.04, within=0.05) == judge.HOLDS
    assert verdict("about", 1.0, 1.06, within=0.05) == judge.FAILS
    # What was not reached does not hold.
    for relation in ("at most", "at least", "about"):
        assert verdict(relation, 1.0, math.nan, within=0.05) == judge.FAILS
    line = str(judge.judge("the claim", "Lemma 1", "at most", 1, 0, "rule"))
    assert line.split() == ["holds", "Lemma", "1:", "the", "claim"]


@pytest.mark.small
def test_what_is_put_into_the_page_is_text_and_nothing_else(tmp_path):
    """Neither markup, nor what a template or a regular expression would take for its own."""
    odd = "<b> & $rows ${key} \\1"
    judged = judge.judge(odd, odd, "at most", 2.0, 1.0, odd, note=odd)
    section = Section("key", odd, odd, (("missing.png", odd), ("there.png", odd)), [judged])
    (tmp_path / "there.png").write_bytes(b"picture")
    condition = paper.Condition("1", odd, 1.0, 2.0, None, odd)
    made = {"versions": {odd: odd, "torch": "not installed"}, "python": odd}
    text = page.render(tmp_path, [section], [condition], made)
    shown = "&lt;b&gt; &amp; $rows ${key} \\1"
    assert text.count(shown) == text.count("$rows") == 15 and "<b>" not in text
    assert "torch" not in text and '\n<section id="key"><h2>' in text
    assert '<figure><img alt="' in text and 'base64,cGljdHVyZQ=="><figcaption>' in text
    assert f'<tr><td>{shown}<div class="rule">Rule: {shown}. {shown}.</div><td' in text
    assert '<td class="verdict"><span style="color:#009E73">holds</span></tr></tbody>' in text


@pytest.mark.small
def test_every_file_of_a_package_is_installed_with_it():
    root = Path(__file__).parents[2]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    data, packages = setup["options.package_data"], setup["options"]["packages"].split()
    for line in setup["options"]["package_dir"].split("\n")[1:]:
        package, folder = line.split(" = ")
        for file in (root / folder).rglob("*.*"):
            if "__pycache__" not in file.parts:
                inside = ".".join((package, *file.relative_to(root / folder).parts[:-1]))
                assert inside in packages, file
                assert file.suffix == ".py" or file.name in data[inside].split(), file


@pytest.mark.small
def test_numbers_and_symbols_for_reading():
    assert [page.number(x) for x in (1234567.0, 0.123456, np.inf, np.nan)] == [
        "1,234,567", "0.1235", "unbounded", "not reached",
    ]  # fmt: skip
    assert page._text("all |w_i|^2 <= sqrt(lr), already") == (
        "All |w<sub>i</sub>|<sup>2</sup> ≤ √η, already"
    )
    assert page._text("at lambda_max = 2/lambda_0") == "At λ<sub>max</sub> = 2/λ<sub>0</sub>"
    assert page._text("1 - rho m^(-1/8) & <b>") == "1 - ρ m<sup>−1/8</sup> &amp; &lt;b&gt;"
