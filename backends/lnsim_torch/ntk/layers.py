"""The kernel of one layer, from its input and the gradients at its output.

Derivation
----------
The kernel is a sum over parameters, so over layers. For sample n let P_n (L positions × K features)
be the patches of a layer's input and D_nc (L × O) the gradient of output c at the layer's output.
A weight used as Z_n = P_n Wᵀ + b has the per-sample gradients

    ∂f_c(x_n)/∂W = D_ncᵀ P_n        (O × K),        ∂f_c(x_n)/∂b = Σ_l D_nc[l].

Linear layers (K = features, L = 1, or the length of a sequence), convolutions (K = channels ×
kernel, L = pixels) and embeddings (P_n one-hot) have this form. Their share of the kernel,

    Θ[nc, mc'] = ⟨D_ncᵀ P_n, D_mc'ᵀ P_m⟩ = Σ_ll' A_nm[l, l'] E_nc,mc'[l, l'],
    A_nm = P_n P_mᵀ,   E_nc,mc' = D_nc D_mc'ᵀ,   and A + 1 in place of A adds the bias,

is computed by `products`.

A transposed convolution gives position l of its input to the window of its output that begins at
l · stride. With P_n its input (L × channels) and D_nc the windows of the output's gradient
(L × O · kernel) its weight has the same form; its bias has the gradient at the output itself.

A parameter q outside of these modules that the samples meet in one sum or product z = x + q or x q,
with q broadcast over samples and positions, has Σ_l D or Σ_l D ∘ x (`graph.Use`).

For a normalisation layer, z = γ ∘ x̂ + β, the gradients Σ_l D ∘ x̂ and Σ_l D are as small as γ and β
and are formed at once. The kernel traced over the outputs is that of ONE output whose D has C·O
channels, so the same code computes it.

Rows and columns of a kernel block are ordered (output, sample): the passes run output by output.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import prod
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnsim_torch.ntk.graph import NAMES, Use
from lnsim_torch.ntk.products import add_product, add_weighted, concatenated, slices
from lnsim_torch.ntk.rows import close

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM = (*_BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
# Products with fewer columns than this are far from the machine's rate of large ones.
_NARROW = 64
# The modules that have a rule, and the function of torch.nn.functional that each calls.
_RULES: dict[type, str] = {
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
}

# What the definition of a class sets in it, whatever it redefines.
_HARMLESS = {"__init__", *vars(type("Empty", (nn.Module,), {"__doc__": "", "__annotations__": {}}))}


def has_rule(module: nn.Module) -> bool:
    """Whether `module` is one of `_RULES` and runs torch's own code.

    A subclass has its base's rule if it redefines nothing of it but the constructor.
    """
    kind = _kind(module)
    if kind is None or not _runs_torch_code(module, kind):
        return False
    parameters = [p for p in module._parameters.values() if p is not None]
    if any(type(p) is not nn.Parameter or p.is_complex() for p in parameters):
        return False
    if isinstance(module, nn.Embedding):
        # These change the weight in the forward pass, or scale the gradient by batch statistics.
        return module.max_norm is None and not module.scale_grad_by_freq
    return True


def _kind(module: nn.Module) -> type | None:
    """The class of `_RULES` that `module` is, or inherits from without a change of what it does."""
    own: set[str] = set()
    for kind in type(module).__mro__:
        if kind in _RULES:
            used = {*dir(kind), *vars(module), *module._parameters, *NAMES}
            return kind if own.isdisjoint(used) else None
        own |= vars(kind).keys() - _HARMLESS
    return None


def _runs_torch_code(module: nn.Module, kind: type) -> bool:
    """Whether torch's own code, not a replacement of it, computes the module's result.

    A replacement may have the name and the `__module__` of the original, but not its file.
    """
    function = getattr(F, _RULES[kind])
    if not isinstance(function, BuiltinFunctionType) and _file(function) != F.__file__:
        return False
    names = ("forward", "_conv_forward") if isinstance(module, _CONV) else ("forward",)
    file = sys.modules[kind.__module__].__file__
    return not any(name in vars(module) or _file(getattr(kind, name)) != file for name in names)


def _file(function: Any) -> str | None:
    code = getattr(function, "__code__", None)
    return code and code.co_filename


def layer_for(
    module: nn.Module,
    x: Tensor,
    claim: tuple[bool, bool],
    traced: bool = False,
    reduced: int | None = None,
) -> "Layer":
    """The rule for one call of `module` on x; claim: weight and bias of `Layer`.

    reduced: if given, form the weight gradients at once, with this many bytes for the patches.
    """
    if isinstance(module, Use):
        return Broadcast(module, x, *claim, traced)
    if isinstance(module, _NORM):
        return Norm(module, x, *claim, traced)
    if isinstance(module, _TRANSPOSED):
        return Transposed(module, x, *claim, traced)
    if reduced is not None:
        return Reduced(module, x, *claim, traced, reduced)
    return Weighted(module, x, *claim, traced)


def can_be_reduced(module: nn.Module) -> bool:
    """Whether `layer_for` has a reduced form of `module`."""
    return isinstance(module, (nn.Linear, *_CONV))


class Layer(ABC):
    """One call of a layer on n samples: its input, and the gradients added output by output.

    weight, bias: whether these parameters belong to the kernel and are used by this call alone.
    """

    def __init__(self, module: nn.Module, x: Tensor, weight: bool, bias: bool, traced: bool):
        self.module, self.x, self.weight, self.bias, self.traced = module, x, weight, bias, traced
        self.gradients: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Add the gradients of the next outputs at this call's result, (outputs, n, …)."""
        self.gradients += gradients.unbind()

    def held_nbytes(self, result: int, itemsize: int) -> int:
        """Bytes held for each output after `add`; result: the bytes of the call's result."""
        return result

    @abstractmethod
    def contribute(self, other: "Layer", kernel: Tensor, workspace: int) -> None:
        """Add this layer's share to kernel (C, n, C, m), or (1, n, 1, m) if traced."""


