"""Steps of training on one CPU thread: segments of a network with a backward pass of their own.

Of a network of few channels, torch's batch norms and ReLUs take more of a step than their share of
the arithmetic: every one is several passes over the activations.  `forward_of` returns a function
that is the network in training mode, in which

    BatchNorm2d,    BatchNorm2d and ReLU,    Sum and ReLU where the main branch ends in BatchNorm2d

are one compiled loop each way (norm_loops.py).  These loops, and the convolutions between them, are
the layers of a segment, which autograd sees as one operation: their gradients are taken here, layer
by layer from the last to the first.  Results differ by rounding.

A segment is made of the layers below, found in nn.Sequential and in networks.Sum.  Every other
module is called as it is, as is every layer with hooks or with a class of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lnsim_torch import norm_loops
from lnsim_torch.networks import Scale, Sum
from lnsim_torch.training.randomness import is_plain

Tape = list[Any]
"""What the layers of a segment keep for the backward pass, in the order of the forward pass."""

Gradients = dict[Tensor, Tensor]
"""The gradients of a segment's parameters so far."""


def forward_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function equal to `network` in training mode, up to rounding, for one CPU thread."""
    if torch.get_num_threads() > 1 or numba.config.DISABLE_JIT:
        return network
    calls: list[Callable[[Tensor], Tensor]] = []
    known: list[nn.Module] = []
    for module in _flat([network]):
        if _is_known(module) or (known and _is_fused(known[-1], module)):
            known.append(module)
        else:
            calls += [*_segment(known), module]
            known = []
    return _Chain([*calls, *_segment(known)])


def _segment(known: list[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Neighbours as a segment, or as they are if none of them gains by it."""
    return [_Segment(known)] if any(map(_is_norm, _inside(known))) else [*known]


def _inside(modules: list[nn.Module]) -> Iterator[nn.Module]:
    return (m for module in modules for m in module.modules())


class _Chain:
    """Functions one after the other."""

    def __init__(self, calls: list[Callable[[Tensor], Tensor]]) -> None:
        self._calls = calls

    def __call__(self, x: Tensor) -> Tensor:
        for call in self._calls:
            x = call(x)
        return x


def _flat(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """The modules, with those inside an nn.Sequential in its place."""
    for module in modules:
        if type(module) is nn.Sequential and is_plain(module):
            yield from _flat([*module])
        else:
            yield module


def _is_known(module: nn.Module) -> bool:
    """Whether there is a layer below for this module, and for all inside it."""
    if not is_plain(module):
        return False
    if type(module) is Sum:
        main, shortcut = ([*_flat([branch])] for branch in module.children())
        return _is_norm(main[-1]) and _are_known(main) and _are_known(shortcut)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in _tensors(module)):
        return False
    if type(module) is nn.BatchNorm2d:
        return module.affine and module.track_running_stats and module.momentum is not None
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in _LAYERS


def _are_known(modules: list[nn.Module]) -> bool:
    """Whether all neighbours are known, or a ReLU after such a layer."""
    before = [None, *modules]
    return all(
        _is_known(m) or (b is not None and _is_fused(b, m))
        for b, m in zip(before, modules, strict=False)
    )


