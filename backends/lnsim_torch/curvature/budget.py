"""How many samples a computation can take at a time within a number of bytes.

The bytes of a computation on B samples are b_0 + B b_1: vectors as long as the parameters, and for
each sample its activations.  Both are measured, on one and on two samples, by a mode that sees the
result of every operation and asks which of them are still alive.  It holds on any device and inside
torch.func's transforms.  It does not see what a library takes inside one operation, such as cuDNN's
workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from lnsim_torch.watching import Watching


class Need(NamedTuple):
    """The bytes of a computation on one sample, and those of every further one."""

    one: int
    each: int

    def samples(self, memory: int, most: int) -> int:
        """The largest number of samples, at most `most`, that take at most `memory` bytes."""
        return most if self.each <= 0 else max(1, min(most, 1 + (memory - self.one) // self.each))


def need_of(compute: Callable[[int], object], samples: int, memory: int) -> Need:
    """The bytes of compute(B) for B <= `samples`.

    Raises ValueError, naming a sufficient number of bytes, if one sample takes more than `memory`.
    """
    one = peak_bytes(lambda: compute(1))
    if one > memory:
        raise ValueError(
            f"memory must be at least {one} bytes for a product with one sample, got {memory}"
        )
    return Need(one, 0 if samples == 1 else peak_bytes(lambda: compute(2)) - one)


def peak_bytes(compute: Callable[[], object]) -> int:
    """The largest number of bytes that results of operations in `compute` hold at a time."""
    with _Living() as living:
        compute()
    return living.peak


class _Living(Watching):
    """Counts the bytes of the storages that operations make while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = 0  # of _storages, dead ones that were not yet noticed among them

    def after(self, func: Any, result: Any) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._add(tensor.untyped_storage())
        if self._bytes > self.peak:
            self._forget_the_dead()
            self.peak = max(self.peak, self._bytes)

    def _add(self, storage: torch.UntypedStorage) -> None:
        # A weak reference keeps the address taken, so a known address is the same storage.
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self._bytes += storage.nbytes()

    def _forget_the_dead(self) -> None:
        dead = [key for key, (reference, _) in self._storages.items() if reference.expired()]
        for key in dead:
            self._bytes -= self._storages.pop(key)[1]
