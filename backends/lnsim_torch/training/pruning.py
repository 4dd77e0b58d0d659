"""Global magnitude pruning: the smallest weights of a whole network become 0, without retraining.

The weights of all convolutions and dense layers are ranked together; biases and the parameters of
normalisations are not pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lnsim.base import checks

Value = TypeVar("Value")

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def prune(network: nn.Module, percentage: float) -> int:
    """Keeps the largest `percentage` of the weights, sets the others to 0; returns the number kept.

    Of T weights round(percentage / 100 T) are kept, half to even; of equal magnitudes, the ones
    that come first in the network.  Raises ValueError or TypeError for a percentage outside
    [0, 100], and for a network without weights.
    """
    _check(percentage)
    weights = _weights(network)
    count = round(percentage / 100 * sum(weight.numel() for weight in weights))
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    mask = torch.zeros_like(magnitudes)
    mask[magnitudes.argsort(descending=True, stable=True)[:count]] = 1
    masks = mask.split([weight.numel() for weight in weights])
    for weight, weight_mask in zip(weights, masks, strict=True):
        weight.mul_(weight_mask.view_as(weight))
    return count


def pruning_curve(
    network: nn.Module, evaluate: Callable[[nn.Module], Value], percentages: Sequence[float]
) -> list[Value]:
    """The values of `evaluate(network)` with each of the `percentages` of its weights kept.

    The weights are restored at the end.  Raises as `prune` does.
    """
    for percentage in percentages:
        _check(percentage)
    weights = _weights(network)
    before = [weight.detach().clone() for weight in weights]
    values = []
    try:
        for percentage in percentages:
            prune(network, percentage)
            values.append(evaluate(network))
            _restore(weights, before)
    finally:
        _restore(weights, before)
    return values


@torch.no_grad()
def _restore(weights: list[Tensor], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def _weights(network: nn.Module) -> list[Tensor]:
    """The weights to prune; a weight that layers share is listed once."""
    weights = [module.weight for module in network.modules() if isinstance(module, _LAYERS)]
    if not weights:
        raise ValueError("network must have convolutions or dense layers, but has none")
    return list(dict.fromkeys(weights))


def _check(percentage: float) -> None:
    value = checks.real("percentage", percentage, least=0.0)
    if not isinstance(value, float) or value > 100.0:
        raise ValueError(f"percentage must be one number in [0, 100], got {percentage!r}")
