"""Labelled images on a device: stored in their own dtype (uint8), normalised batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lnsim.base import checks
from lnsim.images.data import CLASSES, Images, checked
from lnsim_torch.devices import check_device

NORMALIZATIONS = ("channel", "global")


@dataclass(frozen=True)
class Samples:
    """One set.  images : (N, H, W, channels) or (N, pixels), targets : (N,) int64 on the device.

    labels : (N,) are the targets on the host.  mean and scale (1 / standard deviation) have the
    shape of an image, which makes them faster to apply.
    """

    images: Tensor
    targets: Tensor
    labels: NDArray[np.int64]
    mean: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, chosen: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """The `chosen` images as network input, normalised: (B, channels, H, W) or (B, pixels)."""
        # On the CPU index_select is ten times as fast as indexing with a tensor.
        if isinstance(chosen, Tensor):
            x = self.images.index_select(0, chosen)
        else:
            x = self.images[chosen]
        # Computed in float32 at least, and rounded to a type of lower precision at the end.
        wide = torch.promote_types(dtype, torch.float32)
        x = (x - self.mean.to(wide)).to(wide).mul_(self.scale.to(wide)).to(dtype)
        # The channels stay last in memory, as cuDNN's fast kernels prefer.
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x

    def spaced(self, count: int) -> Samples:
        """`count` evenly spaced samples; all for 0."""
        if count == 0 or count >= len(self):
            return self
        chosen = np.arange(count) * len(self) // count
        index = torch.from_numpy(chosen).to(self.targets.device)
        return replace(
            self, images=self.images[index], targets=self.targets[index], labels=self.labels[chosen]
        )


@dataclass(frozen=True)
class Data:
    """A training and a test set on one device, of `classes` classes."""

    train: Samples
    test: Samples
    classes: int

    @property
    def device(self) -> torch.device:
        return self.train.images.device


def place(
    images: Images, device: str = "cpu", *, normalization: str = "channel", classes: int = CLASSES
) -> Data:
    """The images on `device`, normalised when they are used.  Several runs can share the result.

    `normalization`: "channel" uses the training set's mean and standard deviation of each channel
    for both sets; "global" uses one mean and deviation of all pixels for each set (the released
    notebook).  `images` may be four lists.  Raises ValueError for a device that is not available,
    and for arrays that are no images of `classes` classes.
    """
    check_device(device)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    images = checked(*Images(*images), source="images", classes=classes)
    statistics = [_statistics(images.train_images, normalization)]
    statistics.append(
        statistics[0] if normalization == "channel" else _statistics(images.test_images, "global")
    )
    train, test = (
        Samples(
            torch.tensor(pixels, device=device),
            torch.tensor(labels, device=device),
            labels,
            *(torch.tensor(np.broadcast_to(v, pixels.shape[1:]), device=device) for v in numbers),
        )
        for pixels, labels, numbers in zip(images[::2], images[1::2], statistics, strict=True)
    )
    return Data(train, test, classes)


def _statistics(pixels: NDArray[Any], normalization: str) -> tuple[NDArray[np.float64], ...]:
    """Mean and 1 / standard deviation of each channel, the last axis, or of all pixels."""
    if normalization == "channel" and pixels.ndim == 4:
        pixels = pixels.reshape(-1, pixels.shape[-1])
        mean, deviation = pixels.mean(0, dtype=np.float64), pixels.std(0, dtype=np.float64)
    else:
        mean, deviation = np.mean(pixels, dtype=np.float64), np.std(pixels, dtype=np.float64)
    # A constant channel is 0 once its mean is subtracted.
    return np.asarray(mean), 1.0 / np.where(deviation > 0, deviation, 1.0)
