"""The table: its width, its marks, its measurements, and settings at the edge of the theory."""

from dataclasses import replace

import numpy as np
import pytest

import lnsim
from lnsim.experiments import label_noise, sam
from lnsim.experiments.case import Case
from lnsim.experiments.label_noise import Config
from lnsim.theory.cloud import Prediction
from lnsim.verdicts import table as tables

SHORT = Config(
    samples=100, test_samples=10, dim=5, width=50, lr=4e-3, sigma=2.0,
    steps=80_000, record_every=1_000,
)  # fmt: skip


def table(config):
    return tables.table(Case.of_setting(config))


def table_of(run):
    return tables.table(Case.of_run(run))


SAM = sam.Config(samples=60, test_samples=10, dim=5, width=40, rho=0.2, steps=1000)


@pytest.fixture(scope="module")
def run():
    return label_noise.run(SHORT)


@pytest.fixture(scope="module")
def lines(run):
    return table_of(run)


def row(lines, start):
    """The one line whose label starts so, and the note below it."""
    (at,) = (k for k, line in enumerate(lines) if line.strip().startswith(start))
    notes = []
    for line in lines[at + 1 :]:
        if not line.startswith(" " * 6):
            break
        notes.append(line.strip())
    return lines[at], " ".join(notes)


def number(lines, start, column):
    """The number in the column `predicted` or `measured` of one row."""
    line = row(lines, start)[0]
    text = line[36:50] if column == "predicted" else line[50:64]
    return float(text.replace(",", "").strip())


def test_figures_setting_without_a_run():
    lines = table(Config())
    assert max(map(len, lines)) <= 80
    assert not any("measured" in line for line in lines)
    assert row(lines, "A1")[0].endswith("unstated")
    assert row(lines, "A3")[0].endswith("1e+06  does not hold")
    assert row(lines, "T1")[0].endswith("1,994,710")
    assert row(lines, "T2: aligned, as printed")[0].endswith("vacuous")
    assert "rest at |w_i| = 0.145" in row(lines, "Phase II")[1]
    line, note = row(lines, "Lemma 3: P(dW_i <= 0)")
    assert line.split()[-2:] == ["-1.128", "vacuous"]
    assert note == "no probability is below 0"
    assert "vacuous" not in row(lines, "Lemma 3: P(dW_i <= -1)")[0]
    assert "requires a width of 31.6" in row(lines, "Lemma 4")[1]
    assert number(lines, "Phase I decay rate", "predicted") == pytest.approx(2.11e-5, rel=0.01)
    assert number(lines, "|W|_F^2 at rest", "predicted") == pytest.approx(21.0, rel=0.01)
    assert number(lines, "|W|_F^2 at step 40,000", "predicted") == pytest.approx(410, rel=0.01)


def test_predicted_times_stand_beside_the_bounds():
    lines = table(SHORT)
    times = Case.of_setting(SHORT).predicted_times
    for label, step in (
        ("first neuron not lazy", times.first_escape),
        ("median neuron not lazy", times.median_escape),
        ("last neuron not lazy", times.last_escape),
        ("mean |w_i| half", times.half_norm),
        ("mean |cos| half", times.alignment),
        ("mean |cos| nine tenths", times.convergence),
        ("|W|_F^2 within 5%", times.rest),
    ):
        assert number(lines, label, "predicted") == pytest.approx(step, abs=0.5)
    at = [k for k, line in enumerate(lines) if line.startswith(("Times by", "The paper's bounds"))]
    assert len(at) == 2 and lines[at[0]].endswith("predicted") and lines[at[1]].endswith("bound")


def test_the_escape_is_in_the_table_once_it_is_predicted(run, monkeypatch):
    """The stand-in predicts that every tenth neuron stays lazy."""
    escape = np.arange(50) + 100.0
    escape[::10] = np.inf
    ask = Prediction.__getitem__
    monkeypatch.setattr(
        Prediction, "__getitem__", lambda p, name: escape if name == "lazy_escape" else ask(p, name)
    )
    for lines in (table(SHORT), table_of(run)):
        assert number(lines, "first neuron not lazy", "predicted") == 101
        assert number(lines, "median neuron not lazy", "predicted") == pytest.approx(127, abs=1)
        assert "never" in row(lines, "last neuron not lazy")[0]
    middle = float(np.median(run["lazy_escape"]))
    assert number(lines, "median neuron not lazy", "measured") == pytest.approx(middle, abs=0.5)


