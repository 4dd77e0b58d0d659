"""The product of two sides of a weighted layer, in whichever of three ways is cheapest.

With patches P_n (L × K) and output gradients D_nc (L × O), see `layers`, the kernel

    Θ[nc, mc'] = Σ_ll' A_nm[l, l'] E_nc,mc'[l, l'],   A_nm = P_n P_mᵀ (+ 1),  E_nc,mc' = D_nc D_mc'ᵀ

is had from

    blocks    the gradients D_ncᵀ P_n, one slice of the weight at a time, then J Jᵀ;
    apply     A_nm, then ⟨A_nm D_mc', D_nc⟩;
    hadamard  A ∘ E, which for L = 1 is the familiar (X Xᵀ + 1) ∘ (D Dᵀ).

Blocks wins where there are many positions and few weights, at the network's beginning; apply where
there are few positions and many weights, at its end. The price of a way is its floating point
operations, and its bytes written. A kernel block is (C, n, C, m); when both sides are one, little
more than half of it is computed, and mirrored.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

# What writing one byte costs in floating point operations.
_FLOPS_PER_BYTE = 10
# Below as many multiplications, a symmetric product is not worth taking in parts.
_SMALL = 10**8
# Intermediate products are made in pieces of this many bytes, to be read again from cache.
_PIECE = 4 * 2**20


class Side(Protocol):
    """What a product asks of one side: layers.Weighted, which says what each is."""

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
    """Add to kernel (C, n, C, m) what sides a and b of one layer contribute; b may be a."""
    ways = [_blocks]
    if a.weight and a.groups == 1:
        ways = [_apply, _hadamard] if isinstance(a.module, nn.Embedding) else [*_COSTS]
    min(ways, key=lambda way: _COSTS[way](a, b))(a, b, kernel, workspace)


def _cost_of_blocks(a: Side, b: Side) -> float:
    n, c, length, o, k = a.shape
    m = 0 if b is a else b.shape[0]
    form = 2 * (n + m) * c * o * k * length
    multiply = 2 * n * c * c * o * k * (m if m else 0.6 * n)
    return form + multiply + _price(a, (n + m) * (c * o + length) * k)


def _cost_of_gram(a: Side, b: Side) -> float:
    n, _, length, _, k = a.shape
    pairs = _pairs(a, b)
    return 2 * pairs * k + _price(a, pairs + n * length * k)


def _cost_of_apply(a: Side, b: Side) -> float:
    _, c, length, o, _ = a.shape
    pairs = _pairs(a, b)
    flops = 2 * pairs * c * o + 2 * pairs / b.shape[2] * c * c * o
    return _cost_of_gram(a, b) + flops + _price(a, 2 * pairs / length * c * o)


def _cost_of_hadamard(a: Side, b: Side) -> float:
    _, c, _, o, _ = a.shape
    pairs = _pairs(a, b)
    return _cost_of_gram(a, b) + 2 * pairs * c * c * o + _price(a, pairs * c * c)


def _pairs(a: Side, b: Side) -> float:
    """Entries of A that are computed."""
    n, _, length, _, _ = a.shape
    m, _, length2, _, _ = b.shape
    return n * length * m * length2 * (0.6 if b is a else 1.0)


def _price(a: Side, elements: float) -> float:
    """The price of writing this many elements."""
    return _FLOPS_PER_BYTE * a.x.element_size() * elements


def _gram(a: Side, b: Side, rows: slice, columns: slice, dtype: torch.dtype, nbytes: int) -> Tensor:
    """A (+ 1 for the bias) of the samples named, (n, L, m, L')."""
    if isinstance(a.module, nn.Embedding):
        mine = a.x[rows].flatten(1)
        theirs = b.x[columns].flatten(1)
        gram = mine[:, :, None, None] == theirs
        if a.module.padding_idx is not None:
            gram &= theirs != a.module.padding_idx
        return gram.to(dtype)
    total = None
    for channels in a.inputslices(nbytes):
        mine, theirs = a.patches(rows, channels), b.patches(columns, channels)
        shape = (*mine.shape[:2], *theirs.shape[:2])
        mine, theirs = mine.flatten(0, 1).to(dtype), theirs.flatten(0, 1).to(dtype)
        if total is None:
            total = mine @ theirs.T
        else:
            total.addmm_(mine, theirs.T)
    assert total is not None
    return (total.add_(1) if a.bias else total).view(shape)


def _apply(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ[nc, mc'] = ⟨D_nc, A_nm D_mc'⟩."""
    mine = a.gradients_by_sample(kernel.dtype)
    theirs = mine if b is a else b.gradients_by_sample(kernel.dtype)
    n, c, o, length = mine.shape
    m, _, _, length2 = theirs.shape
    size = mine.element_size()
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
                applied = theirs[columns].flatten(1, 2) @ part.contiguous()  # (run, C·O, L)
                product = mine[i].view(c, -1) @ applied.view(-1, o * length).T
                product = product.view(c, -1, c)  # (C of i, run, C of j)
                kernel[:, i, :, columns] += product.transpose(1, 2)
                if b is a:
                    skip = 1 if j == i else 0  # the diagonal is its own mirror image
                    kernel[:, j + skip : columns.stop, :, i] += product[:, skip:].permute(2, 1, 0)


def _hadamard(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ[nc, mc'] = Σ_ll' A_nm[l, l'] (D_nc D_mc'ᵀ)[l, l']."""
    mine = a.gradients_by_output(kernel.dtype)
    theirs = mine if b is a else b.gradients_by_output(kernel.dtype)
    c, n, length, o = mine.shape
    _, m, length2, _ = theirs.shape
    size, share = mine.element_size(), workspace // 4
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
        products = mine[:, rows].reshape(-1, o) @ theirs[:, columns].reshape(-1, o).T
        products = products.view(c, -1, length, c, m - columns.start, length2)
        products *= gram[:, :, None]
        part = products.sum((2, 5)) if length * length2 > 1 else products[:, :, 0, :, :, 0]
        kernel[:, rows, :, columns] += part
        if b is a:
            below = slice(rows.stop, n)
            kernel[:, below, :, rows] += part[..., rows.stop - first :].permute(2, 3, 0, 1)


def _blocks(a: Side, b: Side, kernel: Tensor, workspace: int) -> None:
    """Θ = J Jᵀ, with J = DᵀP made for one slice of the weight at a time."""
    # Traced, each output adds J Jᵀ of its own; else one J holds the rows of all outputs.
    batches = [[c] for c in range(len(a.gradients))] if a.traced else [range(len(a.gradients))]
    everything = slice(None)
    share = workspace // (2 if b is a else 4)
    # Written over and over: fresh memory would cost page faults, a tenth of the time.
    buffer, buffer2 = kernel.new_empty(0), kernel.new_empty(0)
    for inputs in a.inputslices(share, with_rows=True) if a.weight else ():
        patches = a.patches(everything, inputs).to(kernel.dtype)
        patches2 = patches if b is a else b.patches(everything, inputs).to(kernel.dtype)
        for part in a.outputslices(inputs, share):
            for outputs in batches:
                mine = a.gradient_rows(patches, part, outputs, buffer)
                theirs = None if b is a else b.gradient_rows(patches2, part, outputs, buffer2)
                add_product(kernel, mine, theirs)
    if a.bias:
        sums = [g.to(kernel.dtype).sum(1) for g in a.gradients]
        sums2 = sums if b is a else [g.to(kernel.dtype).sum(1) for g in b.gradients]
        rows = joined(sums, a.traced)
        add_product(kernel, rows, None if b is a else joined(sums2, a.traced))


_COSTS = {_blocks: _cost_of_blocks, _apply: _cost_of_apply, _hadamard: _cost_of_hadamard}


def add_product(kernel: Tensor, mine: Tensor, theirs: Tensor | None) -> None:
    """Add J J'ᵀ; without J', J Jᵀ at little more than half the price."""
    flat = kernel.view(len(mine), -1)
    if theirs is not None:
        flat.addmm_(mine, theirs.T)
        return
    for rows in slices(len(mine), -(-len(mine) // 6), 64):
        part = mine[rows] @ mine[rows.start :].T
        flat[rows, rows.start :] += part
        flat[rows.stop :, rows] += part[:, rows.stop - rows.start :].T


def joined(gradients: list[Tensor], traced: bool) -> Tensor:
    """Per-output gradients (n, R) as rows (C·n, R), or as one row a sample (n, C·R) if traced."""
    return torch.cat(gradients, 1 if traced else 0)


def slices(total: int, run: int, unit: int) -> Iterator[slice]:
    """Cut range(total) into runs of about `run`, whole units, at least one unit."""
    run = max(1, run // unit) * unit
    return (slice(i, min(i + run, total)) for i in range(0, total, run))


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
