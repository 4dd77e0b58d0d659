"""What linearised networks leave alone, and networks that cannot be linearised."""

import copy
import random
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from linearised_networks import (
    NETWORKS,
    Plain,
    close,
    indices,
    moved,
    plain_jacobian,
    samples,
    through,
)
from lnsim_torch.linearization.descent import linearize
from lnsim_torch.linearization.expansion import backward_mode
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


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


@pytest.mark.parametrize("between", [nn.Tanh(), nn.Hardsigmoid()], ids=["fwd", "bwd"])
def test_the_input_is_not_written_into(between):
    linear = linearize(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), between))
    x = samples()
    given = x.clone()
    for _ in range(2):
        linear(x).sum().backward()
        assert torch.equal(x, given)


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
