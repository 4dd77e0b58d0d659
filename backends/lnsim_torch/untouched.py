"""A call of a network that leaves no trace: not in its state, nor in torch's generators.

What a network does when it is called may write to its own state: spectral norm in training mode
takes a step of its power iteration, an observer moves its range, an embedding renormalises its
rows. A kernel is of the network at one state, and takes many calls. So every call begins at the
state in which the network was given, and ends there.

A dispatch mode sees every operation of torch before it runs. Of a parameter or buffer that one is
about to write to, it keeps a copy, and puts it back at the end: what is not written costs nothing.
"""

import ctypes
import math
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
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
# Calls of a network that are watched in any case.
_WATCHED = 2


class TooMuch(Exception):
    """A call makes more bytes than it was given."""


class Untouched:
    """Calls `network`, which must not be random, and leaves it as it was, also after an error."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.modules = [*network.modules()]
        parameters = (p for m in self.modules for p in m._parameters.values() if p is not None)
        self.parameters = [*dict.fromkeys(parameters)]
        self.trained = [p for p in self.parameters if p.requires_grad]
        buffers = (b for m in self.modules for b in m._buffers.values() if b is not None)
        self.state = {*self.parameters, *buffers}
        self._watch = _Watch(self.state)
        self._generators: Generators | None = None
        self._calls = 0

    def __call__(self, x: Tensor) -> Any:
        """network(x). Raises ValueError if the network draws random numbers."""
        # Watching takes some microseconds an operation. What a network writes to, it writes to from
        # the beginning.
        watched = self._calls < _WATCHED or self._watch.seen or self._watch.room < math.inf
        watch = self._watch if watched else nullcontext()
        flags = [module.training for module in self.modules]
        slots = [m._buffers for m in self.modules if m._buffers and type(m._buffers) is dict]
        buffers = [slot.copy() for slot in slots]
        if self._generators is None:
            self._generators = Generators(x.device)
        try:
            with eager(), watch:
                output = self.network(x)
            self._calls += 1
            return output
        finally:
            self._watch.restore()
            for slot, before in zip(slots, buffers, strict=True):
                slot.clear()
                slot.update(before)
            for module, flag in zip(self.modules, flags, strict=True):
                if module.training is not flag:
                    module.training = flag
            self._generators.refuse_draws()

    @contextmanager
    def within(self, nbytes: int) -> Iterator[Callable[[], int]]:
        """Raise TooMuch where calls inside make more than nbytes; gives how many they made."""
        watch = self._watch
        watch.made, watch.room = 0, nbytes
        try:
            yield lambda: watch.made
        except Exception:  # TooMuch, or whatever the network raised in its place
            if watch.made <= nbytes:
                raise
        finally:
            watch.room = math.inf
        if watch.made > nbytes:  # whatever the network made of the error
            raise TooMuch


class _Watch(TorchDispatchMode):
    """Copies of the storages of `state` that are written to while the mode is on."""

    def __init__(self, state: Iterable[Tensor]):
        super().__init__()
        strided = (t.untyped_storage() for t in state if t.layout == torch.strided)
        self._state = {storage.data_ptr(): storage for storage in strided}
        self._copies: dict[int, torch.UntypedStorage] = {}
        self.seen = False  # whether anything was written to, ever
        self.made = 0
        self.room: float = math.inf  # bytes of what operations gave, and may give

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so imports torch's compiler, in seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written_arguments(func)
        if written is not None:
            for value in written(args, kwargs):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    self._keep(tensor)
        result = func(*args, **kwargs)
        if self.room < math.inf and _makes(func):
            made = result if isinstance(result, list | tuple) else (result,)
            self.made += sum(t.numel() * t.element_size() for t in made if isinstance(t, Tensor))
            if self.made > self.room:
                raise TooMuch
        return result

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            address = tensor.untyped_storage().data_ptr()
            if address in self._state and address not in self._copies:
                self._copies[address] = self._state[address].clone()
                self.seen = True

    def restore(self) -> None:
        for address, copy in self._copies.items():
            self._state[address].copy_(copy)
        self._copies.clear()


@cache
def _makes(func: Any) -> bool:
    """Whether an operation gives memory of its own, no view and nothing that it was given."""
    return any(result.alias_info is None for result in func._schema.returns)


@cache
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
def refused_randomness(device: torch.device | None) -> Iterator[None]:
    """Raise ValueError if random numbers are drawn inside; the generators are put back.

    device: see `Generators`.
    """
    generators = Generators(device)
    try:
        yield
    finally:
        generators.refuse_draws()


class Generators:
    """Random generators as they are now, to see whether they are drawn from.

    device: whose torch generator to watch, with that of the CPU; None: Python's and NumPy's global
    generators, which are slower to look at.
    """

    def __init__(self, device: torch.device | None):
        generators = _others() if device is None else _torchs(device)
        self._states = [(generator, generator[0]()) for generator in generators]

    def refuse_draws(self) -> None:
        """Put back those that were drawn from; raise ValueError if there are any."""
        drawn = False
        for (_, put, moved), state in self._states:
            if moved(state):
                drawn = True
                put(state)
        if drawn:
            raise ValueError(
                "the network draws random numbers when it is called (dropout, stochastic depth or "
                "noise in training mode?), so that it is no function of its input; call "
                "network.eval() first"
            )


# How to read the state of a generator, to put it back, and to see whether it is another one now.
Generator = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], bool]]


def _torchs(device: torch.device) -> list[Generator]:
    generators = [torch.default_generator]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    return [(g.get_state, g.set_state, partial(_moved, g)) for g in generators]


def _moved(generator: torch.Generator, state: Tensor) -> bool:
    return not torch.equal(state, generator.get_state())


def _others() -> list[Generator]:
    return [
        (random.getstate, random.setstate, lambda state: random.getstate() != state),
        (_numpys_state, lambda state: np.random.set_state(state[0]), _numpys_moved),  # noqa: NPY002
    ]


def _numpys_state() -> tuple[dict[str, Any], bytes]:
    """The state of NumPy's global generator, and its memory, which is sooner read."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return state, _memory() if state["bit_generator"] == "MT19937" else b""


def _numpys_moved(before: tuple[dict[str, Any], bytes]) -> bool:
    state, memory = before
    if memory and not state["has_gauss"]:  # a second normal number may be in store, and be taken
        return memory != _memory()
    return pickle.dumps(state) != pickle.dumps(_numpys_state()[0])


def _memory() -> bytes:
    """What a Mersenne twister of NumPy holds: 624 words, and the place of the next one."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


def eager() -> Any:
    """A context in which compiled networks run as they were written."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
