"""empirical_ntk of samples one at a time, or that change places or see each other."""

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import empirical_ntk
from naive_ntk import TOLERANCE, assert_exact, expected, randomise
from odd_networks import Between, mlp, refused
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


# One sample at a time: every rule, in both memory formats.

IMAGES = {
    "convolution": lambda: [nn.Conv2d(4, 4, 3)],
    "grouped": lambda: [nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1)],
    "depthwise": lambda: [nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1)],
    "batch norm": lambda: [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)],
    "batch norm, then in place": lambda: [nn.BatchNorm2d(4), nn.ReLU(inplace=True)],
    "batch norm, no scale": lambda: [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)],
    "batch norm twice": lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)],
    "group norm": lambda: [nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)],
    "instance norm": lambda: [nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True)],
    "layer norm": lambda: [nn.LayerNorm([4, 6, 5])],
}


HEADS = {
    "flat": lambda: [nn.Flatten(), nn.LazyLinear(3)],
    "pooled": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)],
    "max pooled": lambda: [nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)],
    "1x1": lambda: [nn.LazyConv2d(3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
}


@pytest.mark.parametrize("end", HEADS)
@pytest.mark.parametrize("kind", IMAGES)
def test_one_image_at_a_time(kind, end):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *IMAGES[kind](), *HEADS[end]())
    x = torch.randn(3, 3, 6, 5)
    network(x)
    randomise(network).eval()
    assert_exact(network, x[:1])
    assert_exact(network, x[:1].contiguous(memory_format=torch.channels_last), x)
    assert_exact(network, x, memory=50_000)  # tiles of one
    assert_exact(network.to(memory_format=torch.channels_last), x[:1])


FLAT = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "of a sequence": (lambda: nn.Linear(5, 4), (3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm of a sequence": (lambda: nn.BatchNorm1d(5), (5, 3)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "convolution": (lambda: nn.Conv1d(5, 4, 2), (5, 4)),
    "in three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 2, 4)),
    "batch norm in three": (lambda: nn.BatchNorm3d(2), (2, 3, 2, 4)),
}


@pytest.mark.parametrize("kind", FLAT)
def test_one_sample_at_a_time(kind, no_fallback):
    make, shape = FLAT[kind]
    network = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(3, *shape)
    network(x)
    randomise(network).eval()
    assert_exact(network, x[:1])
    assert_exact(network, x, x[1:2])
    assert_exact(network, x, memory=10_000)


def test_one_sequence_of_words():
    network = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Flatten(), nn.Linear(12, 3))
    words = torch.randint(7, (3, 3))
    assert_exact(network, words[:1])
    assert_exact(network, words, memory=4_000)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"])
def test_published_networks_with_statistics_of_data(name):
    models = pytest.importorskip("torchvision").models
    network = getattr(models, name)(num_classes=2).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    right = expected(network.eval(), x)
    assert (empirical_ntk(network, x) - right).abs().max() <= 1e-11 * right.abs().max()


# Samples that leave their rows on the way, or see each other.


class Ascending(Between):
    def order(self, x):
        return x[:, 0].argsort()


class Dispatched(Between):
    """To two experts in one, those of the first before those of the second."""

    def order(self, x):
        return torch.argsort((x[:, 0] > 0).long(), stable=True)


class Shifted(Between):
    def order(self, x):
        return torch.arange(len(x)).roll(1)


class Flipped(Between):
    def order(self, x):
        return torch.arange(len(x)).flip(0)


class Pairs(Between):
    """Neighbours change places, but the last two."""

    def order(self, x):
        order = torch.arange(len(x))
        half = (len(x) - 1) // 2
        order[: 2 * half] = order[: 2 * half].view(-1, 2).flip(1).flatten()
        return order


@pytest.mark.parametrize("kind", [Between, Ascending, Dispatched, Shifted, Flipped, Pairs])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8, 20])
def test_samples_that_change_places_on_the_way(kind, samples):
    network = kind()
    assert_exact(network, torch.randn(samples, 4))
    assert_exact(network, torch.randn(samples, 4), torch.randn(3, 4), memory=10_000)


def test_samples_that_change_places_though_the_last_stays_last(fallback):
    x = torch.randn(5, 4)
    x[:, 0] = torch.tensor([1.0, 2.0, 4.0, 3.0, 0.0])
    assert_exact(Between(), x)
    assert fallback


