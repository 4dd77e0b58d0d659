"""CIFAR-10 by torchvision, which downloads it once, with a progress bar, and checks its sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10


def cifar10(root: str) -> tuple[Any, Any, Any, Any]:
    """All of CIFAR-10 below the folder `root`, as lnsim.images.data.Images has it.

    That is 50,000 images (32, 32, 3) uint8 and their labels, and 10,000 for the test.

    Raises ValueError where it cannot be downloaded, or what is there fails its checksum.
    """
    try:
        train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"CIFAR-10 cannot be had below {root!r}: {error}; data=FILE.npz reads a file"
        ) from error
    return train.data, np.array(train.targets), test.data, np.array(test.targets)