def test_measured_times_stand_beside_predicted_ones(run, lines):
    half = np.interp(-run["norm_mean"][0] / 2, -run["norm_mean"], run.steps)
    assert number(lines, "mean |w_i| half", "measured") == pytest.approx(half, abs=0.5)
    predicted = number(lines, "mean |w_i| half", "predicted")
    line, _ = row(lines, "mean |w_i| half")
    assert line.endswith(f"{round(half / predicted - 1, 3):+.1%}")
    aligned = float(run.phases().alignment)
    assert number(lines, "mean |cos| half", "measured") == pytest.approx(aligned, abs=0.5)
    line, _ = row(lines, "mean |cos| nine tenths")
    assert line.endswith("-  not reached") and number([line], "mean", "predicted") > SHORT.steps


def test_sam_has_times_and_no_bounds():
    lines = tables.table(Case.of_setting(SAM, "sam"))
    assert max(map(len, lines)) <= 80
    assert "not covered, except for times and speed: the dynamics of sam" in lines
    assert "rho = 0.2" in " ".join(lines[:2])
    assert number(lines, "|W|_F^2 within 5%", "predicted") > 1000
    assert row(lines, "T1")[0].endswith("not covered")


def test_outside_its_premises_the_law_of_the_cloud_says_why(run):
    line, note = row(table(replace(SHORT, lr=0.1)), "law of the cloud")
    assert line.endswith("no prediction") and note.startswith("lr = 0.1 is too large")
    weak = table(replace(SHORT, theta_norm=0.01))
    line, note = row(weak, "predicted up to")
    assert "its small parameter is" in note
    assert number(weak, "mean |w_i| half", "predicted") < number([line], "predicted", "predicted")
    assert not any("|W|_F^2 within 5%" in line for line in weak)
    other = table_of(replace(run, config={**run.config, "momentum": 0.1}))
    assert number(other, "mean |w_i| half", "measured") > 0
    assert "momentum 0.1" in row(other, "law of the cloud")[1]


def test_a_bound_longer_than_the_run_is_vacuous():
    line, note = row(table(replace(Config(), steps=100_000)), "T1")
    assert line.endswith("vacuous")
    assert note == "longer than the run"


def test_lemmas_5_and_6_can_apply():
    lines = table(Config(theta_norm=0.05, samples=50, dim=2, width=1000, lr=1e-3, steps=1000))
    assert row(lines, "Phase II")[1] == ""
    assert row(lines, "Lemma 5")[0].endswith("unstated")
    assert row(lines, "T2: aligned, as printed")[0].endswith("138")


def test_measured_stands_beside_predicted(run, lines):
    assert max(map(len, lines)) <= 80
    assert str(run.status) in lines[2]
    phases = run.phases()
    first, last = float(phases.first_escape), float(phases.last_escape)
    assert number(lines, "first neuron not lazy", "measured") == pytest.approx(first, abs=0.5)
    assert number(lines, "T1", "measured") == pytest.approx(last, abs=0.5)
    norms = run["norm_squared"]
    assert number(lines, "|W|_F^2 at rest", "measured") == pytest.approx(norms[-1], rel=1e-3)
    assert number(lines, "|a|^2 at rest", "measured") == pytest.approx(
        run["second_layer_norm"][-1] ** 2, rel=1e-3
    )
    assert number(lines, "|W|_F^2 at step 8,000", "measured") == pytest.approx(norms[8], rel=1e-3)
    assert number(lines, "Lemma 6", "measured") == pytest.approx(
        run["interpolator_distance"][-1], rel=1e-3
    )
    W, theta_star = run.final.W, lnsim.gaussian_regression(100, 5, 0).theta_star
    cosine = np.abs(W @ theta_star) / np.linalg.norm(W, axis=1) / np.linalg.norm(theta_star)
    assert number(lines, "Lemma 5", "measured") == pytest.approx(1 - cosine.min(), rel=1e-3)
    largest = max(np.linalg.norm(W, axis=1).max(), np.abs(run.final.a).max())
    assert number(lines, "Phase II", "measured") == pytest.approx(largest, rel=1e-3)


def test_the_law_of_modes_is_near_the_run(run, lines):
    predicted = number(lines, "Phase I decay rate", "predicted")
    measured = number(lines, "Phase I decay rate", "measured")
    assert measured == pytest.approx(float(run.phases().decay_rate), rel=1e-3)
    assert measured == pytest.approx(predicted, rel=0.05)
    worst = row(lines, "worst deviation")[0].split()[-1]
    assert 0 < float(worst.rstrip("%")) < 15
    assert row(lines, "largest small parameter")[0].endswith("small")


