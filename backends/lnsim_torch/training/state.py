"""The state of a network in training: its tensors by name, saved as arrays and restored."""

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
"""Types that NumPy lacks; float32 holds all their values exactly."""


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (non-persistent ones too) by name, in the network's order."""
    by_name = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                by_name[f"{prefix}.{name}".removeprefix(".")] = tensor
    return by_name


def check_no_extra_state(network: nn.Module) -> None:
    """Raises ValueError for a module that defines get_extra_state."""
    for name, module in network.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"network must keep its state in parameters and buffers: {name!r} has a"
                " get_extra_state, which a checkpoint cannot hold"
            )


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy of the tensor with the same values."""
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.dtype in _WITHOUT_NUMPY else tensor
    return tensor.cpu().numpy().copy()


def restore_tensors(state: Mapping[str, NDArray[Any]], current: Mapping[str, Tensor]) -> None:
    """Copies the values of `state`, which may have other entries too, into the `current` tensors.

    Raises ValueError where an entry is missing, or has another shape or dtype.
    """
    for name, tensor in current.items():
        value = state.get(name)
        if value is None or value.shape != tuple(tensor.shape) or _dtype_of(tensor) != value.dtype:
            raise ValueError(f"cannot resume: the earlier run has no matching state {name!r}")
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(torch.from_numpy(state[name]))


def _dtype_of(tensor: Tensor) -> np.dtype[Any]:
    return to_array(tensor.new_empty(0)).dtype


@contextmanager
def buffers_restored(network: nn.Module) -> Iterator[None]:
    """Afterwards every buffer of `network` is the same tensor with the same values as before."""
    slots = [module._buffers for module in network.modules() if module._buffers]
    buffers = [dict(slot) for slot in slots]
    copies = [[None if b is None else b.detach().clone() for b in s.values()] for s in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for slot, tensors_before, values in zip(slots, buffers, copies, strict=True):
                for tensor, value in zip(tensors_before.values(), values, strict=True):
                    if tensor is not None and value is not None:
                        tensor.copy_(value)
                slot.clear()
                slot.update(tensors_before)
