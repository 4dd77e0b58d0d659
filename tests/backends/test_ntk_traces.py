"""empirical_ntk and randomness, hooks and replaced code: refused, or right and without a trace."""

import copy
import random

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import torch.nn.functional as F
from lnsim_torch import empirical_ntk
from naive_ntk import TOLERANCE, assert_exact, expected
from odd_networks import Between, mlp, refused
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("small_doubles")


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
