"""Grids and the bad ones, the power law that is fitted to a sweep."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sweeps import BASE, tiny

from lnsim.experiments import label_noise, oscillation
from lnsim.sweeps import grid as sweep_grid
from lnsim.sweeps.power_law import power_law


@pytest.mark.small
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sigma=0:8:5", [0.0, 2.0, 4.0, 6.0, 8.0]),
        ("sigma=3:1:3", [3.0, 2.0, 1.0]),
        ("lr=1e-4:1e-2:3:log", [1e-4, 1e-3, 1e-2]),
        ("lr=0.1:0.7:7", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("sigma=1,4,2.5", [1.0, 4.0, 2.5]),
        ("sigma=2", [2.0]),
        ("width=50:1600:6:log", [50, 100, 200, 400, 800, 1600]),
        ("law=rademacher,gaussian", ["rademacher", "gaussian"]),
        ("ledger=true,false", [True, False]),
    ],
)
def test_a_grid_is_read(text, values):
    key, words = sweep_grid.parse_axis(text)
    found = sweep_grid.axes(label_noise.Config, {key: words})[key]
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]


@pytest.mark.small
@given(
    ends=st.lists(st.floats(1e-8, 1e8), min_size=2, max_size=2, unique=True),
    count=st.integers(2, 40),
    log=st.booleans(),
)
def test_a_range_has_its_ends_and_values_as_they_are_printed(ends, count, log):
    text = f"{ends[0]!r}:{ends[1]!r}:{count}{':log' * log}"
    try:
        found = sweep_grid.axes(label_noise.Config, {"lr": text})["lr"]
    except ValueError as error:  # ends that 12 digits hardly tell apart
        assert "twice" in str(error) and math.isclose(*ends, rel_tol=1e-9)
        return
    assert [found[0], found[-1]] == ends and len(found) == count
    assert all(float(f"{value:.12g}") == value for value in found[1:-1])
    expected = (np.geomspace if log else np.linspace)(*ends, count)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.small
@pytest.mark.parametrize(
    ("grid", "error", "says"),
    [
        ({}, ValueError, "a grid of at least one key"),
        ({"sgima": "0:1:2"}, ValueError, "did you mean 'sigma'?"),
        ({"sigma": "0:1"}, ValueError, "sigma: expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:1"}, ValueError, "COUNT at least 2"),
        ({"sigma": "0:1:2.5"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:inf:3"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:3:lin"}, ValueError, "expected FIRST:LAST:COUNT"),
        ({"sigma": "0:1:3:log"}, ValueError, "the ends of a log range must be above 0"),
        ({"sigma": "0:1:99999999"}, ValueError, "at most 10000000 values"),
        ({"sigma": ""}, TypeError, "sigma must be of type float, got ''"),
        ({"sigma": "1,two"}, TypeError, "sigma must be of type float, got 'two'"),
        ({"sigma": "1,1.0"}, ValueError, "sigma has the value 1.0 twice"),
        ({"width": "1:3:5"}, ValueError, "width has the value"),
        ({"law": "1:3:5"}, TypeError, "law must be of type str"),
        ({"sigma": []}, ValueError, "sigma has no values"),
        ({"sigma": [None]}, TypeError, "sigma must be of type float, got None"),
        ({"seed": "0:3:4"}, ValueError, "the number of seeds"),
        ({"width": "1:2000:2000", "lr": "1e-3:1:2000", "dim": "1,2,3"}, ValueError, "10000000"),
        ({"lr": "0,1e-3"}, ValueError, "lr must be finite and above 0, got 0.0"),
        ({"sigma": "0,-1"}, ValueError, "sigma must be finite and at least 0, got -1.0"),
        ({"momentum": [0.5, 1.0]}, ValueError, "momentum must be below 1"),
        ({"width": [0, 5]}, ValueError, "width must be at least 1, got 0"),
        ({"law": "gaussian,cauchy"}, ValueError, "law must be one of"),
        ({"dim": "3,4"}, ValueError, "dim is swept and set to 3: give only one of them"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(tmp_path, grid, error, says):
    base = {key: value for key, value in BASE.items() if key not in grid or key == "dim"}
    base = base if grid.keys() != {"width", "lr", "dim"} else {"steps": 0}
    with pytest.raises(error) as caught:
        tiny(tmp_path / "deep" / "out", grid, base=base)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "deep").exists()


@pytest.mark.small
def test_other_bad_input_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for options, error, says in (
        ({"experiment": "linearization"}, ValueError, "'linearization' cannot be swept"),
        ({"experiment": "label-nois"}, ValueError, "did you mean 'label-noise'?"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1"),
        ({"backend": "abacus"}, ValueError, "backend 'abacus' is not installed"),
        ({"base": {"seed": -1}}, ValueError, "seed must be at least 0"),
        ({"base": {"sgima": 1}}, ValueError, "did you mean 'sigma'?"),
        ({"executor": "threads"}, TypeError, "executor must be a concurrent.futures.Executor"),
        ({"scheduler": "local"}, ValueError, "an executor or a scheduler, not both"),
    ):
        with pytest.raises(error, match=says):
            tiny(out, **options)
        assert not out.exists(), options


@pytest.mark.small
def test_points_are_complete_and_defaults_follow_swept_keys():
    swept = sweep_grid.axes(oscillation.Config, {"lr": [1e-4, 16e-4], "width": [5, 6]})
    points = sweep_grid.points(oscillation.Config, {"dim": 2.0, "seed": 3}, swept, 2)
    assert [(p.seed, p.lr, p.width) for p in points] == [
        (seed, lr, width) for seed in (3, 4) for lr in (1e-4, 16e-4) for width in (5, 6)
    ]
    assert all(p.dim == 2 and isinstance(p.dim, int) for p in points)
    assert {(p.lr, round(p.amplitude, 12)) for p in points} == {(1e-4, 0.1), (16e-4, 0.2)}


@pytest.mark.small
def test_the_power_law_of_exact_and_of_noisy_data():
    x = np.geomspace(0.1, 50.0, 9)
    exact = power_law(x, 3.0 * x**-2.0)
    assert exact.exponent == pytest.approx(-2.0) and exact.factor == pytest.approx(3.0)
    assert exact.high - exact.low < 1e-12 and not exact.bends
    np.testing.assert_allclose(exact(x), 3.0 * x**-2.0)
    from scipy import stats

    y = 3.0 * x**-2.0 * np.exp(0.1 * np.random.default_rng(0).standard_normal(9))
    law, other = power_law(x, y), stats.linregress(np.log(x), np.log(y))
    reach = stats.t.ppf(0.975, 7) * other.stderr
    np.testing.assert_allclose(
        [law.exponent, law.low, law.high, law.factor],
        [other.slope, other.slope - reach, other.slope + reach, np.exp(other.intercept)],
    )


@pytest.mark.small
def test_the_interval_of_the_exponent_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    x = np.repeat(np.geomspace(1.0, 10.0, 5), 3)
    laws = [power_law(x, x**1.5 * np.exp(rng.standard_normal(15))) for _ in range(2000)]
    covered = np.mean([law.low <= 1.5 <= law.high for law in laws])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))
    bends = np.mean([law.bends for law in laws])
    assert bends == pytest.approx(0.05, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


@pytest.mark.small
def test_points_that_bend_are_told_from_points_that_scatter():
    x = np.repeat(np.geomspace(1.0, 100.0, 6), 4)
    noise = np.exp(0.1 * np.random.default_rng(2).standard_normal(x.size))
    assert power_law(x, (x**-2.0 + 3e-4) * noise).bends
    assert power_law([1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 9.0]).bends is False
    assert not power_law([1.0, 1.0, 4.0, 4.0], [1.0, 2.0, 4.0, 9.0]).bends


@pytest.mark.small
@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], "3 points"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "3 points with different x"),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], "x must be finite and above 0"),
        ([1.0, 2.0, 3.0], [1.0, -2.0, 3.0], "y must be finite and above 0"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "y must have shape"),
    ],
)
def test_a_power_law_refuses_what_it_cannot_fit(x, y, says):
    with pytest.raises(ValueError, match=says):
        power_law(x, y)
