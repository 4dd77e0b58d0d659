"""Curves between the steps of an integrator, against scipy.interpolate."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from lnsim.theory.interpolation import hermite, pchip

pytestmark = pytest.mark.small


def grid_of(count):
    return np.cumsum(np.random.default_rng(count).uniform(0.1, 3.0, count))


@pytest.mark.parametrize("count", [2, 3, 4, 30])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_the_monotone_cubic_is_scipys(count, shape):
    """Of values that rise, fall, turn, stay and have ends of every kind; also outside the grid."""
    rng = np.random.default_rng(1)
    grid = grid_of(count)
    times = np.concatenate([grid, rng.uniform(grid[0] - 0.5, grid[-1] + 0.5, 50)])
    for power in (1, 5):  # steep values make ends that overshoot
        values = rng.standard_normal((count, *shape)) ** power
        values[count // 2] = values[count // 2 - 1]
        for each in (values, np.cumsum(np.abs(values), axis=0), np.zeros_like(values)):
            expected = PchipInterpolator(grid, each)(times)
            scale = 1 + np.abs(expected).max()
            np.testing.assert_allclose(pchip(grid, each, times), expected, atol=1e-12 * scale)


def test_the_cubic_of_given_slopes_is_scipys():
    rng = np.random.default_rng(2)
    grid = grid_of(9)
    states, slopes = rng.standard_normal((2, 4, 9))
    times = rng.uniform(grid[0], grid[-1], 20)
    expected = CubicHermiteSpline(grid, states, slopes, axis=1)(times)
    np.testing.assert_allclose(hermite(grid, states, slopes, times), expected.T, atol=1e-12)


def test_a_prediction_needs_neither_the_compiler_nor_scipy():
    """Their imports take longer than the prediction."""
    script = """
import sys
import numpy as np, lnsim
from lnsim.theory import cloud
problem, network = lnsim.gaussian_regression(20, 3, 0), lnsim.ntk_init(30, 3, 0)
noisy = lnsim.SGD(1e-2, lnsim.LabelNoise(0.5))
values = cloud.predict(problem, network, noisy, np.array([0.0, 10.0, 2000.0]))["alignment_mean"]
assert values.shape == (3,) and np.isfinite(values).all()
loaded = " ".join({"numba", "scipy"} & set(sys.modules))
assert not loaded, loaded
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert (child.returncode, child.stderr.strip()) == (0, "")
