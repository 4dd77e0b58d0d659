"""empirical_ntk on what its users bring: networks near zero, odd modules, odd arguments."""

import copy

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from lnsim_torch import empirical_ntk
from lnsim_torch.ntk import layers as ntk_layers
from naive_ntk import TOLERANCE, assert_exact, expected
from odd_networks import mlp, refused
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


# Networks that are nearly zero.


class Doubled(nn.Module):
    """Starts at f = 0: two copies, one taken from the other; or from a frozen one."""

    def __init__(self, frozen):
        super().__init__()
        self.one = mlp(20, 200)
        self.two = copy.deepcopy(self.one).requires_grad_(not frozen)

    def forward(self, x):
        return self.one(x) - self.two(x)


class DoubledByHand(nn.Module):
    """The same, without a layer that has a rule."""

    def __init__(self):
        super().__init__()
        self.weight, self.top = (
            nn.Parameter(torch.randn(20, 300)),
            nn.Parameter(torch.randn(300, 3)),
        )
        self.start = self.weight.detach().clone()

    def forward(self, x):
        return torch.tanh(x @ self.weight) @ self.top - torch.tanh(x @ self.start) @ self.top


class Wider(nn.Module):
    """Gives float64, whatever it computes in."""

    def __init__(self):
        super().__init__()
        self.network = mlp(20, 200)

    def forward(self, x):
        return self.network(x).double()


def nothing_yet():
    network = mlp(20, 200)
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    return network


NEARLY_ZERO = {
    "doubled": lambda: Doubled(frozen=False),
    "from its own start": lambda: Doubled(frozen=True),
    "by hand": DoubledByHand,
    "zero last layer": nothing_yet,
    "wider output": Wider,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", NEARLY_ZERO)
def test_networks_that_begin_at_zero(kind, dtype):
    network = NEARLY_ZERO[kind]().to(dtype)
    if hasattr(network, "start"):
        network.start = network.start.to(dtype)
    tolerance = TOLERANCE if dtype is torch.float64 else 1e-5
    assert_exact(network, torch.randn(40, 20, dtype=dtype), tolerance=tolerance)
    assert_exact(network, torch.randn(7, 20, dtype=dtype), tolerance=tolerance, memory=400_000)


class Shaken(nn.Module):
    """Neighbours seen by a hundredth part, below the tolerance for rounding of no type."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        y = self.network(x)
        return y + 1e-2 * self.network[0](x)[:, :3].mean(0)


def test_a_tolerance_for_zero_tolerates_no_mixing():
    for dtype in (torch.float64, torch.float32):
        refused("neighbours", Shaken(nothing_yet()).to(dtype), torch.randn(40, 20, dtype=dtype))


# Complex parameters.


class OfComplex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, dtype=torch.complex128), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.to(torch.complex128)).abs()))


class OfReal(nn.Module):
    """The same function, of the real and the imaginary parts."""

    def __init__(self, network):
        super().__init__()
        first = network.first
        parts = (first.weight.real, first.weight.imag, first.bias.real, first.bias.imag)
        self.parts = nn.ParameterList(part.detach().clone() for part in parts)
        self.last = network.last

    def forward(self, x):
        w_re, w_im, b_re, b_im = self.parts
        size = ((x @ w_re.T + b_re) ** 2 + (x @ w_im.T + b_im) ** 2).sqrt()
        return self.last(torch.tanh(size))


def test_complex_parameters_count_as_two_real_ones():
    network, x = OfComplex(), torch.randn(5, 4)
    for outputs in ("full", "mean"):
        for memory in (4_000, 2**30):
            found = empirical_ntk(network, x, outputs=outputs, memory=memory)
            right = expected(OfReal(network), x, outputs=outputs)
            assert found.dtype == torch.float64
            assert (found - right).abs().max() <= TOLERANCE * right.abs().max()


def test_complex_output_is_refused():
    refused("must be real", nn.Linear(4, 3, dtype=torch.complex128), torch.randn(5, 4) + 0j)


# Arguments.


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_layers_without_channels():
    assert_exact(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 0), nn.Linear(0, 3)), torch.randn(5, 4)
    )
    refused(r"\(N, C\)", nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 0)), torch.randn(5, 4))


@pytest.mark.parametrize("make", [np.asarray, np.ndarray.tolist, lambda a: a.astype(">f8")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_that_are_no_tensor(make, dtype):
    network, x = mlp().to(dtype), np.random.default_rng(0).normal(size=(5, 4))
    found = empirical_ntk(network, make(x), make(x[:2]))
    assert torch.equal(
        found, empirical_ntk(network, *(torch.tensor(v).to(dtype) for v in (x, x[:2])))
    )


def test_words_that_are_no_tensor():
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3))
    words = np.random.default_rng(0).integers(7, size=(4, 3))
    assert torch.equal(empirical_ntk(network, words), empirical_ntk(network, torch.tensor(words)))


def test_memory_is_a_number_of_bytes():
    network, x = mlp(), torch.randn(5, 4)
    assert torch.equal(empirical_ntk(network, x, memory=2e9), empirical_ntk(network, x))
    for memory in (0, -1, float("nan"), float("inf"), "1 GB", None):
        refused("memory must be a number of bytes", network, x, memory=memory)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_what_is_summed_is_a_floating_number(dtype):
    refused("accumulate must be a floating dtype", mlp(), torch.randn(5, 4), accumulate=dtype)


def test_inside_inference_mode():
    network = mlp()
    with torch.inference_mode():
        x = torch.randn(5, 4)
        kernel = empirical_ntk(network, x)
        made = mlp()
    right = expected(network, x.clone())
    assert (kernel - right).abs().max() <= TOLERANCE * right.abs().max()
    refused("inference_mode", made, torch.randn(5, 4))


class Views(nn.Module):
    """Takes images apart by .view(), which channels last allows for one image, not for more."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 2, 3)
        self.last = nn.Linear(4 * 2 * 4 * 4, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x)).view(len(x) * 4, 1, 6, 6)
        return self.last(torch.tanh(self.second(h)).reshape(len(x), -1))


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_networks_that_need_contiguous_images(samples):
    assert_exact(Views(), torch.randn(samples, 3, 6, 6))


