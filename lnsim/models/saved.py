"""A model from what a file says of it: its weights and what `Model.about` gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lnsim.base.checks import FloatArray
from lnsim.models.base import Model
from lnsim.models.deep import DeepLinear
from lnsim.models.diagonal import Diagonal
from lnsim.models.relu import ReLUNetwork
from lnsim.models.two_layer import Network


def _deep(weights: Mapping[str, FloatArray], residual: bool) -> DeepLinear:
    layers = tuple(weights[f"W{layer}"] for layer in range(1, len(weights) + 1))
    return DeepLinear(layers, residual)


MODELS: dict[str, Callable[..., Model]] = {
    Network.kernel: lambda weights: Network(weights["W"], weights["a"]),
    Diagonal.kernel: lambda weights, **about: Diagonal(weights.get("u"), weights["v"], **about),
    DeepLinear.kernel: _deep,
    ReLUNetwork.kernel: lambda weights, **about: ReLUNetwork(weights["W"], weights["A"], **about),
}
"""By the kernel of a model what makes it of its weights by name and what else it is."""


def model_of(about: Mapping[str, Any], weights: Mapping[str, FloatArray]) -> Model:
    """The model of these weights, by name.  Raises ValueError for a model that is not known."""
    fields = dict(about)
    kernel = fields.pop("model")
    if kernel not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {kernel!r}")
    return MODELS[kernel](weights, **fields)
