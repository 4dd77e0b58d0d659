"""The backends agree: every dynamics and pair of engines on the same draws, as the steps go on."""

import pytest

from bench.benchmarks import agreement

# Rounding errors grow with the steps at most like a random walk with a mild drift.
TOLERANCE = {1: 1e-14, 1_000: 1e-13, 100_000: 1e-11}
CPU = [pair for pair in agreement.PAIRS if "cuda" not in pair]


def check(dynamics, pair, steps):
    if "torch" in pair:
        pytest.importorskip("torch")
    assert agreement.disagreement(dynamics, pair, steps) < TOLERANCE[steps]


@pytest.mark.parametrize("steps", [1, 1_000])
@pytest.mark.parametrize("pair", CPU)
@pytest.mark.parametrize("dynamics", agreement.DYNAMICS)
def test_engines_agree(dynamics, pair, steps):
    check(dynamics, pair, steps)


@pytest.mark.parametrize("dynamics", agreement.DYNAMICS)
def test_the_reduced_network_is_the_dense_one_after_100_000_steps(dynamics):
    check(dynamics, "numba / numba, dense", 100_000)


def test_other_draws_are_seen(monkeypatch):
    monkeypatch.setitem(agreement.ENGINES, "other", {"backend": "numba", "seed": 1})
    assert agreement.disagreement("sgd", "numba / other", 1) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", agreement.DYNAMICS)
def test_autograd_agrees_after_100_000_steps(dynamics):
    check(dynamics, "numba / torch", 100_000)


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [1, 1_000])
@pytest.mark.parametrize("dynamics", agreement.DYNAMICS)
def test_the_gpu_agrees(dynamics, steps):
    check(dynamics, "torch / torch:cuda", steps)
