"""Networks: their architecture, their two parameterisations, and their kernels at the start."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.ntk import kernel
from lnsim_torch.ntk.kernel import empirical_ntk

MAKERS = {
    "mlp": lambda **options: networks.mlp([12, 9, 7, 4], **options),
    "erf": lambda **options: networks.mlp([12, 9, 4], activation="erf", **options),
    "wide_resnet": lambda **options: networks.wide_resnet(1, 1, classes=4, **options),
    "resnet18": lambda **options: networks.resnet18(width=2, classes=4, **options),
}


def inputs(name, count=3, seed=0):
    shape = (count, 12) if name in ("mlp", "erf") else (count, 3, 8, 8)
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", MAKERS)
def test_both_parameterisations_are_one_function_of_the_seed_alone(name):
    before = torch.random.get_rng_state()
    kernel, standard = (
        MAKERS[name](parameterization=p, seed=3).double() for p in networks.PARAMETERIZATIONS
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    x = inputs(name)
    torch.testing.assert_close(kernel(x), standard(x), rtol=1e-5, atol=1e-6)
    again, other = (MAKERS[name](parameterization="ntk", seed=seed).double() for seed in (3, 4))
    assert torch.equal(again(x), kernel(x))
    assert not torch.allclose(other(x), kernel(x))


@pytest.mark.parametrize("name", MAKERS)
def test_alpha_multiplies_the_output(name):
    x = inputs(name)
    plain, scaled = (MAKERS[name](alpha=alpha).double()(x) for alpha in (1.0, 2.5))
    torch.testing.assert_close(scaled, 2.5 * plain)


def test_resnet18_has_the_weights_of_its_source():
    assert sum(p.numel() for p in networks.resnet18().parameters()) == 11_173_962
    network = networks.resnet18(width=2)
    strides = [m.stride[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(strides) == 1 + 16 + 3 and strides.count(2) == 3
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def naive_wide_resnet(x, weights, block_size, k):
    """The network in NTK parameterisation, from its weights in order."""
    weights = iter(weights)

    def conv(x, stride=1):
        w = next(weights)
        return F.conv2d(x, w, stride=stride, padding=1) / math.sqrt(w[0].numel())

    x = conv(x)
    for stride in (1, 2, 2):
        for block in range(block_size):
            step = stride if block == 0 else 1
            main = conv(conv(x.relu(), step).relu())
            x = main + (conv(x, step) if block == 0 else x)
    assert x.shape[1] == 64 * k
    w = next(weights)
    assert not list(weights)
    return x.mean((2, 3)) @ w.T / math.sqrt(64 * k)


@pytest.mark.parametrize(("block_size", "k"), [(1, 1), (2, 2)])
def test_wide_resnet_is_its_equations(block_size, k):
    network = networks.wide_resnet(block_size, k, seed=1).double()
    x = inputs("wide_resnet")
    with torch.no_grad():
        expected = naive_wide_resnet(x, network.parameters(), block_size, k)
        torch.testing.assert_close(network(x), expected)
    assert next(network.parameters()).shape == (16, 3, 3, 3)


def test_mlp_is_its_equations():
    network = networks.mlp([12, 9, 4], activation="erf", parameterization="standard").double()
    W1, b1, W2, b2 = network.parameters()
    x = inputs("erf")
    torch.testing.assert_close(network(x), torch.erf(x @ W1.T + b1) @ W2.T + b2)
    torch.testing.assert_close(network(x.view(3, 3, 4)), network(x))
    wide = networks.mlp([400, 500, 10], activation="erf", parameterization="standard")
    W1, b1, W2, _ = wide.parameters()
    assert W1.std().item() == pytest.approx(1 / 20, rel=0.01)
    assert W2.std().item() == pytest.approx(1 / math.sqrt(500), rel=0.05)
    assert b1.std().item() == pytest.approx(1.0, rel=0.1)


def jacobian_kernel(network, x):
    rows = []
    for sample in x.split(1):
        for output in network(sample)[0]:
            found = torch.autograd.grad(output, list(network.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    J = torch.stack(rows).view(len(x), -1, rows[0].numel())
    return torch.einsum("ncp,mdp->nmcd", J, J)


@pytest.mark.parametrize("parameterization", networks.PARAMETERIZATIONS)
@pytest.mark.parametrize("name", MAKERS)
def test_kernels_are_exact_and_go_by_the_rules(name, parameterization, monkeypatch):
    def slow(*_):
        pytest.fail("the kernel went by plain autograd")

    monkeypatch.setattr(kernel, "_plain_gradients", slow)
    network = MAKERS[name](parameterization=parameterization, alpha=1.5).double().eval()
    x = inputs(name)
    expected = jacobian_kernel(network, x)
    torch.testing.assert_close(empirical_ntk(network, x), expected, rtol=1e-10, atol=1e-10)


FAMILIES = {
    "mlp": (lambda width, **options: networks.mlp([12, width, width, 4], **options), 64, 256, 24),
    "wide_resnet": (
        lambda k, **options: networks.wide_resnet(1, k, classes=4, **options),
        1,
        3,
        10,
    ),
}


def start_kernels(family, parameterization):
    """Kernels, averaged over outputs, of narrow and of wide networks, (seeds, n, n) each."""
    make, narrow, wide, seeds = FAMILIES[family]
    x = inputs(family, count=2, seed=5).float()
    for width in (narrow, wide):
        makes = (make(width, parameterization=parameterization, seed=s) for s in range(seeds))
        yield np.array([empirical_ntk(network, x, outputs="mean").numpy() for network in makes])


@pytest.mark.parametrize("family", FAMILIES)
def test_ntk_kernels_do_not_depend_on_the_width(family):
    narrow, wide = start_kernels(family, "ntk")
    error = np.sqrt(narrow.var(0) / len(narrow) + wide.var(0) / len(wide))
    difference = wide.mean(0) - narrow.mean(0)
    assert (np.abs(difference) < 4 * error).all()
    assert (error < 0.15 * wide.mean(0).diagonal().min()).all()
    assert (wide.std(0) < narrow.std(0)).all()
    narrow, wide = (kernels.mean(0)[0, 0] for kernels in start_kernels(family, "standard"))
    assert wide > 1.8 * narrow


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: networks.mlp([3]), "sizes must have at least 2 entries"),
        (lambda: networks.mlp([3, 0, 1]), "sizes must be at least 1, got 0"),
        (lambda: networks.mlp([3, 1.5]), "sizes must be an integer, got 1.5"),
        (lambda: networks.mlp([3, 1], activation="tanh"), "activation must be one of erf, relu"),
        (lambda: networks.mlp([3, 1], parameterization="mup"), "parameterization must be one of"),
        (lambda: networks.mlp([3, 1], alpha=0.0), "alpha must be finite and above 0"),
        (lambda: networks.mlp([3, 1], seed=-1), "seed must be at least 0"),
        (lambda: networks.wide_resnet(0), "block_size must be at least 1"),
        (lambda: networks.wide_resnet(1, k=0), "k must be at least 1"),
        (lambda: networks.resnet18(width=0), "width must be at least 1"),
        (lambda: networks.resnet18(classes=0), "classes must be at least 1"),
        (lambda: networks.resnet18(alpha=[1.0]), "alpha must be one number"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()
