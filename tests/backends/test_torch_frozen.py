"""What the first call of a linearised network looks for in it, beyond how it is differentiated."""

import io

import pytest

torch = pytest.importorskip("torch")

from lnsim_torch.linearization.descent import linearize
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def check(network, x, tolerance):
    """f + J (θ − θ₀) and Jᵀg, with J row by row by plain autograd."""
    y = network(x)
    trained = [*network.parameters()]
    rows = [torch.autograd.grad(entry, trained, retain_graph=True) for entry in y.reshape(-1)]
    J = torch.stack([flat(row) for row in rows])
    linear = linearize(network)
    by = 0.3 * torch.randn(J.shape[1], dtype=J.dtype)
    nn.utils.vector_to_parameters(flat(linear.parameters()) + by, linear.parameters())
    found, expected = linear(x), y.detach() + (J @ by).reshape(y.shape)
    assert found.dtype == y.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    g = torch.randn_like(found)
    found.backward(g)
    pulled = J.T @ g.reshape(-1)
    gradient = flat(p.grad for p in linear.parameters())
    assert (gradient - pulled).abs().max() <= tolerance * pulled.abs().max()


class InAList(Small):
    def __init__(self):
        super().__init__()
        self.weights = [self.a.weight, self.b.weight]

    def forward(self, x):
        return torch.tanh(x @ self.weights[0].T) @ self.weights[1].T


def in_a_closure():
    network = Small()
    network.a.register_forward_hook(lambda module, given, y: y * network.b.bias.sum())
    return network


class Reentrant(Small):
    def forward(self, x):
        return checkpoint(self.b, torch.tanh(self.a(x)), use_reentrant=True)


class ReentrantFromALeaf(Small):
    """A leaf at its input makes it differentiable, by backward() alone."""

    def forward(self, x):
        return self.b(checkpoint(self.a, x.clone().requires_grad_(), use_reentrant=True))


class ReturnsAnObject(Small):
    def forward(self, x):
        result = io.StringIO()
        result.value = super().forward(x)
        return result


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (InAList, r"uses a parameter \(\d, \d\) that it does not take from its module"),
        (in_a_closure, r"uses a parameter \(2,\) that it does not take from its module"),
        (Reentrant, "checkpoints with use_reentrant=True.*use_reentrant=False works"),
        (ReentrantFromALeaf, "checkpoints with use_reentrant=True"),
        (ReturnsAnObject, "returns a StringIO that holds tensors"),
    ],
)
def test_parameters_and_outputs_out_of_reach_are_refused(make, message):
    linear = linearize(make())
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            linear(torch.randn(4, 3))


def test_a_leaf_that_the_call_makes_is_no_parameter():
    class Score(Small):
        def forward(self, x):
            x = x.detach().requires_grad_()
            energy = super().forward(x).square().sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0][:, :1] + self.b.bias.sum()

    check(Score(), torch.randn(4, 3), 1e-12)


def test_half_precision_inside_a_network_is_known():
    class Autocast(Small):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    class Cast(Small):
        def forward(self, x):
            hidden = torch.tanh(self.a(x)).bfloat16()
            weight, bias = self.b.weight.bfloat16(), self.b.bias.bfloat16()
            return nn.functional.linear(hidden, weight, bias).double()

    check(Autocast().float(), torch.randn(4, 3, dtype=torch.float32), 0.03)
    check(Cast(), torch.randn(4, 3), 0.03)


def test_random_numbers_of_a_later_call_are_refused():
    class NoiseInLargeBatches(Small):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x) if len(x) > 4 else x)

    linear, few, many = linearize(NoiseInLargeBatches()), torch.randn(4, 3), torch.randn(5, 3)
    linear(few)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers"):
        linear(many)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(linear(few), linear(few))
