"""The rows of `theory` on the speed of SAM, and the claim about full-batch SAM."""

import math
from dataclasses import replace

import pytest

from lnsim.experiments import oscillation, sam
from lnsim.experiments.case import Case
from lnsim.experiments.label_noise import Config
from lnsim.theory.cloud import Prediction
from lnsim.verdicts import judge, speed, table

SETTING = {"samples": 100, "test_samples": 10, "dim": 5, "width": 50, "lr": 2e-3, "seed": 0}


def test_label_noise_and_sam_name_each_other():
    noisy = Case.of_setting(Config(**SETTING, sigma=2.0))
    (_, fitted), (_, over), (_, rest) = speed.rows(noisy)
    assert 0 < fitted < over < rest
    for rho, k in ((fitted, 0), (rest, 1)):
        back = Case.of_keys("sam", {**SETTING, "rho": rho, "steps": 10, "record_every": 1})
        assert speed.rows(back)[k][1] == pytest.approx(2.0, rel=1e-6)
    lines = table.table(noisy)
    assert any(line.startswith(speed.TITLE) for line in lines) and max(map(len, lines)) <= 80
    assert sum(f"{over:.4g}" in line for line in lines) == 1


def test_there_are_no_rows_where_there_is_no_theory():
    assert speed.rows(Case.of_setting(Config(**SETTING, sigma=0.0))) == []
    assert speed.rows(Case.of_setting(Config(**SETTING, momentum=0.5))) == []
    assert speed.rows(Case.of_keys("oscillation", vars(oscillation.Config(**SETTING)))) == []


def test_a_number_that_is_not_there_leaves_the_others():
    few = Case.of_setting(Config(**{**SETTING, "samples": 3}, sigma=1.0))
    numbers = [number for _, number in speed.rows(few)]
    assert math.isnan(numbers[1]) and numbers[0] > 0 and numbers[2] > 0  # the rest stays


def test_full_batch_sam_is_judged(monkeypatch):
    """A deterministic run; the largest eigenvalues that take turns are within 1% of the law."""
    config = sam.Config(**SETTING, rho=0.1, batch_size=0, steps=20_000, record_every=100)
    run = sam.run(config)
    verdict = speed.full_batch(run)
    assert verdict.verdict == judge.HOLDS and 0 < verdict.measured < 0.02
    ask = Prediction.__getitem__
    monkeypatch.setattr(Prediction, "__getitem__", lambda self, name: 1.05 * ask(self, name))
    assert speed.full_batch(run).verdict == judge.FAILS
    noisy = sam.run(replace(config, sigma=1.0, steps=100))
    assert speed.full_batch(noisy).verdict == judge.VACUOUS
