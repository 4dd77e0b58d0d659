"""The product of two sides of a weighted layer, by the cheapest of three methods.

With patches P_n (L × K) and output gradients D_nc (L × O), see `layers`, the kernel

    Θ[nc, mc'] = Σ_ll' A_nm[l, l'] E_nc,mc'[l, l'],   A_nm = P_n P_mᵀ (+ 1),  E_nc,mc' = D_nc D_mc'ᵀ

is computed by

    blocks    the gradients D_ncᵀ P_n, one slice of the weight at a time, then J Jᵀ;
    apply     A_nm, then ⟨A_nm D_mc', D_nc⟩;
    hadamard  A ∘ E, which for L = 1 is the familiar (X Xᵀ + 1) ∘ (D Dᵀ).

Blocks is cheapest for many positions and few weights, at the network's beginning; apply for few
positions and many weights, at its end. The cost of a method counts floating point operations and
bytes written. A kernel block is (C, n, C, m); if both sides are the same, little more than half of
it is computed, and mirrored.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# The cost of writing one byte, in floating point operations.
_FLOPS_PER_BYTE = 10
# A symmetric product of fewer multiplications is not worth dividing into parts.
_SMALL = 10**8
# Intermediate products are computed in pieces of this many bytes, which stay in the cache.
_PIECE = 4 * 2**20


class Side(Protocol):
    """The interface of one side of a product; layers.Weighted implements and documents it."""

    module: nn.Module
    x: Tensor
    weight: bool
    bias: bool
    traced: bool
    groups: int
    gradients: list[Tensor]

    @property
    def shape(self) -> tuple[int, int, int, int, int]: ...

    def gradients_by_output(self, dtype: torch.dtype) -> Tensor: ...

    def gradients_by_sample(self, dtype: torch.dtype) -> Tensor: ...

    def patches(self, samples: slice, channels: slice) -> Tensor: ...

    def inputslices(self, nbytes: int, with_rows: bool = False) -> Iterator[slice]: ...

    def outputslices(self, inputs: slice, nbytes: int) -> Iterator[slice]: ...

    def gradient_rows(
        self, patches: Tensor, part: slice, outputs: Sequence[int], buffer: Tensor
    ) -> Tensor: ...


def add_weighted(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Add the share of one layer, with sides a and b, to kernel (C, n, C, m); b may be a."""
    methods = [_blocks]
    if a.weight and a.groups == 1:
        methods = [_apply, _hadamard] if isinstance(a.module, nn.Embedding) else [*_COSTS]
    min(methods, key=lambda method: _COSTS[method](a, b))(a, b, kernel, workspace)


def _cost_of_blocks(a: Side, b: Side) -> float:
    n, c, length, o, k = a.shape
    m = 0 if b is a else b.shape[0]
    form = 2 * (n + m) * c * o * k * length
    multiply = 2 * n * c * c * o * k * (m if m else 0.6 * n)
    return form + multiply + _cost_of_writing(a, (n + m) * (c * o + length) * k)


def _cost_of_gram(a: Side, b: Side) -> float:
    n, _, length, _, k = a.shape
    pairs = _pairs(a, b)
    return 2 * pairs * k + _cost_of_writing(a, pairs + n * length * k)


def _cost_of_apply(a: Side, b: Side) -> float:
    _, c, length, o, _ = a.shape
    pairs = _pairs(a, b)
    flops = 2 * pairs * c * o + 2 * pairs / b.shape[2] * c * c * o
    return _cost_of_gram(a, b) + flops + _cost_of_writing(a, 2 * pairs / length * c * o)


def _cost_of_hadamard(a: Side, b: Side) -> float:
    _, c, _, o, _ = a.shape
    pairs = _pairs(a, b)
    return _cost_of_gram(a, b) + 2 * pairs * c * c * o + _cost_of_writing(a, pairs * c * c)


def _pairs(a: Side, b: Side) -> float:
    """The number of entries of A that are computed."""
    n, _, length, _, _ = a.shape
    m, _, length2, _, _ = b.shape
    return n * length * m * length2 * (0.6 if b is a else 1.0)


def _cost_of_writing(a: Side, elements: float) -> float:
    return _FLOPS_PER_BYTE * a.x.element_size() * elements


def _gram(a: Side, b: Side, rows: slice, columns: slice, dtype: torch.dtype, nbytes: int) -> Tensor:
    """A (+ 1 for the bias) of these samples, (n, L, m, L')."""
    if isinstance(a.module, nn.Embedding):
        index, index2 = a.x[rows].flatten(1), b.x[columns].flatten(1)
        gram = index[:, :, None, None] == index2
        if a.module.padding_idx is not None:
            gram &= index2 != a.module.padding_idx
        return gram.to(dtype)
    total = None
    for channels in a.inputslices(nbytes):
        P, P2 = a.patches(rows, channels), b.patches(columns, channels)
        shape = (*P.shape[:2], *P2.shape[:2])
        P, P2 = P.flatten(0, 1).to(dtype), P2.flatten(0, 1).to(dtype)
        if total is None:
            total = P @ P2.T
        else:
            total.addmm_(P, P2.T)
    assert total is not None
    return (total.add_(1) if a.bias else total).view(shape)