def test_theorem_2_is_judged(run):
    steps = 1_700_000  # T1 is 1,678,290
    longer = replace(run, status=lnsim.Status("OK", steps))
    last = float(run.phases().last_escape)
    assert row(table_of(run), "T1")[0].endswith("holds, vacuous")
    assert row(table_of(longer), "T1")[0].endswith(f"{last:,.0f}  holds")
    lazy = run["lazy_escape"].copy()
    lazy[3] = -1
    never = replace(longer, arrays={**run.arrays, "lazy_escape": lazy})
    assert row(table_of(never), "T1")[0].endswith("does not hold")


def test_an_ensemble_shows_its_first_replica(run, lines):
    both = label_noise.run(SHORT, replicas=2)
    assert table_of(both)[3:] == lines[3:]


def test_the_setting_of_a_run(run):
    case = Case.of_run(run)
    assert vars(case.config) == {k: v for k, v in vars(SHORT).items() if k != "ledger"}
    assert case.experiment == "label-noise" and case.length == SHORT.steps


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"experiment": "resnet", "lr": 0.1}, r"\(resnet\) has no samples and no dim and no width"),
        ({"samples": 9, "dim": 2, "width": 3, "dynamics": "SGD"}, "no lr"),
    ],
)
def test_runs_of_other_experiments_are_refused(run, config, message):
    other = replace(run, config=config)
    with pytest.raises(ValueError, match=message) as caught:
        Case.of_run(other)
    assert "\n" not in str(caught.value)


def test_lr_of_1_is_refused():
    with pytest.raises(ValueError, match="lr must be below 1"):
        table(Config(lr=1.0))


EDGES = {
    "no noise": {"sigma": 0.0},
    "one neuron": {"width": 1},
    "one input": {"dim": 1},
    "one of all": {"samples": 1, "dim": 1, "width": 1},
    "fewer samples than inputs": {"samples": 3},
    "momentum": {"momentum": 0.5},
    "weight decay": {"weight_decay": 1e-3},
    "batch": {"batch_size": 4},
    "gaussian": {"law": "gaussian"},
    "diverged": {"lr": 0.5},
    "diverged, and no covariance": {"sigma": 200.0},
    "no step": {"steps": 0},
    "one step": {"steps": 1},
    "hardly a step": {"lr": 1e-9},
    "weak target": {"theta_norm": 1e-3},
    "large numbers": {"sigma": 160.0, "lr": 1e-5},
}


@pytest.mark.parametrize("change", EDGES.values(), ids=EDGES)
def test_edges(change):
    config = replace(SHORT, steps=2_000, record_every=100)
    config = replace(config, **change)
    run = label_noise.run(config)
    for lines in (table(config), table_of(run)):
        assert max(map(len, lines)) <= 80
        assert not any("nan" in line.split() for line in lines)
        assert row(lines, "T1")
        assert row(lines, "|W|_F^2 at rest")


@pytest.mark.parametrize("change", ["momentum", "weight_decay"])
def test_what_is_not_covered_has_no_number(change):
    config = replace(SHORT, **{change: 0.1})
    lines = table(config)
    assert f"not covered: {change.replace('_', ' ')}" in lines
    for start in ("T1", "Phase II", "T3", "Lemma 3: P(dW_i <= 0)", "Lemma 6", "|a|^2 at rest"):
        assert row(lines, start)[0].split()[-3:] == ["-", "not", "covered"]
    assert row(lines, "A3")[0].endswith("does not hold")


def test_other_dynamics_are_not_covered(run):
    other = replace(run, config={**run.config, "experiment": "label-noise-periodic"})
    lines = table_of(other)
    assert "not covered: the dynamics of label-noise-periodic" in lines
    assert row(lines, "T1")[0].endswith("not covered")


def test_lemma_4_is_judged_for_the_oscillation(run):
    """Premise m = 1/sqrt(lr), and a run of 1/lr^2 steps; the level is not reached."""
    config = replace(SHORT, width=16)
    oscillation = replace(
        label_noise.run(replace(config, steps=2_000)),
        config={**run.config, "experiment": "oscillation", "width": 16},
        status=lnsim.Status("OK", 70_000),
    )
    line, note = row(table_of(oscillation), "Lemma 4")
    assert line.endswith("62,500             -  does not hold")
    assert note == ""


def test_batches_are_covered_by_the_law_of_modes_alone():
    lines = table(replace(SHORT, batch_size=4))
    assert row(lines, "T1")[1] == "stated for one sample a step"
    assert row(lines, "largest small parameter")[0].endswith("small")


def test_without_a_quasi_stationary_state_the_reason_is_given():
    line, note = row(table(replace(SHORT, lr=0.1)), "|W|_F^2 over the run")
    assert line.endswith("no prediction")
    assert note.startswith("lr = 0.1 is too large")
