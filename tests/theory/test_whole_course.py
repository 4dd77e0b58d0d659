"""The whole course: on steps of its own, until nothing moves or the theory fails."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lnsim.experiments import sam
from lnsim.experiments.case import Case
from lnsim.experiments.label_noise import Config
from lnsim.theory.course import BeyondExpansion

pytestmark = pytest.mark.small

SMALL = Config(samples=60, test_samples=10, dim=5, width=40, lr=1e-3, sigma=4.0, steps=1000)


def of(config=SMALL, name="label-noise"):
    return Case.of_setting(config, name)


def test_the_times_do_not_depend_on_the_length_of_a_run():
    times = [of(replace(SMALL, steps=steps)).predicted_times for steps in (10, 10**7)]
    assert times[0].rest > 10 and str(times[0]) == str(times[1])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SMALL, "label-noise"),
        (replace(SMALL, lr=1e-4), "label-noise"),
        (replace(SMALL, batch_size=0), "label-noise"),
        (sam.Config(samples=60, test_samples=10, dim=5, width=40, rho=0.2), "sam"),
    ],
)
def test_they_are_those_of_a_course_on_finer_steps_and_nothing_moves_after(config, name):
    case = of(config, name)
    times, end = case.predicted_times, case.whole.prediction.times[-1]
    assert 0 < times.half_norm < times.rest < end and times.alignment < times.convergence < end
    finer = case.predict(np.unique(np.geomspace(1, 10 * end, 3000).round()))
    start = case.predict([0.0])
    norm, cosine = finer["norm_mean"], finer["cosine_mean"]
    at = {name: np.interp(step, finer.times, np.arange(len(norm))).round().astype(int)
          for name, step in vars(times).items() if math.isfinite(step)}  # fmt: skip
    assert norm[at["half_norm"]] / start["norm_mean"][0] == pytest.approx(0.5, rel=0.01)
    first = float(start["cosine_mean"][0])
    for share, when in ((0.5, "alignment"), (0.9, "convergence")):
        assert cosine[at[when]] == pytest.approx(first + share * (1 - first), abs=0.01)
    squared = finer["norm_squared"]
    assert squared[at["rest"]] / case.stationary[0] == pytest.approx(1.05, rel=0.01)
    assert squared[-1] == pytest.approx(case.whole.prediction["norm_squared"][-1], rel=0.01)
    assert not case.whole.beyond and math.isinf(case.whole.until)


def test_where_the_theory_fails_later_its_times_before_are_given():
    case = of(replace(SMALL, theta_norm=0.01))
    assert "small parameter is" in case.whole.beyond
    until = case.whole.until
    with pytest.raises(BeyondExpansion) as caught:
        case.predict([0.0, 1.5 * until])
    assert 0.7 * caught.value.time < until < caught.value.time
    assert case.predict([0.0, until]).expansion.max() <= 1.0
    times = case.predicted_times
    assert times.half_norm < until and math.isnan(times.rest)


def test_where_it_fails_at_once_there_is_a_reason():
    for changes, reason in (
        ({"lr": 0.5}, "too large for a quasi-stationary state"),
        ({"momentum": 0.5}, "momentum"),
    ):
        case = of(replace(SMALL, **changes))
        assert reason in case.whole and case.predicted_times is None


def test_without_noise_nothing_happens():
    times = of(replace(SMALL, sigma=0.0)).predicted_times
    assert times.half_norm == times.alignment == times.convergence == times.rest == math.inf


def test_experiments_without_a_theory_are_refused():
    with pytest.raises(ValueError, match="no theory is derived for the dynamics of oscillation"):
        of(SMALL, "oscillation")
