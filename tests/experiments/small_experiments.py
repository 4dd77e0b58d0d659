"""Experiments with networks, small enough for tests."""

from dataclasses import replace

import numpy as np

from lnsim.experiments import resnet, wide_resnet

CLASSES = 10


def small_wide(data, cls=wide_resnet.Config, **changes):
    setting = cls(
        data=data,
        samples=20,
        test_samples=20,
        steps=40,
        record_every=10,
        kernel_every=20,
        curvature_every=40,
    )
    return replace(setting, **changes)


def small_resnet(data, **changes):
    setting = resnet.Config(
        data=data, samples=50, test_samples=40, width=2, tau=[0.0, 0.6], epochs=12, batch_size=10,
        lr=0.1, record_every=4, train_measured=0, kept_percent=[100, 50.0, 10],
        curvature_every=12,
    )  # fmt: skip
    return replace(setting, **changes)


def same(left, right):
    """Whether two trajectories have the same bits, in records and in state."""
    for ours, others in ((left.arrays, right.arrays), (left.state, right.state)):
        assert list(ours) == list(others)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, others[name], err_msg=name)
    return left.status == right.status
