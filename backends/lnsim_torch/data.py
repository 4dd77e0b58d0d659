"""CIFAR-10 by torchvision, which downloads it once, with a progress bar, and verifies checksums."""

from __future__ import annotations

from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10


def cifar10(root: str) -> tuple[Any, Any, Any, Any]:
    """All of CIFAR-10 from the folder `root`, in the order of lnsim.images.data.Images.

    That is 50,000 training and 10,000 test images (32, 32, 3) uint8, with their labels.

    Raises ValueError if it cannot be downloaded, or if a file fails its checksum.
    """
    try:
        train, test = (CIFAR10(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"CIFAR-10 cannot be loaded from {root!r}: {error}; data=FILE.npz reads a file instead"
        ) from error
    return train.data, np.array(train.targets), test.data, np.array(test.targets)