class CentredOnSome(Between):
    """Those of one group are centred on their mean; the last is not one of them."""

    def forward(self, x):
        h = torch.tanh(self.first(x))
        group = x[:, 0] > 0
        return self.last(torch.where(group[:, None], h - h[group].mean(0), h))


class WithNeighbour(Between):
    """All but the last see the next sample, a little."""

    def forward(self, x):
        y = self.layers(x)
        return y + 1e-3 * F.pad(y[1:], (0, 0, 0, 1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("memory", [2**20, 3_000])
def test_samples_that_see_some_others_are_refused(seed, memory):
    torch.manual_seed(seed)
    x = torch.randn(9, 4)
    x[:2, 0], x[-1, 0] = 1.0, -1.0
    refused("neighbours", CentredOnSome(), x, memory=2**20)
    refused("neighbours", WithNeighbour(), x, memory=memory)


# Networks that are called otherwise from batch to batch.


class Experts(nn.Module):
    """Three experts, each called where it has samples."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x):
        which = (x[:, 0].abs() * 10).long() % 3
        y = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            if (which == i).any():
                y[which == i] = expert(x[which == i])
        return y


class Loop(Between):
    def forward(self, x):
        return torch.stack([self.layers(row) for row in x])


class Unbatched(nn.Module):
    """A convolution that is given one image without the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        x = x[:, :, None, None]
        h = self.first(x[0])[None] if len(x) == 1 else self.first(x)
        return self.last(torch.tanh(h).flatten(1))


class Scaled(nn.Module):
    """A parameter of its own, used when the batch asks for it."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(4, 3), nn.Parameter(torch.randn(3))

    def forward(self, x):
        y = self.first(x)
        high = x[:, :1] > 0
        return torch.where(high, y * self.scale, y) if high.any() else y


@pytest.mark.parametrize("kind", [Experts, Loop, Unbatched, Scaled])
@pytest.mark.parametrize("memory", [4_000, 2**30])
@pytest.mark.parametrize("seed", range(5))
def test_calls_that_change_with_the_batch(kind, memory, seed):
    torch.manual_seed(seed)
    network = kind()
    for samples in (1, 2, 9):
        assert_exact(network, torch.randn(samples, 4), memory=memory)
    assert_exact(network, torch.randn(7, 4), torch.randn(2, 4), memory=memory)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_compiled_and_scripted_networks():
    network, x = mlp(), torch.randn(5, 4)
    right = expected(network, x)
    compiled = copy.deepcopy(network)
    compiled.compile(backend="eager")
    for made in (
        torch.compile(network, backend="eager"),
        compiled,
        torch.jit.trace(network, x),
        nn.Sequential(torch.jit.trace(network[:2], x), network[2]),
    ):
        assert (empirical_ntk(made, x) - right).abs().max() <= TOLERANCE * right.abs().max()


# Networks that do something else with one sample alone.


class Alone(Between):
    """Has its way with the output y of one sample x, and of its layer's weight, where alone."""

    def __init__(self, way):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.way = way

    def forward(self, x):
        y = self.layers(x)
        return self.way(self, x, y) if len(x) == 1 else y


def counted(network, x, y):
    network.calls += 1
    return y


def pulled(network, x, y):
    """The same numbers, another gradient."""
    z = (x @ network.first.weight.T)[:, :3]
    return y + z - z.detach()


@pytest.mark.parametrize("samples", [2, 3, 8, 40])
def test_what_happens_to_one_sample_alone(samples):
    x = torch.randn(samples, 4)
    refused("neighbours", Alone(lambda network, x, y: 2 * y), x)
    refused("draws random", Alone(lambda network, x, y: y + 0 * torch.rand(1)), x)
    network = Alone(counted)
    empirical_ntk(network, x)
    assert network.calls == 0
    assert_exact(Alone(pulled), x)


# Few samples are recorded before anything else is known, up to a limit.


class Swollen(Between):
    """Takes much memory on the way; an error there is raised, replaced or forgotten."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        try:
            x.expand(1000, *x.shape).clone().sum()
        except Exception as error:  # the test plays a network that handles every error in its way
            if self.error == "raised":
                raise
            if self.error == "replaced":
                raise RuntimeError("no memory") from error
            x = 2 * x
        return self.layers(x)


@pytest.mark.parametrize("error", ["raised", "replaced", "forgotten"])
def test_few_samples_that_take_much_memory(error, no_fallback):
    assert_exact(Swollen(error), torch.randn(20, 4), memory=2**20)
