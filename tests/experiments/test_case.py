"""A setting with its start, and the judge whom the table of `theory` and the page both ask."""

import math
from dataclasses import replace

import numpy as np
import pytest

import lnsim
from lnsim.experiments import _synthetic, label_noise, oscillation, sam
from lnsim.experiments.case import Case, Start
from lnsim.theory import modes, paper
from lnsim.verdicts import claims, judge, table

pytestmark = pytest.mark.small

SMALL = {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 400, "record_every": 20}
CONFIG = label_noise.Config(**SMALL, ledger=True)


@pytest.fixture(scope="module")
def case():
    return Case.of_run(label_noise.run(CONFIG))


def test_the_start_is_made_once_and_only_if_it_is_asked_for(monkeypatch):
    begun = []
    start = _synthetic.start
    monkeypatch.setattr(_synthetic, "start", lambda config: begun.append(config) or start(config))
    first = Case.of_keys("label-noise", vars(CONFIG))
    second = Case.of_keys("label-noise", {**vars(CONFIG), "lr": 0.02}, first.start)
    assert first.covered_noise == second.covered_noise == 4.0 and not begun
    assert first.instability == second.instability / 2
    assert first.stationary == second.stationary and first.conditions
    assert len(begun) == 1


def test_the_start_is_that_of_the_run(case):
    np.testing.assert_array_equal(case.start.theta_star, case.trajectory["theta_star"])
    squares = float(np.sum(case.start.network.W**2))
    assert squares == pytest.approx(case.trajectory["norm_squared"][0], rel=1e-12)


def test_what_theory_says_is_of_the_setting_and_its_start(case):
    problem = lnsim.gaussian_regression(12, 4, 0)
    network = lnsim.ntk_init(10, 4, 0)
    assert case.escape_bound == paper.lazy_escape_bound(10, 1e-2, 4.0)
    assert (case.lemma_3, case.lemma_4) == (paper.lemma_3(10, 4, 4.0), paper.lemma_4(1e-2))
    assert case.conditions == paper.condition_1(problem.X, problem.theta_star, 10, 1e-2)
    norms = paper.stationary_norms(problem.theta_star, problem.gram)
    assert case.stationary == pytest.approx(norms, rel=1e-10)
    W, a = network.W, network.a
    A = W.T @ W + a @ a * np.eye(4)
    assert case.instability == pytest.approx(0.005 * np.trace(A @ problem.gram))


def test_inputs_that_reach_a_part_leave_the_rest_of_the_weights():
    """Of 2 samples in 5 dimensions: W off their plane stays as it is."""
    start = Start(label_noise.Config(**{**SMALL, "samples": 2, "dim": 5}))
    _, _, rows = np.linalg.svd(start.problem.X, full_matrices=True)
    assert start.unreached == pytest.approx(np.sum((start.network.W @ rows[2:].T) ** 2))
    first, _ = Case.of_keys("label-noise", vars(start.config), start).stationary
    assert first == pytest.approx(start.learnt_at_rest[0] + start.unreached)


@pytest.mark.parametrize(
    ("experiment", "config", "sigma"),
    [
        ("label-noise", CONFIG, 4.0),
        ("label-noise", replace(CONFIG, sigma=0.0), 0.0),
        ("label-noise", replace(CONFIG, momentum=0.5), None),
        ("label-noise", replace(CONFIG, weight_decay=0.1), None),
        ("label-noise", replace(CONFIG, batch_size=2), None),
        ("label-noise", replace(CONFIG, law="gaussian"), None),
        ("label-noise-periodic", CONFIG, None),
        ("sam", sam.Config(**SMALL), None),
        ("sam", sam.Config(**SMALL, rho=0.0, sigma=2.0), 2.0),
        ("oscillation", oscillation.Config(**SMALL), None),
    ],
)
def test_covered_noise(experiment, config, sigma):
    assert Case.of_keys(experiment, vars(config)).covered_noise == sigma


def test_the_curve_is_at_the_records_and_for_their_batches():
    run = label_noise.run(replace(CONFIG, batch_size=3, sigma=1.0))
    case, start = Case.of_run(run), Start(CONFIG)
    expected = modes.integrate_modes(
        start.problem.X, start.theta_star, start.network.W, start.network.a, 1e-2, 1.0,
        run.steps.astype(float), 3,
    )  # fmt: skip
    np.testing.assert_array_equal(case.curve.norm_squared, expected.norm_squared)


def test_a_phase_that_is_none_is_an_error(case):
    assert case.phase("first_escape") == case.trajectory.phases().first_escape
    with pytest.raises(KeyError):
        case.phase("first")
    assert math.isnan(Case.of_setting(CONFIG).phase("first_escape"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps"),
        ({"record_every": 0}, ValueError, "record_every"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"law": "cauchy"}, ValueError, "law"),
    ],
)
def test_a_setting_that_no_run_takes_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        Case.of_setting(replace(CONFIG, **changes))


def test_a_time_is_judged_by_what_the_run_can_tell():
    bound = judge.Statement("Theorem 2", "at most", 100.0)
    assert [bound.after(length) for length in (50, 100, 200)] == [True, False, False]
    assert not judge.Statement("Theorem 2", "at most", math.inf).after(50)
    for measured, length, since, remark in (
        (60.0, 200, 0.0, judge.HOLDS),
        (110.0, 200, 0.0, judge.FAILS),
        (math.nan, 200, 0.0, judge.FAILS),
        (math.nan, 200, 150.0, judge.NOT_REACHED),
        (math.nan, 200, math.nan, ""),
        (math.nan, None, 0.0, ""),
    ):
        assert bound.remark_on_time(measured, length, since) == remark
    vacuous = replace(bound, vacuous=["longer than the run"])
    assert vacuous.remark_on_time(60.0, 80) == "holds, vacuous"
    assert vacuous.remark_on_time(math.nan, 80) == judge.VACUOUS
    assert vacuous.verdict("claim", 60.0, "rule").verdict == judge.VACUOUS


@pytest.mark.parametrize("changes", [{}, {"sigma": 0.0}, {"width": 1}, {"dim": 1, "width": 10**5}])
def test_table_and_page_say_the_same_of_lemma_3(changes):
    """Where it says nothing, and where it holds, on the clouds at the start."""
    run = label_noise.run(replace(CONFIG, steps=0, **changes))
    case = Case.of_run(run)
    rows = [line for line in table.table(case) if line.strip().startswith("Lemma 3")]
    verdicts = claims.lemma_3(case)
    assert [row.rsplit("  ", 1)[1] for row in rows] == [v.verdict for v in verdicts]


def test_statements_know_where_they_say_nothing(case):
    narrow = Case.of_setting(replace(CONFIG, width=1))
    assert judge.theorem_2(narrow).vacuous == ("it needs a width of at least 2",)
    silent = Case.of_setting(replace(CONFIG, sigma=0.0))
    assert judge.theorem_2(silent).vacuous == ("no label noise",)
    assert judge.theorem_2(case).vacuous == ()
    assert judge.of_lemma_4_width(case) and not judge.of_lemma_4_width(narrow)
    lemmas = judge.descent(1e-2, 0.5)
    rate = math.log(100) / 0.5
    assert lemmas.aligned == pytest.approx(rate)
    assert lemmas.aligned_linearized == pytest.approx(rate / 1e-2)
    assert lemmas.converged == pytest.approx(3 * rate / 1e-2)


def test_the_worst_deviation_and_its_record():
    worst, record = judge.worst_deviation(np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0, 4.0]))
    assert (worst, record) == (0.5, 1)
