"""CIFAR-10 by torchvision, which downloads it once, with a progress bar, and checks its sums."""

from __future__ import annotations

import numpy as np
from torchvision.datasets import CIFAR10

from lnsim.images.data import Images, checked


def cifar10(root: str) -> Images:
    """All of CIFAR-10 below the folder `root`: 50,000 and 10,000 images (32, 32, 3) uint8.

    Raises ValueError where it cannot be downloaded, or what is there fails its checksum.
    """
    try:
        train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"CIFAR-10 cannot be had below {root!r}: {error}; data=FILE.npz reads a file"
        ) from error
    return checked(
        train.data, np.array(train.targets), test.data, np.array(test.targets), source="CIFAR-10"
    )
