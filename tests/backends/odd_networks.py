"""Odd networks that the tests of empirical_ntk share."""

import pytest
import torch
from lnsim_torch import empirical_ntk
from torch import nn


def mlp(inputs=4, hidden=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def refused(match, network, x, **options):
    with pytest.raises(ValueError, match=match) as caught:
        empirical_ntk(network, x, **options)
    assert "\n" not in str(caught.value)


class Between(nn.Module):
    """Two layers, with something done to the batch before them and undone after."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def layers(self, x):
        return self.last(torch.tanh(self.first(x)))

    def forward(self, x):
        order = self.order(x)
        return self.layers(x[order])[order.argsort()]

    def order(self, x):
        return x[:, 0].argsort(descending=True)
