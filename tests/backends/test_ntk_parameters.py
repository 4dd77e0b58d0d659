"""empirical_ntk of parameters outside of modules that meet the samples in a sum or a product."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from naive_ntk import assert_exact
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


class Tokens(nn.Module):
    """A class token, positions, and scales of a residual branch, as in vision transformers."""

    def __init__(self, scale_shape=(4,)):
        super().__init__()
        self.inner, self.branch, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 6, 4))
        self.shift = nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.randn(scale_shape))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1) + self.places
        x = x + torch.tanh(self.branch(x)) * self.scale.reshape(1, 1, -1)
        return self.last(torch.sub(x, self.shift, alpha=0.3).sin().mean(1))


class PerWindow(nn.Module):
    """A bias of the positions in a window, for (samples · windows, …)."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.places = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        n = len(x)
        x = self.inner(x).view(-1, 2, 4) + self.places
        return self.last(x.tanh().view(n, -1, 4).mean(1))


class Scaled(nn.Module):
    """Channels of an image: the scale comes first, and has the axes of the image."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Conv2d(3, 4, 2), nn.Linear(4, 2)
        self.scale, self.shift = (nn.Parameter(torch.randn(4, 1, 1)) for _ in "ab")

    def forward(self, x):
        return self.last((self.shift + self.scale * self.inner(x)).tanh().mean((2, 3)))


@pytest.mark.parametrize("network", [Tokens, PerWindow], ids=["tokens", "windows"])
@pytest.mark.parametrize("samples", [1, 2, 5, 6])
def test_uses_have_a_rule(network, samples, no_fallback):
    network, length = network(), {Tokens: 5, PerWindow: 6}[network]
    assert_exact(network, torch.randn(samples, length, 3))
    assert_exact(network, torch.randn(samples, length, 3), torch.randn(3, length, 3))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,)])
def test_a_gain_of_vectors(shape, no_fallback):
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.gain, self.shift = (nn.Parameter(torch.randn(shape)) for _ in "ab")

        def forward(self, x):
            return self.last((self.gain * self.inner(x)).tanh() - self.shift)

    assert_exact(Gain(), torch.randn(4, 3))


@pytest.mark.parametrize("memory", [20_000, 100_000, 2**30])
def test_uses_in_parts(memory, no_fallback):
    """With all outputs in one pass, in stages, and in tiles."""
    assert_exact(Tokens(), torch.randn(6, 5, 3), memory=memory)
    assert_exact(Scaled(), torch.randn(6, 3, 5, 4), memory=memory)


class Again(Tokens):
    """Uses that no rule covers: twice, through one view twice, and in a function of itself."""

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1) + self.places
        scale = self.scale.reshape(1, 1, -1)
        x = x * scale + torch.tanh(self.branch(x)) * scale
        return self.last((x + self.shift * self.shift).sin().mean(1))


def test_uses_without_a_rule(fallback):
    assert_exact(Again(), torch.randn(4, 5, 3))
    assert fallback


class TimeFirst(nn.Module):
    """A shift of (T, N, F), where T may be N; the layers see the samples first."""

    def __init__(self, inside):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.shift, self.inside = nn.Parameter(torch.randn(4)), inside

    def forward(self, x):
        if self.inside:
            return self.last((self.inner(x).transpose(0, 1) * self.shift).tanh().mean(0))
        order = x[:, 0, 0].argsort()
        x = (self.inner(x)[order] * self.shift)[order.argsort()]
        return self.last(x.tanh().mean(1))


@pytest.mark.parametrize("inside", [True, False], ids=["transposed", "sorted"])
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_samples_that_leave_their_rows_at_a_use(inside, samples, fallback):
    """The layers keep their rules; only the shift goes through plain autograd."""
    network = TimeFirst(inside)
    assert_exact(network, torch.randn(samples, 4, 3))
    assert set(fallback) <= {1}
    assert samples != 4 or fallback


def test_a_use_with_a_gradient_hook(fallback):
    network = Tokens()
    network.scale.register_hook(lambda gradient: 3 * gradient)
    assert_exact(network, torch.randn(3, 5, 3))
    assert set(fallback) == {1}


def test_a_sum_of_two_parameters(fallback):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.one, self.other = (nn.Parameter(torch.randn(1, 4)) for _ in "ab")

        def forward(self, x):
            return self.last(F.softplus(self.inner(x) + self.one * self.other))

    assert_exact(Two(), torch.randn(4, 3))
    assert fallback


def test_operations_that_differ_from_one_sample_to_several(fallback):
    """torch adds the bias of a linear function of transposed rows in an operation of its own."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
            self.places = nn.Parameter(torch.randn(1, 5, 4))

        def forward(self, x):
            x = (self.inner(x) + self.places).transpose(0, 1)
            return self.last(F.linear(x, self.weight, self.bias).tanh().mean(0))

    assert_exact(Functional(), torch.randn(4, 5, 3))
    assert_exact(Functional(), torch.randn(4, 5, 3), torch.randn(3, 5, 3))
    assert max(fallback) <= 3  # weight, bias and places; the layers keep their rules
