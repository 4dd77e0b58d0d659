r"""Convolutions and batch norms whose second derivatives are as fast as their first.

torch differentiates the backward pass of a convolution by convolutions with kernels as large as
the image, and that of a batch norm by its formula for training, in some ten passes over the
activations.  A product with a curvature matrix spends more than half of its time there.  Here:

A convolution is bilinear in x and w.  With g = dL/dy, dL/dx = A(g, w) and dL/dw = B(g, x), and the
derivative of <A, a> + <B, b> is

    at g: a * w + x * b,      at x: A(g, b),      at w: B(g, a),

three products of the kinds that its own passes take (* is the convolution).

A batch norm in eval mode is y = s x + t, with s = weight / sqrt(variance + eps) and
t = bias - mean s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def twice_differentiable(network: nn.Module) -> Iterator[None]:
    """Inside, the layers of `network` are those of this module where they have one, in eval mode.

    They compute the same function, up to rounding.
    """
    changed = [(module, type(module)) for module in network.modules() if type(module) in _CLASSES]
    for module, kind in changed:
        module.__class__ = _CLASSES[kind]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(x)
        arguments = (self.stride, self.padding, self.dilation, False, (0, 0), self.groups)
        y: Tensor = _Convolution.apply(x, self.weight, arguments)
        return y if self.bias is None else y + self.bias[:, None, None]


class _Convolution(torch.autograd.Function):
    """x * w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, arguments: tuple) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.arguments = arguments
        return torch.convolution(x, w, None, *arguments)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = (*ctx.needs_input_grad[:2], False)
        return *_Pulled.apply(g, *ctx.saved_tensors, ctx.arguments, wanted), None


class _Pulled(torch.autograd.Function):
    """A(g, w) and B(g, x), or None where it is not wanted."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, arguments: tuple, wanted: tuple
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, w)
        ctx.arguments = arguments
        ctx.set_materialize_grads(False)
        at_x, at_w, _ = _pulled(g, x, w, arguments, wanted)
        return (at_x if wanted[0] else None), (at_w if wanted[1] else None)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        (g, x, w), arguments = ctx.saved_tensors, ctx.arguments
        at_g: Tensor | None = None
        at_x = at_w = None
        needs = ctx.needs_input_grad
        if needs[0]:
            for left, right in ((a, w), (x, b)):
                if left is not None and right is not None:
                    part = torch.convolution(left, right, None, *arguments)
                    at_g = part if at_g is None else at_g.add_(part)
        if b is not None and needs[1]:
            at_x = _pulled(g, x, b, arguments, (True, False, False))[0]
        if a is not None and needs[2]:
            at_w = _pulled(g, a, w, arguments, (False, True, False))[1]
        return at_g, at_x, at_w, None, None


def _pulled(g: Tensor, x: Tensor, w: Tensor, arguments: tuple, wanted: tuple) -> Any:
    return torch.ops.aten.convolution_backward(g, x, w, None, *arguments, wanted)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training or mean is None or variance is None or x.ndim != 4:
            return super().forward(x)
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = self.weight * scale, self.bias + self.weight * shift
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.BatchNorm2d: _BatchNorm2d,
}