def _is_norm(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d


def _is_fused(module: nn.Module, relu: nn.Module) -> bool:
    """Whether `relu` is a ReLU that the layer of a known `module` before it takes."""
    return type(relu) is nn.ReLU and is_plain(relu) and type(module) in (nn.BatchNorm2d, Sum)


def _tensors(module: nn.Module) -> list[Tensor]:
    """The parameters of a layer, and its buffers of floating-point numbers."""
    return [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]


class _Segment:
    """Known modules one after the other."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = nn.Sequential(*modules)
        self._norms = [m for m in self._modules.modules() if isinstance(m, nn.BatchNorm2d)]
        self._parameters = [*self._modules.parameters()]
        self._layer = _chain(modules)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._takes(x):
            plain: Tensor = self._modules(x)
            return plain
        y: Tensor = _OfSegment.apply(x, self._layer, self._parameters, *self._parameters)
        return y

    def _takes(self, x: Tensor) -> bool:
        return (
            (x.ndim, x.dtype, x.device.type) == (4, torch.float32, "cpu")
            and not torch.is_autocast_enabled("cpu")
            and all(norm.training for norm in self._norms)
        )


class _OfSegment(torch.autograd.Function):
    """A segment as one operation of autograd, on its input and its parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer, parameters: list[Tensor], *_: Tensor) -> Tensor:
        ctx.layer, ctx.parameters, ctx.tape = layer, parameters, []
        y = layer.forward(x, ctx.tape)
        return y.view_as(y) if y is x else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found: Gradients = {}
        at_x = ctx.layer.backward(gradient, ctx.tape, found, ctx.needs_input_grad[0])
        return at_x, None, None, *(found.get(p) for p in ctx.parameters)


class _Layer(Protocol):
    """A differentiable function of a segment.

    `forward` appends to the tape what `backward` takes from its end.  `backward` adds the gradients
    of the layer's parameters, and returns that at its input, or None unless it is `wanted`.
    """

    def forward(self, x: Tensor, tape: Tape) -> Tensor: ...

    def backward(
        self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool
    ) -> Tensor | None: ...


def _add(found: Gradients, parameter: Tensor, gradient: Tensor) -> None:
    found[parameter] = found[parameter] + gradient if parameter in found else gradient


class _Sequence:
    """Layers one after the other."""

    def __init__(self, layers: list[_Layer]) -> None:
        self._layers = layers

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        for layer in self._layers:
            x = layer.forward(x, tape)
        return x

    def backward(
        self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool
    ) -> Tensor | None:
        at: Tensor | None = gradient
        for i, layer in reversed([*enumerate(self._layers)]):
            assert at is not None  # only the first layer's is not wanted
            at = layer.backward(at, tape, found, wanted or i > 0)
        return at


def _chain(modules: list[nn.Module]) -> _Layer:
    """The known modules as layers one after the other, a ReLU in the layer before it."""
    left, layers = [*_flat(modules)], []
    while left:
        module = left.pop(0)
        relu = bool(left) and _is_fused(module, left[0])
        if relu:
            left.pop(0)
        layers.append(_LAYERS[type(module)](module, relu))
    return _Sequence(layers)


class _Convolution:
    def __init__(self, module: nn.Conv2d, relu: bool) -> None:
        self._module = module
        self._arguments: Any = (
            module.stride, module.padding, module.dilation, False, (0, 0), module.groups
        )  # fmt: skip

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        tape.append(x)
        return torch.convolution(x, self._module.weight, self._module.bias, *self._arguments)

    def backward(
        self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool
    ) -> Tensor | None:
        weight, bias = self._module.weight, self._module.bias
        at_x, at_weight, at_bias = torch.ops.aten.convolution_backward(
            gradient, tape.pop(), weight, None if bias is None else bias.shape, *self._arguments,
            (wanted, weight.requires_grad, bias is not None and bias.requires_grad),
        )  # fmt: skip
        if at_weight is not None:
            _add(found, weight, at_weight)
        if bias is not None and at_bias is not None:
            _add(found, bias, at_bias)
        return at_x if wanted else None


