"""What bench/curvature.py times: a gradient that is one, and products in turns with it."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.functional import cross_entropy

from bench import curvature as bench

pytestmark = pytest.mark.usefixtures("small_doubles")


def case():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return network, torch.randn(7, 4), torch.arange(7) % 3


@pytest.mark.parametrize("at_a_time", [1, 3, 7, 100])
def test_the_gradient_is_that_of_the_mean_loss(at_a_time):
    network, x, y = case()
    found = bench.gradient(network, x, y, at_a_time)()
    cross_entropy(network(x), y).backward()
    for ours, p in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad)


def test_all_are_timed_equally_often():
    network, x, y = case()
    size, times = bench.measure(network, x, y, 2**20, rounds=3)
    assert size == 7 and list(times) == ["gradient", "hessian", "gauss-newton", "at one point"]
    assert all(len(of_all) == 3 and min(of_all) > 0 for of_all in times.values())
