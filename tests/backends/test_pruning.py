"""Global magnitude pruning: the exact share, the largest magnitudes, and the network put back."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import networks
from lnsim_torch.training.pruning import prune, pruning_curve
from torch import nn


def weights(network):
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return np.concatenate([layer.weight.detach().numpy().ravel() for layer in layers])


@pytest.mark.parametrize("percentage", [0, 1, 12.5, 33.3, 99, 100])
def test_pruning_keeps_the_asked_share_of_the_largest(percentage):
    network = networks.resnet18(width=2, seed=1)
    before, others = weights(network), untouched(network)
    kept = prune(network, percentage)
    after = weights(network)
    assert kept == round(percentage / 100 * before.size)
    assert np.count_nonzero(after) == kept
    assert np.array_equal(after[after != 0], before[after != 0])
    if 0 < kept < before.size:
        assert np.abs(before[after != 0]).min() >= np.abs(before[after == 0]).max()
    for a, b in zip(others, untouched(network), strict=True):
        assert torch.equal(a, b)


def untouched(network):
    """Biases, and all of the normalisations."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    tensors = [value for norm in norms for value in norm.state_dict().values()]
    return [value.clone() for value in (*tensors, network[-2].bias)]


def test_among_equal_magnitudes_the_first_stay():
    network = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        for parameter, signs in zip(network.parameters(), ([1, -1] * 4, [-1, 1] * 2), strict=True):
            parameter.copy_(torch.tensor(signs).view_as(parameter))
    assert prune(network, 75) == 9
    assert weights(network).tolist() == [1, -1] * 4 + [-1, 0, 0, 0]


def test_a_shared_weight_counts_once():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    assert prune(nn.Sequential(first, second), 100 / 3) == 3
    assert torch.count_nonzero(first.weight) == 3


def test_the_curve_leaves_the_network_as_it_was():
    network = networks.wide_resnet(1, seed=2)
    before = weights(network)
    counts = pruning_curve(network, lambda n: np.count_nonzero(weights(n)), [100, 10, 0, 50])
    assert counts == [round(share * before.size) for share in (1, 0.1, 0, 0.5)]
    assert np.array_equal(weights(network), before)


def test_the_curve_puts_the_network_back_after_an_error():
    network = networks.mlp([4, 3, 2])
    before = weights(network)
    with pytest.raises(ZeroDivisionError):
        pruning_curve(network, lambda n: 1 / 0, [50])
    assert np.array_equal(weights(network), before)


@pytest.mark.parametrize("percentage", [-1, 100.5, float("nan"), [50.0], "50"])
def test_bad_percentages(percentage):
    network = networks.mlp([4, 3, 2])
    with pytest.raises((ValueError, TypeError), match="percentage must be"):
        prune(network, percentage)
    with pytest.raises((ValueError, TypeError), match="percentage must be"):
        pruning_curve(network, weights, [50, percentage])


def test_a_network_without_weights():
    with pytest.raises(ValueError, match="must have convolutions or dense layers"):
        prune(nn.Sequential(nn.ReLU()), 50)
