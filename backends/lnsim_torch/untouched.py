"""A call of a network that leaves no trace: not in its state, nor in torch's generators.

What a network does when it is called may write to its own state: spectral norm in training mode
takes a step of its power iteration, an observer moves its range, an embedding renormalises its
rows. A kernel is of the network at one state, and takes many calls. So every call begins at the
state in which the network was given, and ends there.

A dispatch mode sees every operation of torch before it runs. Of a parameter or buffer that one is
about to write to, it keeps a copy, and puts it back at the end: what is not written costs nothing.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that write to their running statistics though their schema does not say so.
_WRITES_UNSAID = {
    torch.ops.aten.native_batch_norm.default: slice(3, 5),
    torch.ops.aten.cudnn_batch_norm.default: slice(3, 5),
    torch.ops.aten.miopen_batch_norm.default: slice(3, 5),
}


class Untouched:
    """Calls `network`, which must not be random, and leaves it as it was, also after an error."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._watch = _Watch((*network.parameters(), *network.buffers()))
        self._modules = [*network.modules()]

    def __call__(self, x: Tensor) -> Any:
        """network(x). Raises ValueError if the network draws random numbers."""
        flags = [module.training for module in self._modules]
        slots = [m._buffers for m in self._modules if m._buffers]
        buffers = [slot.copy() for slot in slots]
        try:
            with eager(), refused_randomness(x.device), self._watch:
                return self.network(x)
        finally:
            self._watch.restore()
            for slot, before in zip(slots, buffers, strict=True):
                slot.clear()
                slot.update(before)
            for module, flag in zip(self._modules, flags, strict=True):
                module.training = flag


class _Watch(TorchDispatchMode):
    """Copies of the storages of `state` that are written to while the mode is on."""

    def __init__(self, state: Iterable[Tensor]):
        super().__init__()
        strided = (t.untyped_storage() for t in state if t.layout == torch.strided)
        self._state = {storage.data_ptr(): storage for storage in strided}
        self._copies: dict[int, torch.UntypedStorage] = {}
        self._written: dict[Any, Callable[..., list[Any]] | None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._written:
            self._written[func] = _written_arguments(func)
        written = self._written[func]
        if written is not None:
            for value in written(args, kwargs):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            address = tensor.untyped_storage().data_ptr()
            if address in self._state and address not in self._copies:
                self._copies[address] = self._state[address].clone()

    def restore(self) -> None:
        for address, copy in self._copies.items():
            self._state[address].copy_(copy)
        self._copies.clear()


def _written_arguments(func: Any) -> Callable[[tuple, dict[str, Any]], list[Any]] | None:
    """Which of its arguments an operation writes to, as a function of them; None if none."""
    if func in _WRITES_UNSAID:
        return lambda args, kwargs: [*args[_WRITES_UNSAID[func]]]
    if not func._schema.is_mutable:
        return None
    names = [
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return lambda args, kwargs: [
        args[i] if i < len(args) else kwargs.get(name) for i, name in names
    ]


@contextmanager
def refused_randomness(device: torch.device) -> Iterator[None]:
    """Raise ValueError if random numbers are drawn inside; the generators are put back."""
    before = _generators(device)
    try:
        yield
    finally:
        moved = [
            (state, put)
            for (state, put), (now, _) in zip(before, _generators(device), strict=True)
            if not _same(state, now)
        ]
        for state, put in moved:
            put(state)
    if moved:
        raise ValueError(
            "the network draws random numbers when it is called (dropout, stochastic depth or "
            "noise in training mode?), so that it has no kernel; call network.eval() first"
        )


def _generators(device: torch.device) -> list[tuple[Any, Callable[[Any], Any]]]:
    """The states of the generators that a network may draw from, and how to put each back."""
    states: list[tuple[Any, Callable[[Any], Any]]] = [
        (torch.get_rng_state(), torch.set_rng_state),
        (random.getstate(), random.setstate),
        (np.random.get_state(), np.random.set_state),  # noqa: NPY002
    ]
    if device.type == "cuda":
        put = lambda state: torch.cuda.set_rng_state(state, device)  # noqa: E731
        states.append((torch.cuda.get_rng_state(device), put))
    return states


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    return bool(a == b)


def eager() -> Any:
    """A context in which compiled networks run as they were written."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