class GradientRows(Layer):
    """Parameters whose gradients are given as rows: (C·n, R), or (n, C·R) if traced."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def contribute(self, other: Layer, kernel: Tensor, workspace: int) -> None:
        assert isinstance(other, GradientRows)
        other_rows = None if other is self else other.rows.to(kernel.dtype)
        add_product(kernel, self.rows.to(kernel.dtype), other_rows)


class Formed(Layer):
    """A layer whose parameter gradients are formed by `add`, (n, R) for each output."""

    def contribute(self, other: Layer, kernel: Tensor, workspace: int) -> None:
        rows = GradientRows(concatenated(self.gradients, self.traced))
        other_rows = (
            rows if other is self else GradientRows(concatenated(other.gradients, self.traced))
        )
        rows.contribute(other_rows, kernel, workspace)

    def held_nbytes(self, result: int, itemsize: int) -> int:
        return itemsize * sum(p.numel() for p in self.module.parameters(recurse=False))


class Norm(Formed):
    """LayerNorm, GroupNorm, BatchNorm in eval mode."""

    def add(self, gradients: Tensor) -> None:
        parts = []
        if self.weight:
            parts.append(self._reduce(gradients * self._normalised()))
        if self.bias:
            parts.append(self._reduce(gradients))
        super().add(torch.cat(parts, 2))

    def _reduce(self, z: Tensor) -> Tensor:
        """Sum z (C, n, …) over the positions that share a parameter, to (C, n, parameters)."""
        if isinstance(self.module, nn.LayerNorm):
            return z.reshape(*z.shape[:2], -1, prod(self.module.normalized_shape)).sum(2)
        return z.flatten(3).sum(3) if z.ndim > 3 else z

    def _normalised(self) -> Tensor:
        module = self.module
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(self.x, module.normalized_shape, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(self.x, module.num_groups, eps=module.eps)
        assert isinstance(module, _BATCH_NORM)
        return F.batch_norm(self.x, module.running_mean, module.running_var, eps=module.eps)


class Broadcast(Formed):
    """A parameter that is added to, or multiplied with, the samples' values."""

    def __init__(self, module: Use, x: Tensor, weight: bool, bias: bool, traced: bool):
        super().__init__(module, x, weight, bias, traced)
        self.samples = 1

    def add(self, gradients: Tensor) -> None:
        super().add(self._reduce(gradients))

    def _reduce(self, gradients: Tensor) -> Tensor:
        """Sum (C, n·k, …) over what shares an entry of the parameter, to (C, n, entries)."""
        use = self.module
        assert isinstance(use, Use)
        z = gradients * use.factor
        z = z.reshape(len(z), self.samples, -1, *z.shape[2:])
        shared = [i + 3 for i, size in enumerate(use.shape[1:]) if size == 1]
        return z.sum([2, *shared]).reshape(len(z), self.samples, -1)

    def is_by_sample(self, gradients: Tensor, weights: Tensor) -> bool:
        """Whether row n of each gradient that was added belongs to output n alone.

        gradients: of Σ_n weights[n] Σ_c f_c(x_n), over all outputs that were added, (1, n·k, …).
        Row n is then weights[n] times the sum of what was added.
        """
        expected = weights[:, None] * torch.stack(self.gradients).sum(0)
        return close(self._reduce(gradients)[0], expected)