# Short of memory.


class Wide(nn.Module):
    """Many pixels and few weights, then many weights: neither fits beside the other's gradients."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.Tanh()
        )
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8))

    def forward(self, x):
        return self.last(self.convolutions(x))


@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_as_much_memory_as_is_asked_for_is_enough(outputs, fallback):
    """Less and less: weight gradients at once, then plain autograd, then refused with a number."""
    network, x = Wide(), torch.randn(2, 3, 32, 32)
    right = expected(network, x, outputs=outputs)
    ways = []
    memory = 8 * 2**20
    while True:
        fallback.clear()
        try:
            found = empirical_ntk(network, x, outputs=outputs, memory=memory)
        except ValueError as error:
            needed = int(str(error).split("about ")[1].split()[0])
            break
        assert (found - right).abs().max() <= TOLERANCE * right.abs().max()
        ways.append(sum(fallback))
        memory = memory * 4 // 5
    assert ways[0] == 0 and ways[-1] > 0
    assert needed > memory
    found = empirical_ntk(network, x, outputs=outputs, memory=needed)
    assert (found - right).abs().max() <= TOLERANCE * right.abs().max()


@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_weight_gradients_are_formed_at_once_where_that_takes_less(outputs, monkeypatch, fallback):
    formed = []
    add = ntk_layers.Reduced.add
    monkeypatch.setattr(
        ntk_layers.Reduced, "add", lambda self, g: formed.append(self.module) or add(self, g)
    )
    network, x = Wide(), torch.randn(2, 3, 32, 32)
    right = expected(network, x, outputs=outputs)
    memory = 8 * 2**20
    while not formed:
        found = empirical_ntk(network, x, outputs=outputs, memory=memory)
        assert (found - right).abs().max() <= TOLERANCE * right.abs().max()
        memory = memory * 9 // 10
    assert not fallback
    assert {*formed} == {network.convolutions[0], network.convolutions[2]}
