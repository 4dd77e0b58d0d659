"""The random draws of each training step: its samples, their labels, noise, crops and flips.

Every draw is addressable, as in lnsim/streams.py.  An epoch is one pass over all n samples in an
order from numpy.random.default_rng([seed, 8, epoch]); the full batch keeps the order 0 ... n-1, so
that its draw t n + j is sample j at step t.  Draw k of the run uses word k of three streams of the
seed:

    Philox(key=[seed, 0])    its label (lnsim.dynamics.flips.py)
    Philox(key=[seed, 1])    the noise of its targets: entry c is +1 where bit c is 1, else -1
    Philox(key=[seed, 2])    its crop and flip (augment.py)

So labels are drawn afresh whenever a sample is drawn, runs of one seed use the same orders and
words for every tau, and a resumed run needs only its step.
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
from lnsim_torch.training.augment import moves_of

_ORDER = 8
"""A purpose of numpy.random.default_rng([seed, purpose, ...]); networks.py has 7."""

_STREAMS = 3

_AT_ONCE = 4096
"""Samples drawn at once, in whole epochs: a small training set has short steps."""

MOST_CLASSES = 64
"""The number of target entries that one word has signs for."""


class Batch(NamedTuple):
    """One step's draws, on the device.  samples, labels : (B,) int64.

    signs : (B, C) of +-1 and moves : (B, 3), or None if not asked for.
    """

    samples: Tensor
    labels: Tensor
    signs: Tensor | None
    moves: Tensor | None

    def part(self, chosen: slice | tuple[int, slice]) -> Batch:
        """The draws at the indices `chosen`."""
        signs = None if self.signs is None else self.signs[chosen]
        moves = None if self.moves is None else self.moves[chosen]
        return Batch(self.samples[chosen], self.labels[chosen], signs, moves)


def batches(
    labels: NDArray[np.int64],
    classes: int,
    *,
    size: int,
    seed: int,
    tau: float,
    flip: str,
    signs: bool,
    moves: bool,
    step: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yields the batches of steps `step`, `step` + 1, ... without end, for true `labels` : (n,).

    A batch has `size` samples (0: all), the last one of an epoch the remainder; an epoch takes
    every sample once.  signs, moves: whether to draw them.  For the other arguments see
    training.Recipe.
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
            _send(moves_of(of_moves), device) if moves else None,
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
    """Starts to copy the array to the device; the host does not wait for it."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
