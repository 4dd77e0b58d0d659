"""Settings small enough for the tests of faults and of damaged files."""

import numpy as np

from lnsim.base import archive

SMALL = ["samples=20", "test_samples=10", "dim=4", "width=12", "lr=1e-2", "tracked=2"]


def write_images(path):
    """A small file of images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(20) % 10
    archive.write(path, arrays)
