"""empirical_ntk in passes, tiles and stages, and what it refuses; random networks."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lnsim_torch.ntk import kernel as ntk_module
from lnsim_torch.ntk import plan
from lnsim_torch.ntk.kernel import empirical_ntk
from lnsim_torch.untouched import Untouched
from naive_ntk import TOLERANCE, assert_exact, expected, randomise
from ntk_networks import head, narrow_resnet
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


def test_a_last_tile_of_one_sample(fallback):
    """In it an axis of length one could be taken for the samples'; the plan stands."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.mix = nn.Embedding(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.mix(torch.tanh(x + self.places(torch.arange(4)[None]))).mean(1)

    assert_exact(Positions(), torch.randn(5, 4, 6), memory=20_000)
    assert set(fallback) == {1}


class HandWritten(torch.autograd.Function):
    """2x, whose backward pass looks at the numbers, so that passes cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2 if gradient.abs().sum().item() >= 0 else 3)


class Doubled(nn.Module):
    def forward(self, x):
        return HandWritten.apply(x)


@pytest.mark.parametrize("shared", [0, 2**22])
@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_passes_one_by_one_and_shared(shared, outputs, monkeypatch):
    """Shared by all outputs, where every operation allows it and there is room."""
    monkeypatch.setattr(ntk_module, "_SHARED", shared)
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(k) or grad(*a, **k))
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    stubborn = nn.Sequential(nn.Linear(5, 4), Doubled(), nn.Tanh(), nn.Linear(4, 3))
    for of, wanted in ((network, 1 if shared else 3), (stubborn, 4 if shared else 3)):
        calls.clear()
        x = torch.randn(6, 5)
        found = empirical_ntk(of, x, outputs=outputs)
        assert len(calls) == wanted
        right = expected(of, x, outputs=outputs)
        assert (found - right).abs().max() <= TOLERANCE * right.abs().max()


@pytest.mark.parametrize("memory", [120_000, 400_000, 1_000_000, 2**30])
@pytest.mark.parametrize("others", [None, 4])
def test_tiles_and_stages_change_nothing(memory, others):
    network, x = narrow_resnet(norm=True, width=2), torch.randn(7, 3, 8, 8)
    x2 = others and torch.randn(others, 3, 8, 8)
    assert_exact(network, x, x2, memory=memory)


def test_what_autograd_saves_is_counted_once_each():
    """Every tensor, though what is not kept alive leaves its address to the next."""
    network = nn.Sequential(nn.Linear(64, 4096), *(nn.Sigmoid() for _ in range(8)))
    subject = Untouched(network)
    recorder = partial(plan._record, subject, [network[0]])
    x = torch.randn(1, 64)
    _, saved = plan._first_look(subject, recorder, x, torch.contiguous_format)
    assert saved == (64 + 8 * 4096) * 8  # the sample, and what every sigmoid gives


def test_plain_parameters_in_groups(fallback):
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(torch.tanh(self.b(self.a(x)))))

    assert_exact(Repeated(), torch.randn(5, 8), memory=30_000)
    assert len(fallback) > 3 and max(fallback) < 4


def test_networks_that_refuse_channels_last():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(64, 2)

        def forward(self, x):
            return self.last(self.conv(x).view(len(x), -1))

    assert_exact(Views(), torch.randn(3, 3, 6, 6))


def test_float64_accumulation():
    network = narrow_resnet(norm=True).float()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float32)
    right = expected(network, x).double()
    found = empirical_ntk(network, x)
    assert found.dtype == torch.float32
    assert (found - right).abs().max() <= 1e-5 * right.abs().max()
    found = empirical_ntk(network, x, accumulate=torch.float64)
    assert found.dtype == torch.float64
    # Exactly the products of the float32 gradients: symmetric and positive to float64 rounding.
    matrix = found.transpose(1, 2).reshape(12, 12)
    assert (matrix - matrix.T).abs().max() <= TOLERANCE * matrix.abs().max()
    assert (found - right).abs().max() <= 1e-5 * right.abs().max()


def test_leaves_everything_as_it_was():
    network, x = narrow_resnet(norm=True), torch.randn(3, 3, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    old = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.no_grad():
            empirical_ntk(network, x)
            assert not torch.is_grad_enabled()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = old
    assert all(not module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


class CentredOnBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


BAD = {
    "batch norm": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "training mode"),
    "no statistics": (nn.BatchNorm1d(4, track_running_stats=False).eval(), "no running statistics"),
    "dropout": (nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "random"),
    "mixing": (nn.Sequential(nn.Linear(4, 3), CentredOnBatch()), "neighbours"),
    "mixing, and no layer with a rule": (nn.Sequential(nn.PReLU(), CentredOnBatch()), "neighbours"),
    "hidden dropout": (nn.Sequential(nn.Linear(4, 30), FunctionalDropout()), "random"),
    "no parameter": (nn.Tanh(), "no parameter"),
    "frozen": (nn.Linear(4, 3).requires_grad_(False), "no parameter"),
    "not (N, C)": (nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))), r"\(N, C\)"),
    "not a tensor": (nn.LSTM(4, 3), r"\(N, C\)"),
}


@pytest.mark.parametrize(("network", "message"), BAD.values(), ids=BAD)
def test_what_has_no_kernel_is_refused(network, message):
    x = torch.randn(5, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=message) as caught:
        empirical_ntk(network, x)
    assert "\n" not in str(caught.value)


def test_a_network_that_mixes_samples_is_refused_where_tiles_are_single():
    network, x = nn.Sequential(nn.Linear(4, 3), CentredOnBatch()), torch.randn(5, 4)
    with pytest.raises(ValueError, match="neighbours"):
        empirical_ntk(network, x, memory=1000)


def test_bad_arguments():
    network, x = nn.Linear(4, 3), torch.randn(5, 4)
    with pytest.raises(ValueError, match="outputs must be one of full, mean, sum; got 'all'"):
        empirical_ntk(network, x, outputs="all")
    with pytest.raises(ValueError, match="memory is too small for one sample"):
        empirical_ntk(network, x, memory=100)
    with pytest.raises(ValueError, match="the same shape"):
        empirical_ntk(network, x, torch.randn(5, 3))
    with pytest.raises(ValueError, match="at least one sample"):
        empirical_ntk(network, x[:0])
    with pytest.raises(ValueError, match="not finite"):
        empirical_ntk(network, x * torch.nan)


@st.composite
def networks(draw):
    """A random small convolutional network and samples for it."""
    size = draw(st.integers(4, 6))
    channels = draw(st.integers(1, 3))
    samples = draw(st.integers(1, 4))
    shape = (samples, channels, size, size)
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, channels]))
        wide = groups * draw(st.integers(1, 3))
        layers.append(
            nn.Conv2d(
                channels,
                wide,
                draw(st.integers(1, 3)),
                padding=draw(st.integers(1, 2)),
                stride=draw(st.integers(1, 2)),
                dilation=draw(st.integers(1, 2)) if size > 4 else 1,
                groups=groups,
                bias=draw(st.booleans()),
            )
        )
        layers.append(
            draw(
                st.sampled_from(
                    [nn.BatchNorm2d(wide), nn.GroupNorm(1, wide), nn.Identity(), nn.Softplus()]
                )
            )
        )
        layers.append(nn.ReLU(inplace=draw(st.booleans())))
        channels = wide
        if draw(st.booleans()):
            layers.append(nn.AdaptiveAvgPool2d(size))
        else:
            layers.append(nn.Upsample(size=(size, size)))
    return head(*layers, channels=channels, outputs=draw(st.integers(1, 4))), shape


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([2**20, 2**30]), st.sampled_from([0, 2**22]))
def test_random_networks(drawn, memory, shared):
    network, shape = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ntk_module, "_SHARED", shared)
        assert_exact(randomise(network), torch.randn(shape), memory=memory)
    kernel = empirical_ntk(network, torch.randn(shape))
    torch.testing.assert_close(kernel, kernel.permute(1, 0, 3, 2))


@pytest.mark.gpu
def test_on_a_gpu():
    network, x = narrow_resnet(norm=True).cuda(), torch.randn(5, 3, 8, 8).cuda()
    assert_exact(network, x)
    single = empirical_ntk(network.float(), x.float())
    right = expected(network, x.float())
    assert (single - right).abs().max() <= 1e-5 * right.abs().max()