def _apply(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ[nc, mc'] = ⟨D_nc, A_nm D_mc'⟩."""
    D = a.gradients_by_sample(kernel.dtype)
    D2 = D if b is a else b.gradients_by_sample(kernel.dtype)
    n, c, o, length = D.shape
    m, _, _, length2 = D2.shape
    size = D.element_size()
    block = _clip(workspace // (4 * m * length * length2 * size), 1, -(-n // 8))
    run = _clip(_PIECE // (c * o * length * size), 1, m)
    for first in range(0, n, block):
        rows = slice(first, min(first + block, n))
        start = first if b is a else 0
        gram = _gram(a, b, rows, slice(start, m), kernel.dtype, workspace // 4)
        for i in range(rows.start, rows.stop):
            for j in range(i if b is a else 0, m, run):
                columns = slice(j, min(j + run, m))
                part = gram[i - first, :, j - start : columns.stop - start].permute(1, 2, 0)
                applied = D2[columns].flatten(1, 2) @ part.contiguous()  # (run, C·O, L)
                product = D[i].view(c, -1) @ applied.view(-1, o * length).T
                product = product.view(c, -1, c)  # (C of i, run, C of j)
                kernel[:, i, :, columns] += product.transpose(1, 2)
                if b is a:
                    skip = 1 if j == i else 0  # the diagonal is its own mirror image
                    kernel[:, j + skip : columns.stop, :, i] += product[:, skip:].permute(2, 1, 0)


def _hadamard(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ[nc, mc'] = Σ_ll' A_nm[l, l'] (D_nc D_mc'ᵀ)[l, l']."""
    D = a.gradients_by_output(kernel.dtype)
    D2 = D if b is a else b.gradients_by_output(kernel.dtype)
    c, n, length, o = D.shape
    _, m, length2, _ = D2.shape
    size, share = D.element_size(), workspace // 4
    row = m * length * length2 * c * c
    worth_halving = b is a and n * row * o > _SMALL
    block = _clip(share // (row * size), 1, -(-n // 4) if worth_halving else n)
    whole = None
    if n * length * m * length2 * size <= share:  # one product is faster than its parts
        whole = _gram(a, b, slice(0, n), slice(0, m), kernel.dtype, share)
    for first in range(0, n, block):
        rows = slice(first, min(first + block, n))
        columns = slice(first if b is a else 0, m)
        if whole is None:
            gram = _gram(a, b, rows, columns, kernel.dtype, share)
        else:
            gram = whole[rows, :, columns]
        products = D[:, rows].reshape(-1, o) @ D2[:, columns].reshape(-1, o).T
        products = products.view(c, -1, length, c, m - columns.start, length2)
        products *= gram[:, :, None]
        part = products.sum((2, 5)) if length * length2 > 1 else products[:, :, 0, :, :, 0]
        kernel[:, rows, :, columns] += part
        if b is a:
            below = slice(rows.stop, n)
            kernel[:, below, :, rows] += part[..., rows.stop - first :].permute(2, 3, 0, 1)


def _blocks(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ = J Jᵀ, with J = DᵀP formed for one slice of the weight at a time."""
    outputs = range(len(a.gradients))
    everything = slice(None)
    share = workspace // (2 if b is a else 4)
    # Reused: page faults of new memory would take a tenth of the time.
    buffer, buffer2 = kernel.new_empty(0), kernel.new_empty(0)
    for inputs in a.inputslices(share, with_rows=True) if a.weight else ():
        patches = a.patches(everything, inputs).to(kernel.dtype)
        patches2 = patches if b is a else b.patches(everything, inputs).to(kernel.dtype)
        for part in a.outputslices(inputs, share):
            J = a.gradient_rows(patches, part, outputs, buffer)
            J2 = None if b is a else b.gradient_rows(patches2, part, outputs, buffer2)
            if a.traced:  # each output adds its own product
                for i in outputs:
                    add_product(kernel, _rows_of(J, i, outputs), _rows_of(J2, i, outputs))
            else:
                add_product(kernel, J, J2)
    if a.bias:
        sums = [g.to(kernel.dtype).sum(1) for g in a.gradients]
        sums2 = sums if b is a else [g.to(kernel.dtype).sum(1) for g in b.gradients]
        rows = concatenated(sums, a.traced)
        add_product(kernel, rows, None if b is a else concatenated(sums2, a.traced))


def _rows_of(J: Any, output: int, outputs: Sequence[int]) -> Any:
    """The rows of J that belong to one of the outputs."""
    return None if J is None else J.view(len(outputs), -1, J.shape[1])[output]


_COSTS = {_blocks: _cost_of_blocks, _apply: _cost_of_apply, _hadamard: _cost_of_hadamard}


def add_product(kernel: Tensor, J: Tensor, J2: Tensor | None) -> None:
    """Add J J'ᵀ to the kernel; without J', add J Jᵀ at little more than half the cost."""
    flat = kernel.view(len(J), -1)
    if J2 is not None:
        flat.addmm_(J, J2.T)
        return
    for rows in slices(len(J), -(-len(J) // 6), 64):
        part = J[rows] @ J[rows.start :].T
        flat[rows, rows.start :] += part
        flat[rows.stop :, rows] += part[:, rows.stop - rows.start :].T


def concatenated(gradients: list[Tensor], traced: bool) -> Tensor:
    """Per-output gradients (n, R) as rows (C·n, R), or as one row per sample (n, C·R) if traced."""
    return torch.cat(gradients, 1 if traced else 0)


def slices(total: int, run: int, unit: int) -> Iterator[slice]:
    """Divide range(total) into slices of about `run`, in whole units, at least one unit each."""
    run = max(1, run // unit) * unit
    return (slice(i, min(i + run, total)) for i in range(0, total, run))


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
