"""Crop and flip: the standard augmentation of small images, a batch at a time on the device.

Each image is mirrored with probability 1/2 and moved by up to 4 pixels each way; pixels from
outside are 0, which after normalisation is the mean colour (He, Zhang, Ren, Sun 2016).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lnsim import streams

REACH = 4
"""The largest move, in pixels."""


def moves_of(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The crop and flip of each word, for words (...): (..., 3), first row, first column, mirrored.

    The first row is ((w >> 32) 9) >> 32, the first column the same of the low half of w, both in
    0 ... 8 with 4 for no move; mirrored is the lowest bit of w.
    """
    places = 2 * REACH + 1
    high, low = words, words << np.uint64(32)
    mirrored = (words & np.uint64(1)).astype(np.int64)
    return np.stack(
        [streams.sample_index(high, places), streams.sample_index(low, places), mirrored], axis=-1
    )


def crop_and_flip(x: Tensor, moves: Tensor) -> Tensor:
    """The images x : (B, C, H, W) cropped and flipped by `moves` : (B, 3), in the same shape."""
    height, width = x.shape[2:]
    rows = moves[:, :1] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(len(x), -1)
    columns = moves[:, 1:2] + torch.where(moves[:, 2:] == 1, columns.flip(1), columns)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, [REACH] * 4).permute(0, 2, 3, 1)
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
