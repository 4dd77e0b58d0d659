"""Fused batch norms: loops against naive ones, segments and training against the plain layers."""

from copy import deepcopy
from dataclasses import replace

import naive_norm
import numba
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import networks, norm_loops
from lnsim_torch.training import fused
from lnsim_torch.training.fused import forward_of
from lnsim_torch.training.train import place, train
from small_training import (
    CLASSES,
    RECIPE,
    _one_thread,  # noqa: F401
    small_data,
    small_images,
    small_resnet,
)
from torch import nn

compiled = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="segments are for the compiled loops"
)
EPS = 1e-5


def arrays(n, channels, mean=0.0):
    rng = np.random.default_rng([n, channels])
    x, shortcut, gradient = rng.standard_normal((3, n, channels), np.float32)
    weight, bias = rng.standard_normal((2, channels), np.float32)
    return x + np.float32(mean), shortcut, gradient, weight, bias


@pytest.mark.small
@pytest.mark.parametrize(("n", "channels"), [(2, 1), (50, 8), (81, 3), (3, 300)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_shortcut", [False, True])
def test_loops_equal_naive_ones(n, channels, relu, has_shortcut):
    x, shortcut, gradient, weight, bias = arrays(n, channels)
    wide = [a.astype(np.float64) for a in (x, gradient, weight, bias)]
    expected = naive_norm.forward(
        wide[0], wide[2], wide[3], shortcut if has_shortcut else None, EPS, relu
    )
    none, y, saved = np.empty(0, np.float32), np.empty(x.size, np.float32), np.empty((3, channels))
    running = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    norm_loops.forward(
        x.ravel(), weight, bias, *running, shortcut.ravel() if has_shortcut else none, EPS, 0.1,
        relu, y, saved,
    )  # fmt: skip
    np.testing.assert_allclose(y.reshape(n, channels), expected, atol=1e-5)
    np.testing.assert_allclose(running[0], 0.1 * wide[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(running[1], 0.9 + 0.1 * wide[0].var(0, ddof=1), rtol=1e-5)
    at_x, at_shortcut = np.empty_like(y), np.empty_like(y) if relu and has_shortcut else none
    at_weight, at_bias = np.empty((2, channels), np.float32)
    norm_loops.backward(
        gradient.ravel(), y if relu else none, x.ravel(), weight, saved, at_x, at_shortcut,
        at_weight, at_bias,
    )  # fmt: skip
    gradients = naive_norm.backward(wide[1], y.reshape(n, channels), wide[0], wide[2], EPS, relu)
    scale = max(1.0, abs(gradients[0]).max())
    np.testing.assert_allclose(at_x.reshape(n, channels), gradients[0], atol=2e-5 * scale)
    if at_shortcut.size:
        np.testing.assert_array_equal(at_shortcut.reshape(n, channels), gradients[1])
    np.testing.assert_allclose(at_weight, gradients[2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(at_bias, gradients[3], rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("channels", [3, 8])
def test_many_blocks_lose_no_digits_where_the_mean_is_large(channels):
    n = 3 * norm_loops.BLOCK // channels + 5
    x = arrays(n, channels, mean=1000.0)[0]
    mean, square = np.empty((2, channels))
    norm_loops.moments(x.ravel(), mean, square)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-7)
    np.testing.assert_allclose(square, wide.var(0), rtol=1e-5)


@compiled
def test_what_is_not_finite_stays_so():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    x = torch.randn(3, 2, 4, 4)
    x[0, 1, 0, 0] = np.inf
    y = forward_of(network)(x)
    assert y[:, 0].isfinite().all() and y[:, 1].isnan().all()


class Own(nn.Conv2d):
    """A layer with a class of its own."""


def mixed():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU(), Own(4, 6, 3, groups=2),
        nn.Sequential(nn.BatchNorm2d(6), nn.AvgPool2d(2)), nn.GELU(),
        nn.Conv2d(6, 6, 1, bias=False),
        networks.Sum(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), nn.Identity()),
        networks.Sum(nn.Conv2d(6, 6, 1), nn.Identity()), nn.ReLU(),
        nn.BatchNorm2d(6, eps=0.1, momentum=0.3), nn.BatchNorm2d(6, momentum=None),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def frozen():
    network = networks.resnet18(width=2, classes=4)
    for p in [*network.parameters()][::3]:
        p.requires_grad_(False)
    return network


def frozen_statistics():
    network = small_resnet()
    network.train()
    network[1].eval()
    return network


CASES = {
    "resnet18": lambda: networks.resnet18(width=8, classes=4),
    "ntk": lambda: networks.resnet18(width=3, classes=4, parameterization="ntk"),
    "mixed": mixed,
    "frozen": frozen,
}


@compiled
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_network_and_its_gradients_are_the_plain_ones(name, layout):
    torch.manual_seed(0)
    network = CASES[name]().to(memory_format=layout).train()
    plain = deepcopy(network).double()
    x = torch.randn(9, 3, 16, 16)
    y = torch.arange(9) % 4
    for _ in range(2):  # gradients add up
        F.cross_entropy(forward_of(network)(x), y).backward()
        F.cross_entropy(plain(x.double()), y).backward()
    assert any(isinstance(call, fused._Segment) for call in forward_of(network)._calls)
    for (key, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if q.grad is not None:
            scale = max(float(q.grad.abs().max()), 1e-2)
            assert float((p.grad - q.grad).abs().max()) < 2e-4 * scale, key
    for (key, b), c in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b.double(), c.double(), rtol=1e-4, atol=1e-5, msg=key)


@compiled
def test_the_gradient_at_the_input():
    network, x = small_resnet().train(), torch.randn(5, 3, 8, 8)
    plain, wide = deepcopy(network).double(), x.double().requires_grad_()
    x.requires_grad_()
    forward_of(network)(x).square().sum().backward()
    plain(wide).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-3, atol=1e-5)


@compiled
def test_batch_norms_with_fixed_statistics_keep_them():
    network = frozen_statistics()
    before = deepcopy(network[1].running_mean)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(forward_of(network)(x), deepcopy(network)(x))
    torch.testing.assert_close(network[1].running_mean, before)


@compiled
def test_layers_with_hooks_are_called():
    network, calls = small_resnet().train(), []
    network[1].register_forward_hook(lambda *_: calls.append(1))
    forward_of(network)(torch.randn(5, 3, 8, 8))
    assert calls == [1]


@compiled
def test_a_single_value_per_channel_is_refused_as_before():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        forward_of(network)(torch.randn(1, 3, 1, 1))


def test_several_threads_take_the_plain_layers():
    torch.set_num_threads(2)
    network = small_resnet()
    assert forward_of(network) is network


@compiled
@pytest.mark.parametrize("change", [{}, {"rho": 0.05}, {"augment": True, "momentum": 0.5}])
def test_the_first_steps_are_those_of_the_plain_layers(monkeypatch, change):
    recipe = replace(
        RECIPE, steps=6, record_every=1, lr=0.002, batch_size=12, loss="cross_entropy", tau=0.2,
        **change,
    )  # fmt: skip
    data = place(small_images(size=32), classes=CLASSES)
    ours = train(small_resnet(), data, recipe)
    monkeypatch.setattr("lnsim_torch.training.fused.forward_of", lambda network: network)
    plain = train(small_resnet(), data, recipe)
    assert not np.array_equal(ours.records["train_loss"][1:], plain.records["train_loss"][1:])
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ours.records[name], plain.records[name], rtol=2e-4)


def test_records_do_not_depend_on_the_images_at_once(monkeypatch):
    recipe = replace(RECIPE, steps=0)
    whole = train(small_resnet(), small_data(), recipe)
    monkeypatch.setattr("lnsim_torch.training.evaluation.IN_CACHE", 4)
    parts = train(small_resnet(), small_data(), recipe)
    assert len(small_images().train_labels) > 4
    np.testing.assert_allclose(whole.records["train_loss"], parts.records["train_loss"], rtol=1e-5)


@compiled
def test_autocast_takes_the_plain_layers():
    network, x = small_resnet().train(), torch.randn(5, 3, 8, 8)
    plain = deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forward_of(network)(x), plain(x))
