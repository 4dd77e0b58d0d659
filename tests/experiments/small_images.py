"""Small image files for the linearisation experiment."""

from dataclasses import replace

import numpy as np

from lnsim.experiments import linearization

CLASSES = 10


def small_images(seed=0, train=30, test=20):
    """Blobs of 4 x 4 x 3 pixels whose brightness and colour depend on the class."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(40, 216, (CLASSES, 4, 4, 3))
    arrays = {}
    for name, count in (("train", train), ("test", test)):
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(-40, 40, (count, 4, 4, 3))
        arrays[f"{name}_images"] = (looks[labels] + noise).astype(np.uint8)
        arrays[f"{name}_labels"] = labels.astype(np.uint8)
    return arrays


def small(data, **changes):
    setting = linearization.Config(
        data=data, samples=10, test_samples=7, width=24, lr=0.05, steps=60, record_every=20,
        dtype="float64",
    )  # fmt: skip
    return replace(setting, **changes)
