"""The claims about large steps: they hold at the default setting, and fail where they should."""

from dataclasses import replace

import numpy as np
import pytest

from lnsim.experiments import large_steps as experiment
from lnsim.experiments.large_steps import Config
from lnsim.verdicts import judge, large_steps


@pytest.fixture(scope="module")
def single():
    return experiment.run(Config())


def test_all_hold_on_one_sample(single):
    verdicts = large_steps.one_sample(single)
    assert [v.verdict for v in verdicts] == [judge.HOLDS] * 5
    follows, below, between, border, flatter = verdicts
    assert follows.measured < 1e-12 and below.measured == between.measured == 1.0
    assert border.measured == pytest.approx(4.0) and 1.5 < flatter.measured <= 2.0


def test_all_hold_on_the_usual_data():
    run = experiment.run(Config(problem="regression", count=34))
    verdicts = large_steps.regression(run)
    assert [v.verdict for v in verdicts] == [judge.HOLDS] * 4
    assert verdicts[2].measured < 4.0 and "cells of 0.1" in verdicts[2].note


def changed(run, **arrays):
    return replace(run, arrays={**run.arrays, **arrays})


def test_what_is_wrong_is_found(single):
    def failing(**arrays):
        verdicts = large_steps.one_sample(changed(single, **arrays))
        return [i for i, verdict in enumerate(verdicts) if verdict.verdict == judge.FAILS]

    loss = single["train_loss"].copy()
    loss[3, 5] *= 1 + 1e-6
    loss[3, 5] += 1e-7 * loss[3, 0]
    assert failing(train_loss=loss) == [0]
    loss = single["train_loss"].copy()
    loss[3, 40] = loss[3, 0]
    assert failing(train_loss=loss) == [1]
    loss = single["train_loss"].copy()
    loss[30, -1] = 2 * loss[30, 0]
    assert failing(train_loss=loss) == [2]
    ended = single["diverged_at"].copy()
    ended[55] = 7
    assert failing(diverged_at=ended) == [3]
    sharpness = single["sharpness"].copy()
    sharpness[20, -1] *= 1.2
    assert failing(sharpness=sharpness) == [4]


@pytest.mark.small
@pytest.mark.parametrize(
    "changes",
    [
        {"least": 5.0, "most": 9.0}, {"least": 0.0, "most": 1.0}, {"steps": 0}, {"count": 1},
        {"measures": "none"},
    ],
)  # fmt: skip
def test_a_run_that_cannot_tell_is_no_proof(changes):
    run = experiment.run(Config(**{"width": 20, "count": 5, "steps": 30, **changes}))
    single, data = large_steps.one_sample(run), large_steps.regression(run)
    if changes.get("measures") != "none":
        assert all(v.verdict != judge.HOLDS for v in (single[3], data[2]))
    if changes.get("least") == 5.0 or changes.get("steps") == 0:
        assert {v.verdict for v in (*single[:3], single[4])} == {judge.VACUOUS}
    if changes.get("measures"):
        assert single[4].verdict == judge.VACUOUS
    assert all(np.isfinite(v.predicted) for v in (*single, *data))
