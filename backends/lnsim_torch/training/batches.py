"""What each step of training draws: which samples, with which labels, noise and moves.

All of it is addressable, as in lnsim/streams.py.  A run draws samples one after the other, an epoch
being one pass over all n in an order of its own, from numpy.random.default_rng([seed, 8, epoch]);
the full batch keeps the order 0 ... n-1, so that its draw t n + j is sample j at step t.  Draw k of
the run has word k of three streams of the seed:

    Philox(key=[seed, 0])    its label (lnsim.dynamics.flips.py)
    Philox(key=[seed, 1])    the noise of its targets: entry c is +1 where bit c is 1, else -1
    Philox(key=[seed, 2])    its crop and flip (augment.py)

So labels are drawn afresh whenever a sample is drawn, runs of one seed see the same orders and the
same words whatever their tau, and a resumed run needs nothing but its step.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnsim.dynamics.flips import flip_labels
from lnsim.streams import WordStream
from lnsim_torch.training.augment import moves

_ORDER = 8
"""A purpose of numpy.random.default_rng([seed, purpose, ...]); networks.py has 7."""

_STREAMS = 3

_AT_ONCE = 4096
"""Draws that are made together, as far as they are whole epochs: a step of a small set is short."""

MOST_CLASSES = 64
"""Target entries that one word has signs for."""


class Batch(NamedTuple):
    """One step's draws, on the device.  samples, labels : (B,) int64.

    signs : (B, C) of +-1 and moved : (B, 3), or None where they were not asked for.
    """

    samples: Tensor
    labels: Tensor
    signs: Tensor | None
    moved: Tensor | None

    def part(self, chosen: slice | tuple[int, slice]) -> Batch:
        """Some of the draws."""
        signs = None if self.signs is None else self.signs[chosen]
        moved = None if self.moved is None else self.moved[chosen]
        return Batch(self.samples[chosen], self.labels[chosen], signs, moved)


def batches(
    labels: NDArray[np.int64],
    classes: int,
    *,
    size: int,
    seed: int,
    tau: float,
    flip: str,
    signs: bool,
    moved: bool,
    step: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches of steps `step`, `step` + 1, ..., without end; true `labels` : (n,).

    `size` samples each (0: all), none twice in an epoch, of which the last batch has what is left.
    The other arguments: training.Plan.
    """
    n = len(labels)
    size = size or n
    first, start = divmod(step * size, -(-n // size) * size)
    together = max(1, _AT_ONCE // n)
    words = WordStream(seed, _STREAMS, first * n)
    for epoch in count(first, together):
        orders = np.stack([_order(seed, e, n, size) for e in range(epoch, epoch + together)])
        of_labels, of_signs, of_moves = words.take(together * n).reshape(_STREAMS, together, n)
        draws = Batch(
            _send(orders, device),
            _send(flip_labels(labels[orders], of_labels, tau, flip, classes), device),
            _send(_signs(of_signs, classes), device) if signs else None,
            _send(moves(of_moves), device) if moved else None,
        )
        for e in range(together):
            for begin in range(start, n, size):
                yield draws.part((e, slice(begin, begin + size)))
            start = 0


def _order(seed: int, epoch: int, n: int, size: int) -> NDArray[np.int64]:
    if size >= n:
        return np.arange(n)
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(n)


def _signs(words: NDArray[np.uint64], classes: int) -> NDArray[np.float32]:
    bits = (words[..., None] >> np.arange(classes, dtype=np.uint64)) & np.uint64(1)
    return np.where(bits == 1, np.float32(1), np.float32(-1))


def _send(array: NDArray[np.generic], device: torch.device | str) -> Tensor:
    """The array on the device, on its way while the host goes on."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
