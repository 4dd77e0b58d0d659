"""empirical_ntk against the Jacobian taken sample by sample, output by output, in float64."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch.ntk import layers as ntk_layers
from lnsim_torch.ntk import products
from lnsim_torch.ntk.kernel import empirical_ntk
from naive_ntk import TOLERANCE, assert_exact, randomise
from ntk_networks import head, narrow_resnet
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


class MeanOverTime(nn.Module):
    def forward(self, x):
        return x.mean(1)


CONVOLUTIONS = {
    "plain": {"padding": 1},
    "no bias": {"padding": 1, "bias": False},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": (2, 1)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same"},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"padding": 1, "padding_mode": "replicate", "stride": (1, 2)},
    "1x1, stride": {"kernel_size": 1, "stride": 2},
    "all at once": {
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (2, 1),
        "dilation": (1, 2),
        "groups": 2,
        "padding_mode": "circular",
    },
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("settings_", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(settings_, no_fallback):
    conv = nn.Conv2d(4, 8, **{"kernel_size": 3, **settings_})
    network = head(nn.Conv2d(3, 4, 1), nn.Tanh(), conv, channels=8)
    assert_exact(network, torch.randn(4, 3, 7, 8))
    assert_exact(network, torch.randn(4, 3, 7, 8), torch.randn(3, 3, 7, 8))


def test_convolution_in_one_and_three_dimensions(no_fallback):
    line = head(nn.Conv1d(3, 4, 3, padding=2, dilation=2), channels=4)
    assert_exact(line, torch.randn(4, 3, 9))
    volume = head(nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 1, 2), groups=2), channels=4)
    assert_exact(volume, torch.randn(3, 2, 3, 4, 5))


TRANSPOSED = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": 2, "padding": 1},
    "padding beyond the kernel": {"padding": (3, 2)},
    "dilation": {"dilation": (1, 2)},
    "output padding": {"stride": (2, 3), "output_padding": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "all at once": {
        "kernel_size": (3, 2),
        "stride": (2, 3),
        "padding": (2, 1),
        "output_padding": (1, 0),
        "dilation": (1, 2),
        "groups": 2,
    },
}


@pytest.mark.parametrize("settings_", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolution(settings_, no_fallback):
    conv = nn.ConvTranspose2d(4, 8, **{"kernel_size": 3, **settings_})
    network = head(nn.Conv2d(3, 4, 1), nn.Tanh(), conv, channels=8)
    assert_exact(network, torch.randn(4, 3, 6, 7))
    assert_exact(network, torch.randn(4, 3, 6, 7), torch.randn(3, 3, 6, 7))


def test_transposed_convolution_in_one_and_three_dimensions(no_fallback):
    line = head(nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), channels=4)
    assert_exact(line, torch.randn(4, 3, 5))
    volume = head(
        nn.ConvTranspose3d(2, 4, (1, 2, 3), stride=(1, 1, 2), padding=(0, 1, 0), groups=2),
        channels=4,
    )
    assert_exact(volume, torch.randn(3, 2, 3, 4, 5))


def test_a_transposed_convolution_whose_call_sets_the_size(no_fallback):
    class Sized(nn.ConvTranspose1d):
        def __init__(self):
            super().__init__(3, 4, 3, stride=3)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = Sized(), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.inner(x, output_size=[17])).mean(2))

    assert_exact(Network(), torch.randn(4, 3, 5))


class Named(nn.Conv3d):
    """A convolution with another constructor and a helper, as in torchvision's video networks."""

    def __init__(self, channels, width):
        super().__init__(channels, width, (3, 3, 3), padding=1)

    @staticmethod
    def strides():
        return 1, 1, 1


