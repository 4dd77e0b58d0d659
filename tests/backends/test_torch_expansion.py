"""Linearised networks of every kind against plain autograd, row by row in double precision."""

import copy
import random
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch.linearization.descent import linearize
from lnsim_torch.linearization.expansion import backward_mode, forward_mode
from lnsim_torch.ntk.kernel import empirical_ntk
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("small_doubles")


class Plain(nn.Module):
    """Two layers and what is between them: a function of this module and the first one's output."""

    def __init__(self, between=lambda self, h: torch.tanh(h)):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(5), persistent=False)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def through(layer):
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 2))


def shared_module():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, 2))


def tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    return network


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledDotProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = (part.unsqueeze(1) for part in self.layer(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(12, 2)).eval()


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True, bidirectional=True)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class Warped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 6)

    def forward(self, x):
        grid = F.affine_grid(self.layer(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).flatten(1)


class OfAllParameters(nn.Module):
    """A network that asks for its own parameters, each of which must be there once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.register_parameter("again", self.layer.weight)

    def forward(self, x):
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.layer(x.to(next(self.parameters()).dtype)) + penalty


def pruned():
    network = through(nn.Linear(3, 5))
    prune.l1_unstructured(network[0], "weight", 0.4)
    return network


def old_norm(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has a newer one
        return through(wrap(nn.Linear(3, 5)))


def called(network, x=None):
    network(torch.randn(2, 3) if x is None else x)
    return network


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def relative_to_mean(self, h):
    with torch.no_grad():
        mean = h.abs().mean(1, keepdim=True)
    return torch.tanh(h / mean)


def reversed_gradient(self, h):
    if h.requires_grad:
        h.register_hook(lambda g: -g)
    return torch.tanh(h)


def moving_average(self, h):
    self.seen.mul_(0.5).add_(0.5 * h.detach().mean(0))
    return torch.tanh(h - self.seen)


def counting(self, h):
    self.calls = getattr(self, "calls", 0) + 1
    return torch.tanh(h * self.calls)


def in_place(self, h):
    h[:, 1:] += h[:, :-1].clone()
    return h.tanh_()


def checkpointed(self, h):
    return checkpoint(lambda h: torch.tanh(h) * h, h, use_reentrant=False)


def checkpointed_layers():
    class Checkpointed(Plain):
        def forward(self, x):
            layers = nn.Sequential(self.first, nn.Tanh(), self.last)
            return checkpoint(layers, x, use_reentrant=False)

    return Checkpointed()


def sequences():
    return torch.randn(2, 3, 4)


def images():
    return torch.randn(2, 1, 4, 4)


def samples():
    return torch.randn(3, 3)


def indices():
    return torch.tensor([[0, 3], [1, 1]])


def embedded(**options):
    return nn.Sequential(nn.Embedding(4, 3, **options), nn.Flatten(), nn.Linear(6, 2))


FORWARD = {
    "a module used twice": (shared_module, samples),
    "tied weights": (tied, samples),
    "attention": (lambda: Attention().eval(), sequences),
    "scaled dot product": (ScaledDotProduct, sequences),
    "transformer encoder": (encoder, sequences),
    "LSTM": (lambda: Recurrent(nn.LSTM), sequences),
    "GRU": (lambda: Recurrent(nn.GRU), sequences),
    "own parameters": (OfAllParameters, samples),
    "pruned": (pruned, samples),
    "pruned, called": (lambda: called(pruned()), samples),
    "orthogonal": (lambda: through(parametrizations.orthogonal(nn.Linear(3, 5))), samples),
    "spectral norm, eval": (
        lambda: through(parametrizations.spectral_norm(nn.Linear(3, 5))).eval(),
        samples,
    ),
    "in place": (lambda: Plain(in_place), samples),
    "a counter": (lambda: Plain(counting), samples),
    "embedding": (embedded, indices),
    "sparse embedding": (lambda: embedded(sparse=True), indices),
    "renormalised embedding": (lambda: embedded(max_norm=0.5), indices),
}
BACKWARD = {
    "weight norm": (lambda: through(parametrizations.weight_norm(nn.Linear(3, 5))), samples),
    "old weight norm": (lambda: old_norm(nn.utils.weight_norm), samples),
    "old weight norm, called": (lambda: called(old_norm(nn.utils.weight_norm)), samples),
    "spectral norm": (lambda: through(parametrizations.spectral_norm(nn.Linear(3, 5))), samples),
    "old spectral norm": (lambda: old_norm(nn.utils.spectral_norm), samples),
    "old spectral norm, called": (lambda: called(old_norm(nn.utils.spectral_norm)), samples),
    "checkpoint": (lambda: Plain(checkpointed), samples),
    "checkpoint of layers": (checkpointed_layers, samples),
    "hardsigmoid": (lambda: Plain(lambda self, h: F.hardsigmoid(3 * h)), samples),
    "hardsigmoid in place": (lambda: Plain(lambda self, h: F.hardsigmoid(3 * h, True)), samples),
    "grid sample": (Warped, images),
    "no_grad inside": (lambda: Plain(relative_to_mean), samples),
    "a hook on a gradient": (lambda: Plain(reversed_gradient), samples),
    "a gradient of its own": (lambda: Plain(lambda self, h: Rounded.apply(3 * h)), samples),
}
NETWORKS = FORWARD | BACKWARD | {"a moving average": (lambda: Plain(moving_average), samples)}


def dense(t):
    return t.to_dense() if t.is_sparse else t


def plain_jacobian(network, x):
    """The outputs and J, (outputs, parameters), of a network at its first call, row by row."""
    network = copy.deepcopy(network) if all(p.is_leaf for p in held(network)) else network
    trained = [p for p in network.parameters() if p.requires_grad]
    y = network(x)
    rows = []
    for value in y.flatten():
        row = torch.autograd.grad(value, trained, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([dense(g).flatten() for g in row]))
    return y.detach(), torch.stack(rows)


def held(network):
    return [
        t for m in network.modules() for t in m.__dict__.values() if isinstance(t, torch.Tensor)
    ]


def moved(linear):
    """Moves θ, and gives the way it went."""
    by = [torch.randn_like(p) for p in linear.parameters()]
    with torch.no_grad():
        for p, d in zip(linear.parameters(), by, strict=True):
            p.add_(d)
    return torch.cat([d.flatten() for d in by])


def gradients(values, linear, weights, **options):
    found = torch.autograd.grad(values, [*linear.parameters()], weights, **options)
    return torch.cat([dense(g).flatten() for g in found])


def close(found, expected, tolerance=1e-12):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kind", NETWORKS)
def test_value_and_gradient_are_those_of_plain_autograd(kind):
    build, sample = NETWORKS[kind]
    network, x = build(), sample()
    linear = linearize(network)
    at_start = linear(x)
    by = moved(linear)
    value = linear(x)
    weights = torch.randn_like(value)
    gradient = gradients(value, linear, weights)
    torch.testing.assert_close(linear(x), value, rtol=0, atol=0)  # every call sees the same
    y, jacobian = plain_jacobian(network, x)
    close(at_start, y)
    close(value, y + (jacobian @ by).reshape(y.shape))
    close(gradient, jacobian.T @ weights.flatten())


@pytest.mark.parametrize(
    ("kinds", "mode"), [(FORWARD, forward_mode), (BACKWARD, backward_mode)], ids=["fwd", "bwd"]
)
def test_forward_mode_is_taken_where_it_is_exact(kinds, mode):
    for kind, (build, sample) in kinds.items():
        linear = linearize(build())
        linear(sample())
        assert linear._mode is mode, kind


@pytest.mark.parametrize("mode", [forward_mode, backward_mode])
def test_derivatives_by_the_input_and_second_ones(mode):
    """By the input the model is no constant: d/dx of J(x) v too. By θ its Hessian is JᵀJ."""
    network, x = Plain(), samples().requires_grad_()
    linear = linearize(network)
    moved(linear)
    linear(x)
    linear._mode = mode
    torch.autograd.gradcheck(linear, x)
    torch.autograd.gradgradcheck(linear, x)
    gradient = gradients(linear(x).square().sum() / 2, linear, None, create_graph=True)
    along = torch.randn_like(gradient)
    _, jacobian = plain_jacobian(network, x.detach())
    close(gradients(gradient @ along, linear, None), jacobian.T @ (jacobian @ along))


@pytest.mark.parametrize(
    "kind", ["pruned", "old weight norm", "spectral norm", "hardsigmoid", "LSTM", "attention"]
)
def test_a_call_leaves_no_trace(kind):
    build, sample = NETWORKS[kind]
    network, x = build(), sample()
    settings = lambda: (  # noqa: E731
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
    )
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before, drawn, given = settings(), torch.get_rng_state(), x.clone()
    linear = linearize(network)
    own = {name: value.clone() for name, value in linear.state_dict().items()}
    linear(x).sum().backward()
    with pytest.raises((RuntimeError, AssertionError)):
        linear(x[..., :-1])
    assert not [*linear.origin.parameters()] and len([*linear.parameters()]) == len(
        [*network.parameters()]
    )
    assert settings() == before
    for found, expected in ((network.state_dict(), state), (linear.state_dict(), own)):
        assert [*found] == [*expected]
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(x, given)


@pytest.mark.parametrize("kind", ["pruned", "old weight norm", "spectral norm", "hardsigmoid"])
def test_copies_saved_states_and_other_precisions(kind):
    build, sample = NETWORKS[kind]
    network, x = build(), sample()
    linear = linearize(network)
    linear(x)
    moved(linear)
    value = linear(x).detach()
    assert torch.equal(copy.deepcopy(linear)(x), value)
    other = linearize(network)
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(x), value)
    with torch.no_grad():
        assert torch.equal(linear(x), value)
    with torch.inference_mode():
        assert torch.equal(linear(x.clone()), value)
        inside = linearize(network)
    inside(x).sum().backward()  # made in inference mode, it trains outside
    close(linear.float()(x.float()).double(), value, 1e-5)
    assert linear.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_in_single_precision(kind):
    network, x = Recurrent(kind), sequences()
    linear = linearize(copy.deepcopy(network).float())
    by = moved(linear).double()
    y, jacobian = plain_jacobian(network, x)
    close(linear(x.float()).double(), y + (jacobian @ by).reshape(y.shape), 1e-5)


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(3, 2), nn.Embedding(4, 2)

    def forward(self, x, index, *, scale=1.0, mask=None, more=None):
        h = scale * self.layer(x) + self.table(index)
        h = h if mask is None else h * mask
        h = h if more is None else h + more["shift"][0]
        return {"h": h.tanh(), "best": h.argmax(1), "mask": mask, "pair": (h**2, None), "n": 3}


@pytest.mark.parametrize("mode", [forward_mode, backward_mode])
def test_several_inputs_and_outputs(mode):
    network, x, index = Many(), samples(), torch.arange(3)
    named = {"scale": 2.0, "mask": torch.tensor([True, False]), "more": {"shift": [torch.ones(2)]}}
    linear = linearize(network)
    linear(x, index, **named)
    linear._mode = mode
    by = moved(linear)
    found, expected = linear(x, index, **named), network(x, index, **named)
    for name in ("best", "mask"):
        assert torch.equal(found[name], expected[name])
    assert found["n"] == 3 and found["pair"][1] is None
    for choose in (lambda out: out["h"], lambda out: out["pair"][0]):

        class One(Many):
            def forward(self, x, choose=choose):
                return choose(super().forward(x, index, **named))

        one = One()
        one.load_state_dict(network.state_dict())
        y, jacobian = plain_jacobian(one, x)
        close(choose(found), y + (jacobian @ by).reshape(y.shape))
        weights = torch.randn_like(y)
        gradient = gradients(choose(found), linear, weights, retain_graph=True)
        close(gradient, jacobian.T @ weights.flatten())


@pytest.mark.parametrize("between", [nn.Tanh(), nn.Hardsigmoid()], ids=["fwd", "bwd"])
def test_the_input_is_not_written_into(between):
    linear = linearize(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), between))
    x = samples()
    given = x.clone()
    for _ in range(2):
        linear(x).sum().backward()
        assert torch.equal(x, given)


@pytest.mark.parametrize("kind", ["pruned", "weight norm", "a module used twice"])
def test_the_kernel_and_the_linearisation_of_a_linearised_network_are_its_own(kind):
    build, sample = NETWORKS[kind]
    network, x = build(), sample()
    linear = linearize(network)
    moved(linear)
    close(empirical_ntk(linear, x), empirical_ntk(network, x))
    again = linearize(linear)
    close(again(x), linear(x))
    by = moved(again).split([p.numel() for p in linear.parameters()])
    with torch.no_grad():
        for p, d in zip(linear.parameters(), by, strict=True):
            p.add_(d.view_as(p))
    close(again(x), linear(x))


def test_function_transforms_go_through():
    network, x = Plain(), samples()
    linear = linearize(network)
    moved(linear)
    _, jacobian = plain_jacobian(network, x)

    def outputs(parameters, row):
        return torch.func.functional_call(linear, parameters, row[None])[0]

    for _ in range(2):  # before a call from outside, and after it
        found = torch.vmap(torch.func.jacrev(outputs), (None, 0))(
            dict(linear.named_parameters()), x
        )
        close(torch.cat([g.flatten(2) for g in found.values()], 2).flatten(0, 1), jacobian)
        linear(x)


def noise(self, h):
    return h + torch.randn_like(h)


RANDOM = {
    "functional dropout": lambda self, h: F.dropout(h, 0.5, self.training),
    "gumbel": lambda self, h: F.gumbel_softmax(h, hard=True),
    "bernoulli": lambda self, h: h * torch.bernoulli(torch.full((len(h), 1), 0.999)),
    "noise": noise,
    "python": lambda self, h: h if random.random() < 2 else -h,
    "numpy": lambda self, h: h if np.random.rand() < 2 else -h,  # noqa: NPY002
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_network_is_refused_at_every_call(kind):
    linear, x = linearize(Plain(RANDOM[kind])), samples()
    state = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"random numbers .* no function of its input"):
            linear(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_stochastic_depth_is_refused_in_training_mode_only():
    ops = pytest.importorskip("torchvision.ops")
    network, x = Plain(lambda self, h: self.depth(h)), samples()
    network.depth = ops.StochasticDepth(0.5, "row")
    with pytest.raises(ValueError, match="random numbers"):
        linearize(network)(x)
    network.eval()
    assert torch.equal(linearize(network)(x), network(x))


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize(
    ("build", "sample", "message"),
    [
        (lambda: Plain(lambda self, h: Squared.apply(h)), samples, "once_differentiable"),
        (lambda: nn.EmbeddingBag(4, 2), indices, "_embedding_bag"),
    ],
    ids=["once", "bag"],
)
def test_what_cannot_be_linearised_is_named(build, sample, message):
    network = build()
    linear, x = linearize(network), sample()
    with pytest.raises(ValueError, match=message) as raised:
        linear(x)
    assert str(raised.value).startswith(f"{type(network).__name__} cannot be linearised")
    assert "\n" not in str(raised.value)


def test_a_script_module_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        inner = torch.jit.script(nn.Linear(5, 5))
        activation = torch.jit.script(nn.SiLU())
    network = through(nn.Linear(3, 5))
    network[1] = activation  # without parameters it is a function like others
    x = samples()
    assert torch.equal(linearize(network)(x), network(x))
    network[1] = inner
    with pytest.raises(ValueError, match="Linear '1' is a ScriptModule"):
        linearize(network)


def test_errors_of_the_network_itself_come_through():
    linear = linearize(Plain())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(2, 4))


def test_torchvision_networks_whose_operations_forward_mode_does_not_know():
    models = pytest.importorskip("torchvision.models")
    network = models.mobilenet_v3_small(num_classes=2).eval()
    x = torch.randn(1, 3, 32, 32)
    linear = linearize(network)
    by = moved(linear)
    y, jacobian = plain_jacobian(network, x)
    close(linear(x), y + (jacobian @ by).reshape(y.shape))
    assert linear._mode is backward_mode
