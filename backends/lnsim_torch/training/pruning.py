"""Global magnitude pruning: the smallest weights of a whole network become 0, without retraining.

The weights of convolutions and dense layers count, all in one ranking; biases and the parameters
of normalisations are left alone.
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
    """Keeps the largest weights, `percentage` of them, and sets the others to 0; gives their count.

    Of T weights round(percentage / 100 T) are kept, half to even; among equal magnitudes those that
    come first in the network.  Raises ValueError or TypeError for a percentage outside [0, 100],
    and where there is no weight.
    """
    _check(percentage)
    weights = _weights(network)
    kept = round(percentage / 100 * sum(weight.numel() for weight in weights))
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    mask = torch.zeros_like(magnitudes)
    mask[magnitudes.argsort(descending=True, stable=True)[:kept]] = 1
    parts = mask.split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.mul_(part.view_as(weight))
    return kept


def pruning_curve(
    network: nn.Module, evaluate: Callable[[nn.Module], Value], percentages: Sequence[float]
) -> list[Value]:
    """`evaluate(network)` with each of the `percentages` of its weights kept, in their order.

    The weights are put back at the end.  Raises as `prune` does.
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
            _put_back(weights, before)
    finally:
        _put_back(weights, before)
    return values


@torch.no_grad()
def _put_back(weights: list[Tensor], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def _weights(network: nn.Module) -> list[Tensor]:
    """Each weight once, also where layers share it."""
    found = [module.weight for module in network.modules() if isinstance(module, _LAYERS)]
    if not found:
        raise ValueError("network must have convolutions or dense layers, and has none")
    return list(dict.fromkeys(found))


def _check(percentage: float) -> None:
    value = checks.real("percentage", percentage, least=0.0)
    if not isinstance(value, float) or value > 100.0:
        raise ValueError(f"percentage must be one number, at most 100, got {percentage!r}")