class Weighted(Layer):
    """Linear, convolution or embedding: output gradients held as (n, L, O) for each output."""

    def __init__(self, module: nn.Module, x: Tensor, weight: bool, bias: bool, traced: bool):
        super().__init__(module, x, weight, bias, traced)
        self._whole: Tensor | None = None  # all gradients, if one call of `add` gave them
        self.groups = module.groups if isinstance(module, (*_CONV, *_TRANSPOSED)) else 1
        self.kernel_size = prod(module.kernel_size) if isinstance(module, _CONV) else 1
        if isinstance(module, (*_CONV, *_TRANSPOSED)):
            self.in_channels = module.in_channels // self.groups
        else:
            self.in_channels = module.weight.shape[-1] if isinstance(module, nn.Linear) else 1

    def add(self, gradients: Tensor) -> None:
        channels_last = gradients.movedim(2, -1) if isinstance(self.module, _CONV) else gradients
        c, n, *positions, channels = channels_last.shape
        rows = channels_last.reshape(c, n, prod(positions), channels)
        self._whole = None if self.gradients else rows
        super().add(rows)

    def contribute(self, other: Layer, kernel: Tensor, workspace: int) -> None:
        assert isinstance(other, Weighted)
        add_weighted(self, other, kernel, workspace)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Samples n, outputs C (1 if traced), positions L, channels O, features K."""
        n, length, channels = self.gradients[0].shape
        outputs = len(self.gradients)
        if self.traced:
            outputs, channels = 1, outputs * channels
        return n, outputs, length, channels, self.in_channels * self.kernel_size

    # The two factors, in the layouts that the three methods of `products` use.

    def gradients_by_output(self, dtype: torch.dtype) -> Tensor:
        """All D, (C, n, L, O)."""
        if self._whole is None:
            whole = (
                torch.cat(self.gradients, 2)[None] if self.traced else torch.stack(self.gradients)
            )
        else:
            traced = self.traced
            whole = self._whole.permute(1, 2, 0, 3).flatten(2)[None] if traced else self._whole
        return whole.to(dtype).contiguous()

    def gradients_by_sample(self, dtype: torch.dtype) -> Tensor:
        """All D, transposed: (n, C, O, L)."""
        gradients = [g.transpose(1, 2) for g in self.gradients]
        whole = torch.cat(gradients, 1)[:, None] if self.traced else torch.stack(gradients, 1)
        return whole.to(dtype, memory_format=torch.contiguous_format)

    def patches(self, samples: slice, channels: slice) -> Tensor:
        """P of these samples and input channels, (n, L, channels · kernel size)."""
        module, x = self.module, self.x[samples]
        if not isinstance(module, _CONV):
            return x.reshape(len(x), -1, x.shape[-1])[:, :, channels]
        x = x[:, channels]
        padding = module._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = F.pad(x, padding, mode=mode)
        settings = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
        positions = [(size - (k - 1) * gap - 1) // step + 1 for size, k, step, gap in settings]
        return _windows(x, module, positions).reshape(len(x), prod(positions), -1)

    def inputslices(self, nbytes: int, with_rows: bool = False) -> Iterator[slice]:
        """Slices of the input channels (whole groups) whose patches, and rows of J, fit in nbytes.

        with_rows: whether to count the rows of J.
        """
        n, length, channels = self.gradients[0].shape
        if with_rows:
            length = max(length, len(self.gradients) * channels // self.groups)
        channel = n * length * self.kernel_size * self.x.element_size()
        return slices(self.in_channels * self.groups, nbytes // max(channel, 1), self._unit)

    def outputslices(self, inputs: slice, nbytes: int) -> Iterator[slice]:
        """Slices of the output channels of these input channels, whose rows of J fit in nbytes."""
        n, _, channels = self.gradients[0].shape
        if self.groups > 1:
            share = channels // self.groups
            first, last = inputs.start // self.in_channels, inputs.stop // self.in_channels
            return iter([slice(first * share, last * share)])
        width = (inputs.stop - inputs.start) * self.kernel_size
        column = len(self.gradients) * n * width * self.x.element_size()
        return slices(channels, nbytes // max(column, 1), 1)

    @property
    def _unit(self) -> int:
        return self.in_channels if self.groups > 1 else 1

    def gradient_rows(
        self, patches: Tensor, part: slice, outputs: Sequence[int], buffer: Tensor
    ) -> Tensor:
        """J = PᵀD of one slice of the weight, in `buffer`, with a row for each (output, sample)."""
        n, length, _ = patches.shape
        groups = patches.shape[2] // (self.in_channels * self.kernel_size) if self.groups > 1 else 1
        by_group = patches.view(n, length, self.kernel_size, groups, -1).permute(0, 3, 2, 4, 1)
        by_group = by_group.reshape(n * groups, -1, length)
        channels = (part.stop - part.start) // groups
        count = len(outputs)
        chosen = [self.gradients[c][:, :, part].to(patches.dtype) for c in outputs]
        if count > 1 and channels < _NARROW:  # few columns: one product for all outputs is faster
            D = torch.stack(chosen, 2).view(n, length, count, groups, channels)
            D = D.permute(0, 3, 1, 2, 4).reshape(n * groups, length, count * channels)
            J = torch.bmm(D.transpose(1, 2), by_group.transpose(1, 2))
            rows = buffer.resize_(count, n * groups, channels, by_group.shape[1])
            rows.copy_(J.view(n * groups, count, channels, -1).transpose(0, 1))
            return rows.view(count * n, -1)
        rows = buffer.resize_(count, n * groups, by_group.shape[1], channels)
        for gradient, out in zip(chosen, rows, strict=True):
            gradient = gradient.view(n, length, groups, channels).transpose(1, 2)
            torch.bmm(by_group, gradient.reshape(n * groups, length, channels), out=out)
        return rows.view(count * n, -1)


class Transposed(Weighted):
    """Transposed convolution: windows of the output gradients held as (n, L, O · kernel size)."""

    def __init__(self, module: nn.Module, x: Tensor, weight: bool, bias: bool, traced: bool):
        super().__init__(module, x, weight, False, traced)
        self.with_bias = bias
        self.sums: list[Tensor] = []  # the gradients of the bias, (n, O) for each output

    def add(self, gradients: Tensor) -> None:
        module: Any = self.module
        positions = self.x.shape[2:]
        if self.with_bias:
            self.sums += gradients.flatten(3).sum(3).unbind()
        padding = [size for size in reversed(module.padding) for _ in "ab"]
        for gradient in gradients:
            windows = _windows(F.pad(gradient, padding), module, positions)
            # (n, …, kernel size, O): with groups, the channels of a group must lie together.
            windows = windows.movedim(-1, len(positions) + 1)
            self.gradients.append(windows.reshape(len(windows), prod(positions), -1))

    def patches(self, samples: slice, channels: slice) -> Tensor:
        return self.x[samples, channels].flatten(2).transpose(1, 2).contiguous()

    def held_nbytes(self, result: int, itemsize: int) -> int:
        _, channels, *kernel = self.module.get_parameter("weight").shape
        return prod(self.x.shape[2:]) * channels * self.groups * prod(kernel) * itemsize

    def contribute(self, other: Layer, kernel: Tensor, workspace: int) -> None:
        assert isinstance(other, Transposed)
        if self.weight:
            super().contribute(other, kernel, workspace)
        if self.with_bias:
            rows = GradientRows(concatenated(self.sums, self.traced))
            other_rows = (
                rows if other is self else GradientRows(concatenated(other.sums, self.traced))
            )
            rows.contribute(other_rows, kernel, workspace)


def _windows(x: Tensor, module: nn.Module, positions: Sequence[int]) -> Tensor:
    """The windows of x (n, channels, …) under a kernel, (n, *positions, *kernel, channels)."""
    assert isinstance(module, (*_CONV, *_TRANSPOSED))
    strides = x.stride()[2:]
    steps = [s * step for s, step in zip(strides, module.stride, strict=True)]
    gaps = [s * gap for s, gap in zip(strides, module.dilation, strict=True)]
    return x.as_strided(
        (len(x), *positions, *module.kernel_size, x.shape[1]),
        (x.stride(0), *steps, *gaps, x.stride(1)),
        x.storage_offset(),
    )


class Reduced(Formed):
    """Linear or convolution whose weight gradients are formed at once, to save memory.

    For layers with fewer weights than results.
    """

    def __init__(
        self, module: nn.Module, x: Tensor, weight: bool, bias: bool, traced: bool, nbytes: int
    ):
        super().__init__(module, x, weight, bias, traced)
        self.nbytes = nbytes

    def add(self, gradients: Tensor) -> None:
        for gradient in gradients.split(1):
            one = Weighted(self.module, self.x, self.weight, self.bias, False)
            one.add(gradient)
            parts = []
            for inputs in one.inputslices(self.nbytes, with_rows=True) if self.weight else ():
                patches = one.patches(slice(None), inputs)
                for part in one.outputslices(inputs, self.nbytes):
                    parts.append(one.gradient_rows(patches, part, [0], self.x.new_empty(0)))
            if self.bias:
                parts.append(one.gradients[0].sum(1))
            self.gradients.append(torch.cat([p.to(gradient.dtype) for p in parts], 1))
