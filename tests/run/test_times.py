"""The times of a course by their definitions, on curves whose times are known in closed form."""

import math

import numpy as np
import pytest

from lnsim.run.times import Times, of_course

pytestmark = pytest.mark.small

STEPS = np.arange(0, 2001, 5)
RATE = 1 / 200


def course(**changes):
    """A norm that decays as exp(-t RATE), a cosine from 0.2 to 1, |W|^2 from 9 to 1; 4 neurons."""
    left = np.exp(-RATE * STEPS)
    return {
        "norm_mean": 3 * left,
        "cosine_mean": 1 - 0.8 * left,
        "norm_squared": 1 + 8 * left,
        "lazy_escape": np.array([40, 10, 20, 90]),
        **changes,
    }


def times(quantities, at_rest=1.0):
    return of_course(STEPS, quantities.__getitem__, at_rest)


def test_each_is_the_first_step_at_its_level():
    expected = Times(
        first_escape=10.0,
        median_escape=30.0,
        last_escape=90.0,
        half_norm=math.log(2) / RATE,
        alignment=math.log(2) / RATE,
        convergence=math.log(10) / RATE,
        rest=math.log(8 / 0.05) / RATE,
    )
    found = times(course())
    for name, step in vars(expected).items():
        assert vars(found)[name] == pytest.approx(step, rel=1e-3), name


def test_rest_may_be_reached_from_below():
    rising = course(norm_squared=1 - np.exp(-RATE * STEPS))
    assert times(rising).rest == pytest.approx(math.log(20) / RATE, rel=1e-3)


def test_what_does_not_happen_is_at_infinity():
    still = np.full(STEPS.shape, 2.0)
    found = times(course(norm_mean=still, norm_squared=still, lazy_escape=[-1, 30, np.inf, 20]))
    assert found.half_norm == found.rest == found.last_escape == math.inf
    assert found.first_escape == 20 and math.isinf(found.median_escape)
    assert found.alignment == pytest.approx(math.log(2) / RATE, rel=1e-3)
    part = found.without_never()
    assert math.isnan(part.rest) and math.isnan(part.median_escape)
    assert (part.first_escape, part.alignment) == (found.first_escape, found.alignment)


def test_what_a_course_does_not_have_is_not_known():
    parts = course()
    del parts["lazy_escape"], parts["cosine_mean"]
    found = times(parts)
    unknown = {name for name, step in vars(found).items() if math.isnan(step)}
    assert unknown == {"first_escape", "median_escape", "last_escape", "alignment", "convergence"}
    assert math.isnan(times(course(), at_rest=math.nan).rest)


def test_a_course_that_begins_at_its_level_is_there_at_once():
    assert times(course(norm_squared=np.full(STEPS.shape, 1.02))).rest == 0.0
    assert times(course(cosine_mean=np.ones(STEPS.shape))).convergence == 0.0