class Standardised(nn.Conv3d):
    """A convolution that does something else with its weight."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Doubled(nn.Linear):
    """A layer whose weight is not its parameter."""

    @property
    def weight(self):
        return 2 * self._parameters["weight"]


def test_a_subclass_that_changes_nothing_has_its_rule(no_fallback):
    network = head(Named(2, 3), nn.Tanh(), Named(3, 4), channels=4)
    assert_exact(network, torch.randn(3, 2, 2, 4, 3))


def test_a_subclass_that_changes_something_has_none(fallback):
    network = head(Standardised(2, 4, (2, 3, 3)), channels=4)
    assert_exact(network, torch.randn(3, 2, 2, 4, 3))
    assert fallback
    fallback.clear()
    layer = nn.Linear(4, 3)
    layer.__class__ = Doubled
    assert_exact(nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2)), torch.randn(3, 4))
    assert fallback


@pytest.mark.parametrize("way", ["_blocks", "_apply", "_hadamard"])
@pytest.mark.parametrize("workspace", [1, 3000, 2**28])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_all_ways_to_contract_a_layer_agree(way, workspace, traced, bias):
    """Whatever the cost model would choose, and however small the pieces."""
    conv = nn.Conv2d(3, 4, 3, padding=1)
    layers = []
    for samples in (5, 4):
        x = torch.randn(samples, 3, 4, 5)
        layer = ntk_layers.layer_for(conv, x, (True, bias), traced)
        gradients = [torch.randn(samples, 4, 4, 5) for _ in range(2)]
        rows = []
        for gradient in gradients:
            layer.add(gradient[None])
            for sample, d in zip(x, gradient, strict=True):
                at = (conv.weight, conv.bias) if bias else (conv.weight,)
                found = torch.autograd.grad(conv(sample[None]), at, d[None])
                rows.append(torch.cat([g.flatten() for g in found]))
        layers.append((layer, torch.stack(rows).view(2, samples, -1)))
    for (a, rows), (b, rows2) in [(layers[0], layers[1]), (layers[0], layers[0])]:
        right = torch.einsum("cnp,dmp->cndm", rows, rows2)
        if traced:
            right = torch.einsum("cncm->nm", right)[None, :, None]
        kernel = torch.zeros_like(right)
        getattr(products, way)(a, b, kernel, workspace)
        assert (kernel - right).abs().max() <= TOLERANCE * right.abs().max()


def test_linear_on_sequences_with_in_place_relu(no_fallback):
    """The output of Linear on (N, T, F) is a view; in-place operations rewrite its history."""
    network = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.LayerNorm(4), MeanOverTime()
    )
    assert_exact(network, torch.randn(4, 3, 5))
    assert_exact(network, torch.randn(4, 3, 5), torch.randn(6, 3, 5))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, shift only": lambda: _frozen(nn.BatchNorm2d(4), "weight"),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm([4, 5, 5]),
    "layer, last axis": lambda: nn.LayerNorm(5),
    "layer, no bias": lambda: nn.LayerNorm([5, 5], bias=False),
}


def _frozen(module, *names):
    for name in names:
        getattr(module, name).requires_grad_(False)
    return module


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_normalisation(norm, no_fallback):
    network = head(nn.Conv2d(3, 4, 3), norm(), nn.ReLU(inplace=True), channels=4)
    assert_exact(randomise(network), torch.randn(4, 3, 7, 7))
    assert_exact(randomise(network), torch.randn(4, 3, 7, 7), torch.randn(2, 3, 7, 7))


def test_batch_norm_of_vectors(no_fallback):
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    assert_exact(randomise(network).eval(), torch.randn(5, 5))


def test_layers_without_a_rule(fallback):
    network = head(
        nn.ConvTranspose2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True),
        nn.PReLU(4),
        nn.Conv2d(4, 4, 3),
        channels=4,
    )
    assert_exact(network, torch.randn(3, 3, 6, 6))
    assert set(fallback) == {3}  # weight, bias and slope


def test_embedding():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 5, padding_idx=0)
            self.places = nn.Embedding(4, 5)
            self.mix = nn.Linear(5, 3)

        def forward(self, tokens):
            places = self.places(torch.arange(tokens.shape[1]))
            return self.mix(torch.tanh(self.words(tokens) + places)).mean(1)

    tokens = torch.randint(0, 9, (5, 4))
    assert_exact(Words(), tokens)
    assert_exact(Words(), tokens, torch.randint(0, 9, (4, 4)))
    assert_exact(Words(), tokens[:4])  # as many samples as places
    assert_exact(Words(), tokens[:1])


def test_sparse_and_scaled_embeddings():
    for options in ({"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}):
        network = nn.Sequential(nn.Embedding(5, 3, **options), nn.Tanh(), MeanOverTime())
        x = torch.randint(0, 5, (3, 4))
        found = empirical_ntk(network, x)
        rows = []
        for n, c in ((n, c) for n in range(3) for c in range(3)):
            g = torch.autograd.grad(network(x[n : n + 1])[0, c], network[0].weight)[0]
            rows.append(g.to_dense().flatten())
        rows = torch.stack(rows).view(3, 3, -1)
        torch.testing.assert_close(found, torch.einsum("ncp,mdp->nmcd", rows, rows))


class Tied(nn.Module):
    """One weight in two modules, and a bias of its own in each."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self):
        super().__init__()
        self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.again(torch.tanh(self.again(x)))))


