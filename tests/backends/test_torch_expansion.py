"""Linearised networks of every kind against plain autograd, row by row in double precision."""

import copy

import pytest

torch = pytest.importorskip("torch")

from linearised_networks import (
    BACKWARD,
    FORWARD,
    NETWORKS,
    Plain,
    Recurrent,
    close,
    dense,
    moved,
    plain_jacobian,
    samples,
    sequences,
)
from lnsim_torch.linearization.descent import linearize
from lnsim_torch.linearization.expansion import backward_mode, forward_mode
from lnsim_torch.ntk.kernel import empirical_ntk
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


def gradients(values, linear, weights, **options):
    found = torch.autograd.grad(values, [*linear.parameters()], weights, **options)
    return torch.cat([dense(g).flatten() for g in found])


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
