"""Calls of a network that change neither its state nor the random generators.

A call may write to the network's own state: spectral norm in training mode takes a step of its
power iteration, an observer moves its range, an embedding renormalises its rows. A kernel belongs
to one state of the network, but takes many calls. So every call begins and ends at the state in
which the network was given.

A dispatch mode sees every torch operation before it runs. It copies a parameter or buffer that the
operation is about to write to, and restores it at the end; state that is not written costs nothing.
"""

import ctypes
import math
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lnsim_torch.watching import Watching

# Operations that write to their running statistics although their schema does not say so.
_UNDECLARED_WRITES = {
    torch.ops.aten.native_batch_norm.default: slice(3, 5),
    torch.ops.aten.cudnn_batch_norm.default: slice(3, 5),
    torch.ops.aten.miopen_batch_norm.default: slice(3, 5),
}
# The first calls of a network are always watched.
_WATCHED = 2


class TooMuch(Exception):
    """A call allocates more bytes than its limit."""


class Untouched:
    """Calls `network`, which must not be random, and restores its state, also after an error."""

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
        # Watching takes some microseconds per operation. A network that writes to its state is
        # assumed to do so in its first calls.
        watched = self._calls < _WATCHED or self._watch.has_writes or self._watch.limit < math.inf
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
        """Raise TooMuch if calls inside allocate more than nbytes; yields a function for the count.

        The function returns the bytes allocated so far.
        """
        watch = self._watch
        watch.allocated, watch.limit = 0, nbytes
        try:
            yield lambda: watch.allocated
        except Exception:
            # A network may catch TooMuch and raise an error of any type in its place.  What it
            # allocated decides: below the limit the error is the network's own and is raised again;
            # above it TooMuch is raised below, whatever the network made of it.
            if watch.allocated <= nbytes:
                raise
        finally:
            watch.limit = math.inf
        if watch.allocated > nbytes:  # also if the network caught the error
            raise TooMuch


class _Watch(Watching):
    """Keeps copies of the storages of `state` that are written to while the mode is on."""

    def __init__(self, state: Iterable[Tensor]):
        super().__init__()
        strided = (t.untyped_storage() for t in state if t.layout == torch.strided)
        self._state = {storage.data_ptr(): storage for storage in strided}
        self._copies: dict[int, torch.UntypedStorage] = {}
        self.has_writes = False  # whether any storage was ever written to
        self.allocated = 0  # bytes of the operations' results
        self.limit: float = math.inf  # of `allocated`

    def before(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        written = _written_arguments(func)
        if written is not None:
            for value in written(args, kwargs):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    self._copy(tensor)

    def after(self, func: Any, result: Any) -> None:
        if self.limit < math.inf and _allocates(func):
            results = result if isinstance(result, list | tuple) else (result,)
            self.allocated += sum(
                t.numel() * t.element_size() for t in results if isinstance(t, Tensor)
            )
            if self.allocated > self.limit:
                raise TooMuch

    def _copy(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            address = tensor.untyped_storage().data_ptr()
            if address in self._state and address not in self._copies:
                self._copies[address] = self._state[address].clone()
                self.has_writes = True

    def restore(self) -> None:
        for address, copy in self._copies.items():
            self._state[address].copy_(copy)
        self._copies.clear()


@cache
def _allocates(func: Any) -> bool:
    """Whether an operation returns new memory, neither a view nor one of its arguments."""
    return any(result.alias_info is None for result in func._schema.returns)


@cache
def _written_arguments(func: Any) -> Callable[[tuple, dict[str, Any]], list[Any]] | None:
    """A function that selects the arguments an operation writes to; None if it writes to none."""
    if func in _UNDECLARED_WRITES:
        return lambda args, kwargs: [*args[_UNDECLARED_WRITES[func]]]
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
    """Raise ValueError if random numbers are drawn inside; the generators are restored.

    device: see `Generators`.
    """
    generators = Generators(device)
    try:
        yield
    finally:
        generators.refuse_draws()


class Generators:
    """The states of random generators, to find out later whether they were drawn from.

    device: watch the torch generators of this device and of the CPU; None: watch the global
    generators of Python and NumPy, which are slower to read.
    """

    def __init__(self, device: torch.device | None):
        generators = _python_and_numpy() if device is None else _of_torch(device)
        self._states = [(generator, generator.read()) for generator in generators]

    def refuse_draws(self) -> None:
        """Restore the generators that were drawn from; raise ValueError if there are any."""
        drawn = False
        for generator, state in self._states:
            if generator.has_moved(state):
                drawn = True
                generator.restore(state)
        if drawn:
            raise ValueError(
                "the network draws random numbers when it is called (dropout, stochastic depth or "
                "noise in training mode?), so it is no function of its input; call "
                "network.eval() first"
            )


class _GeneratorAccess(NamedTuple):
    """How to read and restore a generator's state, and to tell whether it has left a state."""

    read: Callable[[], Any]
    restore: Callable[[Any], Any]
    has_moved: Callable[[Any], bool]


def _of_torch(device: torch.device) -> list[_GeneratorAccess]:
    generators = [torch.default_generator]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    return [
        _GeneratorAccess(g.get_state, g.set_state, partial(_torch_moved, g)) for g in generators
    ]


def _torch_moved(generator: torch.Generator, state: Tensor) -> bool:
    return not torch.equal(state, generator.get_state())


def _python_and_numpy() -> list[_GeneratorAccess]:
    return [
        _GeneratorAccess(
            random.getstate, random.setstate, lambda state: random.getstate() != state
        ),
        _GeneratorAccess(
            _numpy_state,
            lambda state: np.random.set_state(state[0]),  # noqa: NPY002
            _numpy_moved,
        ),
    ]


def _numpy_state() -> tuple[dict[str, Any], bytes]:
    """The state of NumPy's global generator, and its raw memory, which is faster to read."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return state, _memory() if state["bit_generator"] == "MT19937" else b""


def _numpy_moved(before: tuple[dict[str, Any], bytes]) -> bool:
    state, memory = before
    if memory and not state["has_gauss"]:  # drawing a cached normal number leaves the memory as is
        return memory != _memory()
    return pickle.dumps(state) != pickle.dumps(_numpy_state()[0])


def _memory() -> bytes:
    """The memory of NumPy's Mersenne twister: 624 words, and the position of the next one."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


_eager = ExitStack()
_eager_now = 0
_eager_lock = Lock()


@contextmanager
def eager() -> Iterator[None]:
    """A context in which compiled networks run uncompiled, in several threads at a time.

    torch keeps what it compiles as one setting of the process: the first thread changes it and the
    last one changes it back.
    """
    global _eager_now
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        yield
        return
    with _eager_lock:
        if _eager_now == 0:
            _eager.enter_context(torch.compiler.set_stance("force_eager"))
        _eager_now += 1
    try:
        yield
    finally:
        with _eager_lock:
            _eager_now -= 1
            if _eager_now == 0:
                _eager.close()
