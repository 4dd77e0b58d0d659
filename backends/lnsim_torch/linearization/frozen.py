"""A copy of a network as a function of its parameters, which its calls do not change.

The parameters become buffers of the copy: they move and are saved with it, but are not trained. For
a call they become parameters again, with the given values. Assignments by the call (a buffer that
it moves, a weight computed anew, a counter, a cache) are undone after it, and a tensor that it
writes to is replaced by a copy, so that every call sees the same network.
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
    """A copy of `network` with buffers for parameters, and the copy as a function of `trained`.

    Raises ValueError for a ScriptModule that has parameters.
    """
    _refuse_scripts(network)
    # A weight that is computed from others is no leaf, and torch copies only leaves.
    values = tree_leaves([module.__dict__ for module in network.modules()])
    computed = [t for t in values if isinstance(t, Tensor) and not t.is_leaf]
    twin = copy.deepcopy(network, {id(t): t.detach().clone() for t in computed})
    return twin, Frozen(twin, _parameters_to_buffers(network, twin, trained))


# Flags of torch, as (getter, setter, value). With these values attention and recurrent layers use
# kernels that can be differentiated in both modes.
_Flag = tuple[Callable[[], bool], Callable[[bool], None], bool]
_cuda, _mha = torch.backends.cuda, torch.backends.mha
_ATTENTION: list[_Flag] = [
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, False),
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, False),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, False),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, True),
    (_mha.get_fastpath_enabled, _mha.set_fastpath_enabled, False),
]


def _disabled(backend: Any) -> _Flag:
    return partial(getattr, backend, "enabled"), partial(setattr, backend, "enabled"), False


_RECURRENT = {"cudnn": _disabled(torch.backends.cudnn), "mkldnn": _disabled(torch.backends.mkldnn)}


def _recurrent_backends(network: nn.Module) -> list[str]:
    """The backends whose recurrent kernels `network` must not use."""
    layers = [m for m in network.modules() if isinstance(m, nn.RNNBase)]
    lstm = any(isinstance(m, nn.LSTM) for m in layers)
    return ["cudnn", "mkldnn"] if lstm else ["cudnn"] if layers else []


@contextmanager
def _set(flags: list[_Flag]) -> Iterator[None]:
    before = [get() for get, _, _ in flags]
    try:
        for _, put, value in flags:
            put(value)
        yield
    finally:
        for (_, put, _), value in zip(flags, before, strict=True):
            put(value)


# A module, the name of a parameter, and its number among the trained ones; None if it stays fixed.
_Slot = tuple[nn.Module, str, int | None]


def _parameters_to_buffers(
    network: nn.Module, twin: nn.Module, trained: Sequence[Tensor]
) -> list[_Slot]:
    """Turn the parameters of `twin` into buffers; returns the slots of all, tied ones too."""
    number = {p: i for i, p in enumerate(trained)}
    buffers: dict[Tensor, Tensor] = {}
    slots: list[_Slot] = []
    for module, copied in zip(network.modules(), twin.modules(), strict=True):
        for name, p in [*module._parameters.items()]:
            if p is not None:
                value = copied._parameters.pop(name)
                assert value is not None
                copied._buffers[name] = buffers.setdefault(value, value.detach())
                slots.append((copied, name, number.get(p)))
    return slots


def _refuse_scripts(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise ValueError(
                f"{module.original_name} {name!r} is a ScriptModule, whose parameters cannot be "
                "replaced; linearize the module that it was made from"
            )


class Frozen:
    """The copy as a function of its parameters; see `frozen_copy`."""

    def __init__(self, network: nn.Module, slots: list[_Slot]):
        self.network = network
        self._slots = slots
        self._count = len({i for *_, i in slots if i is not None})
        modules = network.modules()
        self._modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        # By name: this object is copied and pickled, which a flag cannot be.
        self._disabled_backends = _recurrent_backends(network)
        # Set by `inspect`: the buffers, trained parameters and inputs that a call writes to.
        self._written_buffers: list[tuple[nn.Module, str]] = []
        self._written_parameters: list[int] = []
        self.writes_inputs = False
        self.has_half_precision = False  # in any operation of a call

    def start(self) -> list[Tensor]:
        """The values of the trained parameters in the copy; a call may write to them."""
        values = {i: _buffer(module, name) for module, name, i in self._slots if i is not None}
        parameters = [values[i] for i in range(self._count)]
        for i in self._written_parameters:
            parameters[i] = parameters[i].clone()
        return parameters

    @contextmanager
    def at(self, parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Inside, the copy has these parameters; assignments in it are undone afterwards.

        Yields the copies that replace the buffers that a call writes to.
        """
        before = [(m.__dict__, m.__dict__.copy(), m._buffers.copy()) for m in self._modules]
        flags = _ATTENTION + [_RECURRENT[backend] for backend in self._disabled_backends]
        copies = [_buffer(module, name).clone() for module, name in self._written_buffers]
        for (module, name), value in zip(self._written_buffers, copies, strict=True):
            module._buffers[name] = value
        for module, name, i in self._slots:
            fixed = module._buffers.pop(name)
            own_parameters: dict[str, Any] = module._parameters
            own_parameters[name] = fixed if i is None else parameters[i]
        try:
            with eager(), _set(flags):
                yield copies
        finally:
            for attributes, old, buffers in before:
                attributes.clear()
                attributes.update(old)
                attributes["_buffers"].clear()
                attributes["_buffers"].update(buffers)
            for module, name, _ in self._slots:
                module._parameters.pop(name, None)

    def inspect(self, call: "FrozenCall") -> None:
        """Find the tensors that a call writes to.

        Raises ValueError if the call is no function of the trained parameters and the inputs.
        """
        buffers = [
            (m, name, b) for m in self._modules for name, b in m._buffers.items() if b is not None
        ]
        start = self.start()
        self._written_buffers = [(module, name) for module, name, _ in buffers]
        leaves = [t.detach().clone().requires_grad_() for t in start]
        inputs = [x.detach().clone() for x in call.tensors]
        no_python_draws, no_torch_draws = (
            refused_randomness(None), refused_randomness(start[0].device),
        )  # fmt: skip
        with torch.enable_grad(), no_python_draws, no_torch_draws, self.at(leaves) as copies:
            nodes = _nodes(call.outputs(inputs))
        self._check(nodes)
        self.has_half_precision = any(_is_half_precision(node) for node in nodes)
        self._written_buffers = [
            (module, name)
            for (module, name, original), copied in zip(buffers, copies, strict=True)
            if _is_written(copied, original)
        ]
        self._written_parameters = [i for i, t in enumerate(leaves) if _is_written(t, start[i])]
        self.writes_inputs = any(map(_is_written, inputs, call.tensors))

    def _check(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, nn.Parameter):  # the parameters that `at` sets are plain tensors
                raise ValueError(
                    f"{type(self.network).__name__} uses a parameter {tuple(leaf.shape)} that it "
                    "does not take from its module (but from a list, a closure or a hook)"
                )
            if node.name() == "CheckpointFunctionBackward":
                raise ValueError(
                    f"{type(self.network).__name__} checkpoints with use_reentrant=True, for which "
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


def _is_half_precision(node: Any) -> bool:
    return any(entry.dtype in (torch.float16, torch.bfloat16) for entry in node._input_metadata)


def _buffer(module: nn.Module, name: str) -> Tensor:
    value = module._buffers[name]
    assert value is not None
    return value


def _is_written(copied: Tensor, original: Tensor) -> bool:
    return copied._version > 0 or not torch.equal(copied, original)


class FrozenCall:
    """One call's arguments and result, of which only the tensors are differentiated."""

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
        """The tensors that the network returns for these inputs; to be called inside `at`."""
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
        """The network's last return value, with `tensors` in place of its tensors."""
        assert self._result is not None
        leaves, structure = self._result
        replacements = iter(tensors)
        return tree_unflatten(
            [next(replacements) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
