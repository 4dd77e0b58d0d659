"""What a network is made of in training: its tensors by name, as arrays, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_WITHOUT_NUMPY = tuple(
    dtype
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if (dtype := getattr(torch, name, None)) is not None
)
"""Types that NumPy lacks.  float32 holds all of their numbers."""


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that are not persistent, by name and in their order."""
    found = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found[f"{prefix}.{name}".removeprefix(".")] = tensor
    return found


def check_kept(network: nn.Module) -> None:
    """Raises ValueError for a network with state of another kind."""
    for name, module in network.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"network must keep its state in parameters and buffers: {name!r} has a"
                " get_extra_state, for which a checkpoint has no place"
            )


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy of the tensor, with the same numbers."""
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.dtype in _WITHOUT_NUMPY else tensor
    return tensor.cpu().numpy().copy()


def put_back(state: Mapping[str, NDArray[Any]], held: Mapping[str, Tensor]) -> None:
    """Gives the tensors the numbers of `state`, which may have other entries too.

    Raises ValueError where it lacks one, or has one of another shape or type.
    """
    for name, tensor in held.items():
        value = state.get(name)
        if value is None or value.shape != tuple(tensor.shape) or _type_of(tensor) != value.dtype:
            raise ValueError(f"cannot resume: the earlier run has no fitting state {name!r}")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(torch.from_numpy(state[name]))


def _type_of(tensor: Tensor) -> np.dtype[Any]:
    return to_array(tensor.new_empty(0)).dtype


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards every buffer of `network` is the tensor that it was, with the numbers it had."""
    slots = [module._buffers for module in network.modules() if module._buffers]
    before = [dict(slot) for slot in slots]
    copies = [[None if b is None else b.detach().clone() for b in s.values()] for s in before]
    try:
        yield
    finally:
        with torch.no_grad():
            for slot, held, values in zip(slots, before, copies, strict=True):
                for tensor, value in zip(held.values(), values, strict=True):
                    if tensor is not None and value is not None:
                        tensor.copy_(value)
                slot.clear()
                slot.update(held)