class _Norm:
    """A batch norm, plus a shortcut in a _Block, with or without ReLU."""

    def __init__(self, module: Any, relu: bool) -> None:
        self._module, self._relu = module, relu

    def forward(self, x: Tensor, tape: Tape, shortcut: Tensor | None = None) -> Tensor:
        module = self._module
        if x.numel() == x.shape[1]:
            return module(x)  # which refuses the variance of a single value
        x = _channels_last(x)
        shortcut = None if shortcut is None else _channels_last(shortcut)
        y, moments = torch.empty_like(x), np.empty((3, x.shape[1]))
        norm_loops.forward_at(
            x.numel(), x.data_ptr(), *self._vectors(),
            0 if shortcut is None else shortcut.data_ptr(), module.eps, module.momentum, self._relu,
            y.data_ptr(), moments,
        )  # fmt: skip
        module.get_buffer("num_batches_tracked").add_(1)
        tape.append((x, y, moments))
        return y

    def _vectors(self) -> list[int]:
        """The addresses of the weight, the bias, and the running mean and variance."""
        module = self._module
        buffers = module._buffers
        running = [buffers[name] for name in ("running_mean", "running_var")]
        return [t.data_ptr() for t in (module.weight, module.bias, *running) if t is not None]

    def backward(self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool) -> Tensor:
        return self.backward_both(gradient, tape, found, False)[0]

    def backward_both(
        self, gradient: Tensor, tape: Tape, found: Gradients, shortcut: bool
    ) -> tuple[Tensor, Tensor]:
        """The gradients at the input and, if it is asked for, at the shortcut."""
        module = self._module
        x, y, moments = tape.pop()
        gradient = _channels_last(gradient)
        at_x, at_weight, at_bias = map(torch.empty_like, (x, module.weight, module.bias))
        apart = shortcut and self._relu  # else it is the gradient at the output
        at_shortcut = torch.empty_like(x) if apart else gradient
        norm_loops.backward_at(
            x.numel(), gradient.data_ptr(), y.data_ptr() if self._relu else 0, x.data_ptr(),
            module.weight.data_ptr(), moments, at_x.data_ptr(),
            at_shortcut.data_ptr() if apart else 0, at_weight.data_ptr(), at_bias.data_ptr(),
        )  # fmt: skip
        _add(found, module.weight, at_weight)
        _add(found, module.bias, at_bias)
        return at_x, at_shortcut


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Block:
    """A Sum whose main branch ends in a batch norm, with or without ReLU."""

    def __init__(self, module: nn.Module, relu: bool) -> None:
        main, shortcut = module.children()
        *before, norm = _flat([main])
        self._main, self._shortcut = _chain(before), _chain([shortcut])
        self._norm = _Norm(norm, relu)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        shortcut = self._shortcut.forward(x, tape)
        return self._norm.forward(self._main.forward(x, tape), tape, shortcut)

    def backward(
        self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool
    ) -> Tensor | None:
        at_main, at_shortcut = self._norm.backward_both(gradient, tape, found, True)
        at_x = self._main.backward(at_main, tape, found, wanted)
        more = self._shortcut.backward(at_shortcut, tape, found, wanted)
        return None if at_x is None or more is None else at_x.add_(more)


class _Pool:
    """An average over windows."""

    def __init__(self, module: nn.AvgPool2d, relu: bool) -> None:
        self._arguments = (
            _pair(module.kernel_size), _pair(module.stride), _pair(module.padding),
            module.ceil_mode, module.count_include_pad, module.divisor_override,
        )  # fmt: skip

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        tape.append(x)
        return torch.ops.aten.avg_pool2d(x, *self._arguments)

    def backward(self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(gradient, tape.pop(), *self._arguments)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class _Identity:
    def __init__(self, module: nn.Identity, relu: bool) -> None:
        pass

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return x

    def backward(self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool) -> Tensor:
        return gradient


class _Times:
    """Multiplies by a number."""

    def __init__(self, module: Scale, relu: bool) -> None:
        self._factor = module.factor

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return x * self._factor

    def backward(self, gradient: Tensor, tape: Tape, found: Gradients, wanted: bool) -> Tensor:
        return gradient * self._factor


_LAYERS: dict[type[nn.Module], Callable[[Any, bool], _Layer]] = {
    nn.Conv2d: _Convolution,
    nn.BatchNorm2d: _Norm,
    Sum: _Block,
    nn.AvgPool2d: _Pool,
    nn.Identity: _Identity,
    Scale: _Times,
}
"""The layer of each kind of module, made of a module and of whether a ReLU follows in it."""
