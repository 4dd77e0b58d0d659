"""A network's copy as a function of its parameters: nothing that a call sets in it remains.

The parameters become buffers of the copy: they move and are saved with it, and do not train. For
a call they stand in their places as parameters again, at the values asked for. What the call
assigns (a buffer that it moves, a weight computed anew, a counter, a cache) is taken back after
it, and where it writes into a tensor it gets a copy of it, so that every call sees the same.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from lnsim_torch.untouched import eager, refused_randomness


def frozen_copy(network: nn.Module, trained: Sequence[Tensor]) -> "tuple[nn.Module, Frozen]":
    """A copy of `network` with buffers for parameters, and it as a function of `trained` ones.

    Raises ValueError for a ScriptModule that has parameters.
    """
    _refuse_scripts(network)
    # A weight that is computed from others is no leaf, and torch copies only leaves.
    held = tree_leaves([module.__dict__ for module in network.modules()])
    computed = [t for t in held if isinstance(t, Tensor) and not t.is_leaf]
    twin = copy.deepcopy(network, {id(t): t.detach().clone() for t in computed})
    return twin, Frozen(twin, _free_places(network, twin, trained))


# Settings of torch, each with how it is read and set, under which attention and recurrent layers
# take kernels that can be differentiated in both modes.
_Setting = tuple[Callable[[], bool], Callable[[bool], None], bool]
_cuda, _mha = torch.backends.cuda, torch.backends.mha
_ATTENTION: list[_Setting] = [
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, False),
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, False),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, False),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, True),
    (_mha.get_fastpath_enabled, _mha.set_fastpath_enabled, False),
]


def _enabled(backend: Any) -> _Setting:
    return partial(getattr, backend, "enabled"), partial(setattr, backend, "enabled"), False


_RECURRENT = {"cudnn": _enabled(torch.backends.cudnn), "mkldnn": _enabled(torch.backends.mkldnn)}


def _recurrent(network: nn.Module) -> list[str]:
    """The backends whose recurrent kernels `network` must do without."""
    layers = [m for m in network.modules() if isinstance(m, nn.RNNBase)]
    lstm = any(isinstance(m, nn.LSTM) for m in layers)
    return ["cudnn", "mkldnn"] if lstm else ["cudnn"] if layers else []


@contextmanager
def _with(settings: list[_Setting]) -> Iterator[None]:
    before = [get() for get, _, _ in settings]
    try:
        for _, put, value in settings:
            put(value)
        yield
    finally:
        for (_, put, _), value in zip(settings, before, strict=True):
            put(value)


# Module, name, and the number of the parameter that belongs there; None for one that stays fixed.
_Place = tuple[nn.Module, str, int | None]


def _free_places(network: nn.Module, twin: nn.Module, trained: Sequence[Tensor]) -> list[_Place]:
    """Turn the parameters of `twin` into buffers; returns the places of all, tied ones too."""
    number = {p: i for i, p in enumerate(trained)}
    buffers: dict[Tensor, Tensor] = {}
    places: list[_Place] = []
    for module, copied in zip(network.modules(), twin.modules(), strict=True):
        for name, p in [*module._parameters.items()]:
            if p is not None:
                value = copied._parameters.pop(name)
                assert value is not None
                copied._buffers[name] = buffers.setdefault(value, value.detach())
                places.append((copied, name, number.get(p)))
    return places


def _refuse_scripts(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise ValueError(
                f"{module.original_name} {name!r} is a ScriptModule, whose parameters cannot be "
                "given to it; linearize the module that it was made from"
            )


class Frozen:
    """The copy as a function of its parameters; see `frozen_copy`."""

    def __init__(self, network: nn.Module, places: list[_Place]):
        self.network = network
        self._places = places
        self._count = len({i for *_, i in places if i is not None})
        modules = network.modules()
        self._modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        self._without = _recurrent(network)
        # What a call writes into, found by `look`: buffers, trained parameters, its inputs.
        self._buffers: list[tuple[nn.Module, str]] = []
        self._parameters: list[int] = []
        self.writes_inputs = False
        self.halves = False  # whether a step of a call is in half precision

    def start(self) -> list[Tensor]:
        """The trained parameters' values in the copy, safe to be written into."""
        values = {i: _buffer(module, name) for module, name, i in self._places if i is not None}
        at = [values[i] for i in range(self._count)]
        for i in self._parameters:
            at[i] = at[i].clone()
        return at

    @contextmanager
    def at(self, parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """The copy with these parameters; what is assigned in it meanwhile is taken back.

        Yields the copies of buffers that stand in for those that a call writes into.
        """
        before = [(m.__dict__, m.__dict__.copy(), m._buffers.copy()) for m in self._modules]
        settings = _ATTENTION + [_RECURRENT[backend] for backend in self._without]
        spare = [_buffer(module, name).clone() for module, name in self._buffers]
        for (module, name), value in zip(self._buffers, spare, strict=True):
            module._buffers[name] = value
        for module, name, i in self._places:
            fixed = module._buffers.pop(name)
            slots: dict[str, Any] = module._parameters
            slots[name] = fixed if i is None else parameters[i]
        try:
            with eager(), _with(settings):
                yield spare
        finally:
            for attributes, old, buffers in before:
                attributes.clear()
                attributes.update(old)
                attributes["_buffers"].clear()
                attributes["_buffers"].update(buffers)
            for module, name, _ in self._places:
                module._parameters.pop(name, None)

    def look(self, call: "Call") -> None:
        """Find out what a call writes into. ValueError if it is no function of `at` and inputs."""
        held = [
            (m, name, b) for m in self._modules for name, b in m._buffers.items() if b is not None
        ]
        start = self.start()
        self._buffers = [(module, name) for module, name, _ in held]
        leaves = [t.detach().clone().requires_grad_() for t in start]
        inputs = [x.detach().clone() for x in call.tensors]
        everywhere = refused_randomness(None), refused_randomness(start[0].device)
        with torch.enable_grad(), everywhere[0], everywhere[1], self.at(leaves) as spare:
            nodes = _nodes(call.outputs(inputs))
        self._check(nodes)
        self.halves = any(_in_half(node) for node in nodes)
        self._buffers = [
            (module, name)
            for (module, name, b), given in zip(held, spare, strict=True)
            if _written(given, b)
        ]
        self._parameters = [i for i, t in enumerate(leaves) if _written(t, start[i])]
        self.writes_inputs = any(map(_written, inputs, call.tensors))

    def _check(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            other = getattr(node, "variable", None)
            if isinstance(other, nn.Parameter):  # those that `at` puts in place are plain tensors
                raise ValueError(
                    f"{type(self.network).__name__} uses a parameter {tuple(other.shape)} that it "
                    "does not take from the module that has it (a list, a closure or a hook holds "
                    "it)"
                )
            if node.name() == "CheckpointFunctionBackward":
                raise ValueError(
                    f"{type(self.network).__name__} checkpoints with use_reentrant=True, of which "
                    "torch has no Jacobian; use_reentrant=False works"
                )


def _nodes(outputs: Sequence[Tensor]) -> list[Node]:
    """The autograd graph of the outputs."""
    stack = [y.grad_fn for y in outputs]
    nodes: dict[Node, None] = {}
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes[node] = None
            stack += [child for child, _ in node.next_functions]
    return [*nodes]


def _in_half(node: Any) -> bool:
    return any(entry.dtype in (torch.float16, torch.bfloat16) for entry in node._input_metadata)


def _buffer(module: nn.Module, name: str) -> Tensor:
    value = module._buffers[name]
    assert value is not None
    return value


def _written(given: Tensor, original: Tensor) -> bool:
    return given._version > 0 or not torch.equal(given, original)


class Call:
    """One call's arguments and result, of which the tensors alone are differentiated."""

    def __init__(self, frozen: Frozen, arguments: Any):
        self._frozen = frozen
        self._leaves, self._structure = tree_flatten(arguments)
        self._number = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        # Autograd keeps no inference tensors.
        tensors = [self._leaves[i] for i in self._number]
        self.tensors: list[Tensor] = [t.clone() if t.is_inference() else t for t in tensors]
        self._result: tuple[list[Any], TreeSpec] | None = None

    def at(self, parameters: Sequence[Tensor]) -> Any:
        return self._frozen.at(parameters)

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that the network returns for these; to be called inside `at`."""
        leaves = [*self._leaves]
        for i, x in zip(self._number, inputs, strict=True):
            leaves[i] = x.clone() if self._frozen.writes_inputs else x
        positional, named = tree_unflatten(leaves, self._structure)
        self._result = tree_flatten(self._frozen.network(*positional, **named))
        for leaf in self._result[0]:
            if any(isinstance(t, Tensor) for t in tree_leaves(getattr(leaf, "__dict__", None))):
                raise ValueError(
                    f"the network returns a {type(leaf).__name__} that holds tensors; it must "
                    "return a tensor, or tensors in a tuple, list or dict"
                )
        return [leaf for leaf in self._result[0] if isinstance(leaf, Tensor)]

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What the network last returned, with these in place of its tensors."""
        assert self._result is not None
        leaves, structure = self._result
        place = iter(tensors)
        return tree_unflatten(
            [next(place) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