class Outside(nn.Module):
    """A weight used by its module, and once more outside it."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(x))) + (x @ self.inner.weight)[:, :2]


class OnlyOutside(nn.Module):
    """A module whose result is thrown away, and whose weight is used without it."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 2), nn.Parameter(torch.randn(2))

    def forward(self, x):
        self.inner(x)
        return F.linear(torch.tanh(x), self.inner.weight) * self.scale


class TimeFirst(nn.Module):
    """Layers that see (T, N, F): the sample axis is not the first."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.last = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.inner(x.transpose(0, 1)))).mean(0))


class Merged(nn.Module):
    """Layers that see (N·T, F)."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(x.flatten(0, 1))).view(*x.shape[:2], 3).sum(1))


class Sorted(nn.Module):
    """A layer that sees the samples in an order of their own."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.inner(x[order]))[order.argsort()])


class Reparametrised(nn.Module):
    """weight_norm and a Linear with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.last = nn.Linear(4, 2)
        self.last.forward = lambda x: F.linear(x, self.last.weight**2, self.last.bias)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(x)))


@pytest.mark.parametrize("kind", [Tied, Twice, Outside, OnlyOutside, Sorted, Reparametrised])
def test_parameters_used_in_ways_no_rule_covers(kind, fallback):
    network = kind()
    assert_exact(network, torch.randn(5, 4))
    assert_exact(network, torch.randn(3, 4), torch.randn(5, 4))
    assert fallback


@pytest.mark.parametrize("kind", [TimeFirst, Merged])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_sample_axis_not_first(kind, samples, fallback):
    """Three steps in time: with three samples the shapes alone would not tell."""
    assert_exact(kind(), torch.randn(samples, 3, 4))
    assert samples == 1 or fallback


def test_attention(fallback):
    network = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), MeanOverTime()
    )
    assert_exact(network, torch.randn(4, 3, 6))
    assert_exact(network.eval(), torch.randn(3, 3, 6))


def test_frozen_parameters_are_left_out(no_fallback):
    network = head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), channels=4)
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    network[-1].bias.requires_grad_(False)
    assert_exact(network, torch.randn(4, 3, 6, 6))


@pytest.mark.parametrize("norm", [True, False], ids=["ResNet", "Wide ResNet"])
def test_residual_networks(norm, no_fallback):
    network = narrow_resnet(norm)
    assert_exact(network, torch.randn(3, 3, 8, 8))
    assert_exact(network, torch.randn(3, 3, 8, 8), torch.randn(2, 3, 8, 8))
