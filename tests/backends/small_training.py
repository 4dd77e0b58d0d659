"""Small images, networks and recipes for the tests of the training loop."""

import numpy as np
import pytest
import torch
from lnsim_torch import networks
from lnsim_torch.training.train import Recipe, place
from torch import nn

from lnsim.images.data import Images

CLASSES = 4
RECIPE = Recipe(steps=12, record_every=3, lr=0.2, batch_size=7)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_images(train=25, test=9, size=8, seed=0):
    """Colours of CLASSES classes, with noise."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(60, 196, (CLASSES, 1, 1, 3))
    sets = []
    for count in (train, test):
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(-50, 50, (count, size, size, 3))
        sets += [(looks[labels] + noise).astype(np.uint8), labels]
    return Images(*sets)


def small_data(**options):
    return place(small_images(), classes=CLASSES, **options)


def small_mlp(seed=0):
    return networks.mlp([192, 6, CLASSES], seed=seed).double()


def small_resnet(seed=0):
    return networks.resnet18(width=2, classes=CLASSES, seed=seed)


def naive_inputs(images):
    x = images.train_images.astype(np.float64)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def norm(network, step):
    return {"norm": next(network.parameters()).norm().item(), "twice": 2.0 * step}


class Growing(nn.Module):
    """Has a buffer that it sets in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", None)

    def forward(self, h):
        if self.training:
            self.seen = h.detach().mean(0)
        return h
