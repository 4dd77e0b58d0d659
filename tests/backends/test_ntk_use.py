"""empirical_ntk on what its users bring: odd networks, odd input, in odd surroundings.

Each is right to rounding by the naive loop, or is refused in one line.
"""

import copy
import random

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import torch.nn.functional as F
from lnsim_torch import empirical_ntk
from lnsim_torch.ntk import layers as ntk_layers
from naive_ntk import TOLERANCE, assert_exact, expected, randomise
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("small_doubles")


def mlp(inputs=4, hidden=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def refused(match, network, x, **options):
    with pytest.raises(ValueError, match=match) as caught:
        empirical_ntk(network, x, **options)
    assert "\n" not in str(caught.value)


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
        except Exception as error:  # as a network may: it must not hide what was taken
            if self.error == "raised":
                raise
            if self.error == "replaced":
                raise RuntimeError("no memory") from error
            x = 2 * x
        return self.layers(x)


@pytest.mark.parametrize("error", ["raised", "replaced", "forgotten"])
def test_few_samples_that_take_much_memory(error, no_fallback):
    assert_exact(Swollen(error), torch.randn(20, 4), memory=2**20)


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


# Randomness.


class Drawn(nn.Module):
    """A layer, and then what `draw` makes of its output."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(4, 3), draw

    def forward(self, x):
        return self.draw(self.layer(x))


def generators():
    numpy_s = np.random.get_state()[1].tobytes()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy_s


DRAWS = {
    "functional dropout": lambda y: F.dropout(y, 0.01),
    "dropped samples": lambda y: y * torch.bernoulli(torch.full((len(y), 1), 0.99)),
    "hard gumbel": lambda y: F.gumbel_softmax(y, hard=True),
    "noise": lambda y: y + 1e-12 * torch.randn_like(y),
    "a draw without effect": lambda y: y + 0 * torch.rand(1),
    "Python's": lambda y: y if random.random() < 0.999 else 0 * y,
    "NumPy's": lambda y: y if np.random.random() < 0.999 else 0 * y,  # noqa: NPY002
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("samples", [1, 5])
def test_what_draws_random_numbers_is_refused_every_time(kind, samples):
    network, x = Drawn(DRAWS[kind]), torch.randn(samples, 4)
    before = generators()
    for _ in range(3):
        refused("draws random numbers", network, x)
    assert generators() == before


def test_any_of_numpys_generators_may_be_the_global_one():
    generator = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        assert_exact(mlp(), torch.randn(5, 4))
        refused("draws random", Drawn(DRAWS["NumPy's"]), torch.randn(5, 4))
    finally:
        np.random.set_bit_generator(generator)


def test_normal_numbers_in_store():
    """NumPy and Python draw them in pairs, and leave the generator alone for the second."""
    network, x = Drawn(lambda y: y + 0 * np.random.normal()), torch.randn(5, 4)  # noqa: NPY002
    np.random.normal()  # noqa: NPY002
    refused("draws random", network, x)
    network = Drawn(lambda y: y + 0 * random.gauss(0, 1))
    random.gauss(0, 1)
    refused("draws random", network, x)


def test_dropout_of_nothing_is_no_randomness():
    network = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    assert_exact(nn.Sequential(network, nn.Flatten(), nn.Linear(12, 2)), torch.randn(3, 3, 4))


# What is left behind.


class Touching(nn.Module):
    """Writes to all that it can reach."""

    def __init__(self, wrong=False):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(6), persistent=False)
        self.wrong = wrong

    def forward(self, x):
        with torch.no_grad():
            self.calls += 1
            self.scale = self.scale + 1
            self.first.weight.mul_(1.1)
            self.last.bias.data.add_(1)
        self.first.training = False
        if self.wrong:
            raise ArithmeticError("no")
        return self.last(torch.tanh(self.first(x.mul_(2))) * self.scale)


def everything_of(network):
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = [module.training for module in network.modules()]
    hooks = [len(module._forward_hooks) for module in network.modules()]
    names = [sorted(vars(module)) for module in network.modules()]
    return copies, flags, hooks, names, [p.grad for p in network.parameters()]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_call_leaves_no_trace(wrong):
    network, x = Touching(wrong), torch.randn(5, 4)
    before, copies, drawn = everything_of(network), x.clone(), generators()
    if wrong:
        with pytest.raises(ArithmeticError):
            empirical_ntk(network, x)
    else:  # of the function that is met when the network is as it was
        found, right = empirical_ntk(network, x), kernel_of_touched(network, 2 * x)
        assert (found - right).abs().max() <= TOLERANCE * right.abs().max()
    after = everything_of(network)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert after[1:] == before[1:]
    assert torch.equal(x, copies)
    assert generators() == drawn


def kernel_of_touched(network, x):
    """Of `Touching`, by hand: W is 1.1 times what it was, the bias one more, the scale two."""
    first, last = (copy.deepcopy(layer) for layer in (network.first, network.last))
    with torch.no_grad():
        first.weight.mul_(1.1)
        last.bias.add_(1)
    rows = []
    for sample in x:
        y = last(torch.tanh(first(sample)) * 2)
        parameters = [*first.parameters(), *last.parameters()]
        for value in y:
            g = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in g]))
    rows = torch.stack(rows).view(len(x), len(y), -1)
    return torch.einsum("ncp,mdp->nmcd", rows, rows)


@pytest.mark.parametrize("way", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_in_training_mode(way):
    network = nn.Sequential(way(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).train()
    x = torch.randn(5, 4)
    before = everything_of(network)[0]
    kernels = [empirical_ntk(network, x) for _ in range(2)]
    assert torch.equal(*kernels)
    after = everything_of(network)[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for _ in range(300):  # converged: one more step of the power iteration changes nothing
        network(x)
    found = empirical_ntk(network, x)
    assert (found - expected(network.eval(), x)).abs().max() <= 1e-10 * found.abs().max()


def test_an_embedding_that_renormalises():
    network = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3))
    words = torch.randint(7, (4, 3))
    before = network[0].weight.detach().clone()
    found = empirical_ntk(network, words)
    assert torch.equal(network[0].weight, before)
    network(words)  # renormalised for good, as the naive loop would do on its way
    right = expected(network, words)
    assert (found - right).abs().max() <= TOLERANCE * right.abs().max()


# Modules that do something else than their class says.


def test_global_hooks_that_change_outputs():
    network, x = mlp(), torch.randn(4, 4)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: y * 3 if isinstance(module, nn.Linear) else None
    )
    try:
        assert_exact(network, x)
    finally:
        handle.remove()


def test_hooks_of_modules_that_change_inputs_and_outputs(no_fallback):
    network = mlp()
    network[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    network[0].register_forward_hook(lambda module, args, y: y * 3)
    network[2].register_forward_hook(lambda module, args, y: y.sin_(), prepend=True)
    assert_exact(network, torch.randn(4, 4))
    assert len(network[0]._forward_hooks) == 1


def test_hooks_of_parameters_are_those_of_autograd(fallback):
    network = mlp()
    network[0].weight.register_hook(lambda gradient: 2 * gradient)
    assert_exact(network, torch.randn(4, 4))
    assert fallback


REPLACED = {
    "forward": (nn.Linear, "forward", lambda self, x: F.linear(x, self.weight**2, self.bias)),
    "_conv_forward": (
        nn.Conv1d,
        "_conv_forward",
        lambda self, x, weight, bias: F.conv1d(x, weight**2, bias),
    ),
    "functional": (F, "linear", lambda x, weight, bias=None: x @ (weight.T**2) + bias),
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("disguised", [False, True])
def test_code_of_torch_that_was_replaced(kind, disguised, monkeypatch, fallback):
    owner, name, code = REPLACED[kind]
    network = nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 5, 1), nn.Flatten(), mlp(5))
    if disguised:
        original = getattr(owner, name)
        code.__name__, code.__qualname__ = original.__name__, original.__qualname__
        code.__module__ = getattr(original, "__module__", None) or "torch"
    monkeypatch.setattr(owner, name, code)
    assert_exact(network, torch.randn(4, 4))
    assert fallback


class SavedTooEarly(nn.Module):
    """Works in place on what a layer was given, which no weight's gradient survives."""

    def __init__(self):
        super().__init__()
        self.first, self.side, self.last = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        side = self.side(h)
        h.mul_(2)
        return side + self.last(h)


def test_a_layers_input_that_is_overwritten():
    with pytest.raises(RuntimeError, match="inplace operation"):
        empirical_ntk(SavedTooEarly(), torch.randn(4, 4))


class Checkpointed(Between):
    def forward(self, x):
        return self.last(checkpoint(lambda z: torch.tanh(self.first(z)), x, use_reentrant=False))


def test_checkpointed_networks():
    assert_exact(Checkpointed(), torch.randn(5, 4))


def test_reentrant_checkpoints_are_refused():
    class Reentrant(Between):
        def forward(self, x):
            h = torch.tanh(self.first(x))
            return checkpoint(self.last, h, use_reentrant=True)

    refused("use_reentrant=False", Reentrant(), torch.randn(5, 4))


class Forces(Between):
    """The gradient of an energy at its input."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.requires_grad_()
            energy = self.layers(x).square().sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_networks_that_differentiate_inside():
    network, x = Forces(), torch.randn(5, 4)
    assert_exact(network, x)
    assert_exact(network, x, memory=20_000)


def test_parameters_that_are_not_used(no_fallback):
    network = mlp()
    network.add_module("aside", nn.Linear(1000, 1000))
    network.forward = lambda x: network[2](network[1](network[0](x)))
    assert_exact(network, torch.randn(5, 4))


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
