"""Fixtures of the experiments: image files, and one run of each network."""

import numpy as np
import pytest
from small_experiments import CLASSES, small_resnet, small_wide

from lnsim.experiments import resnet, wide_resnet


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of an .npz file of small images: the mean of their class, and noise."""
    rng = np.random.default_rng(0)
    looks = rng.integers(40, 216, (CLASSES, 8, 8, 3))
    arrays = {}
    for name, count in (("train", 60), ("test", 40)):
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(-40, 40, (count, 8, 8, 3))
        arrays[f"{name}_images"] = np.clip(looks[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"{name}_labels"] = labels.astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def wide(data):
    return wide_resnet.run(small_wide(data))


@pytest.fixture(scope="module")
def residual(data):
    return resnet.run(small_resnet(data))
