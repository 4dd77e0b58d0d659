"""Published results: every paper's cheapest claim here, all of them among the slow tests."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lnsim.dynamics import GD
from lnsim.experiments import papers
from lnsim.experiments.papers.published import AMONG, Claim
from lnsim.references.papers import PAPERS
from lnsim.verdicts import published
from lnsim.verdicts.judge import FAILS, HOLDS, UNDECIDED


def cost(paper, claim):
    """Steps of all runs that the claim needs, over all seeds and coordinates."""
    arms = [paper.arms[name] for name in claim.arms]
    return sum(arm.steps * max(1, arm.seeds) * arm.start()[0].dim for arm in arms)


@pytest.mark.parametrize("name", papers.NAMES)
def test_a_paper_is_well_formed(name):
    paper = published.load(name)
    assert paper.key in PAPERS and paper.claims
    used = {arm for claim in paper.claims for arm in claim.arms}
    assert used <= paper.arms.keys()
    assert len({published.of_arm(arm) for arm in paper.arms}) == len(paper.arms)
    assert len(paper.line) < 100 and not paper.line.endswith(".")


@pytest.mark.parametrize("name", papers.NAMES)
def test_the_cheapest_claim_holds(name):
    paper = published.load(name)
    claim = min(paper.claims, key=partial(cost, paper))
    runs = published.run(name, None, lambda arm: None, claim.arms)
    assert published.verdict(claim, runs).verdict == HOLDS


@pytest.mark.slow
@pytest.mark.parametrize("name", papers.NAMES)
def test_every_claim_is_as_expected(name, tmp_path):
    """Those that do not hold in our hands say so in their module."""
    verdicts = published.write(tmp_path, [name], lambda arm: None, print)
    expected = {HOLDS, UNDECIDED} if name == "andriushchenko_2023" else {HOLDS}
    assert {each.verdict for each in verdicts} == expected
    assert (tmp_path / name / "figure.png").is_file()


def claim(**changes):
    made = Claim(
        statement="x is small", place="Figure 1", published=1.0, measured=lambda runs: 0.5,
        arms=(), rule="x", relation="at most",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (0.5, HOLDS),
        (1.5, FAILS),
        (np.nan, FAILS),
        ([0.5, 0.6, 0.55] * 2, HOLDS),
        ([1.5, 1.6, 1.55] * 2, FAILS),
        ([0.9, 1.0, 1.05] * 2, UNDECIDED),
    ],
)
def test_a_claim_over_seeds_is_judged_by_its_interval(values, expected):
    assert published.verdict(claim(measured=lambda runs: values), {}).verdict == expected


@pytest.mark.parametrize(("theirs", "expected"), [(0.5, HOLDS), (-0.1, FAILS), (1.1, FAILS)])
def test_a_number_of_one_draw_lies_among_ours_or_not(theirs, expected):
    found = claim(relation=AMONG, published=theirs, measured=lambda runs: np.linspace(0, 1, 101))
    assert published.verdict(found, {}).verdict == expected


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_intervals_cover_the_truth_as_often_as_they_say(statistic):
    """Of 2,000 samples of 15 numbers; the binomial error of the coverage is half a percent."""
    draws = np.random.default_rng(0).standard_normal((2000, 15))
    ends = np.array([published.interval(row, statistic) for row in draws])
    covered = np.mean((ends[:, 1] <= 0) & (ends[:, 2] >= 0))
    assert 0.935 < covered < (0.965 if statistic == "mean" else 0.99)
    assert (ends[:, 1] <= ends[:, 0]).all() and (ends[:, 0] <= ends[:, 2]).all()


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="no such rule"):
        claim(relation="nearly")


def test_runs_that_are_there_are_read_and_others_made(tmp_path, monkeypatch):
    name, made = "lewkowycz_2020", []
    first = published.run(name, tmp_path, made.append)
    assert made == [f"{name}: gradient descent"]
    again = published.run(name, tmp_path, made.append)
    assert len(made) == 1
    np.testing.assert_array_equal(
        again["gradient descent"]["train_loss"], first["gradient descent"]["train_loss"]
    )
    paper = published.load(name)
    changed = {
        "gradient descent": replace(paper.arms["gradient descent"], dynamics=GD(0.1), options={})
    }
    monkeypatch.setattr(published, "load", lambda name: replace(paper, arms=changed))
    published.run(name, tmp_path, made.append, changed)
    assert len(made) == 2


def test_an_unknown_paper_is_named():
    with pytest.raises(ValueError, match="unknown paper 'haochen'"):
        published.load("haochen")


def test_what_cannot_be_measured_does_not_hold():
    def fails(runs):
        raise ArithmeticError("no solution was found")

    found = published.verdict(claim(measured=fails), {})
    assert found.verdict == FAILS and found.note == "no solution was found"
    found = published.verdict(claim(measured=lambda runs: [0.1] * 6 + [np.nan]), {})
    assert found.verdict == FAILS and "diverged" in found.note


@pytest.mark.parametrize("relation", ["at most", AMONG])
def test_few_seeds_decide_nothing(relation):
    few = claim(relation=relation, measured=lambda runs: np.full(5, 0.5))
    assert published.verdict(few, {}).verdict == UNDECIDED


def test_a_number_that_we_ask_is_not_called_published():
    assert published.verdict(claim(asked=True), {}).relation == "asked at most"


def test_a_run_of_other_data_is_made_again(tmp_path, monkeypatch):
    name, made = "lewkowycz_2020", []
    published.run(name, tmp_path, made.append)
    paper = published.load(name)
    arm = paper.arms["gradient descent"]

    def other():
        problem, network = arm.start()
        return replace(problem, X=2 * problem.X), network

    changed = {"gradient descent": replace(arm, start=other)}
    monkeypatch.setattr(published, "load", lambda name: replace(paper, arms=changed))
    published.run(name, tmp_path, made.append)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["trajectory.npz", "environment.json"])
def test_a_run_that_was_not_kept_whole_is_made_again(damage, tmp_path):
    name, made = "lewkowycz_2020", []
    published.run(name, tmp_path, made.append)
    file = tmp_path / name / "gradient_descent" / damage
    if damage == "trajectory.npz":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.unlink()
    published.run(name, tmp_path, made.append)
    assert len(made) == 2


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch):
    def broken(runs):
        raise RuntimeError("no font")

    paper = replace(published.load("lewkowycz_2020"), figure=broken)
    monkeypatch.setattr(published, "load", lambda name: paper)
    told = []
    verdicts = published.write(tmp_path, ["lewkowycz_2020"], lambda arm: None, told.append)
    assert len(verdicts) == 5 and "no font" in told[0]
    assert (tmp_path / "index.html").is_file()
