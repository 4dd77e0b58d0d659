"""empirical_ntk against the Jacobian taken sample by sample, output by output, in float64."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lnsim_torch.ntk import kernel as ntk_module
from lnsim_torch.ntk import layers as ntk_layers
from lnsim_torch.ntk import plan, products
from lnsim_torch.ntk.kernel import empirical_ntk
from lnsim_torch.untouched import Untouched
from naive_ntk import TOLERANCE, assert_exact, expected, randomise
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


class Mean(nn.Module):
    """(N, channels, …) to (N, channels)."""

    def forward(self, x):
        return x.flatten(2).mean(2)


class MeanOverTime(nn.Module):
    def forward(self, x):
        return x.mean(1)


def head(*layers, channels, outputs=3):
    return nn.Sequential(*layers, nn.Tanh(), Mean(), nn.Linear(channels, outputs)).eval()


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
    assert set(fallback) == {5}


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


class Block(nn.Module):
    """Residual block of a narrow ResNet (norm) or Wide ResNet (no norm, convolved shortcut)."""

    def __init__(self, cin, cout, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=not norm)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=norm)
        size = 1 if norm else 3
        change = stride != 1 or cin != cout
        self.shortcut = nn.Conv2d(cin, cout, size, stride, size // 2) if change else nn.Identity()
        self.after = norm

    def forward(self, x):
        start = x if self.after else self.relu(x)
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(start)))))
        y = y + self.shortcut(x)
        return self.relu(y) if self.after else y


def narrow_resnet(norm, width=4):
    blocks = [Block(width << max(i - 1, 0), width << i, 1 + (i > 0), norm) for i in range(3)]
    stem = nn.Conv2d(3, width, 3, 1, 1)
    return randomise(head(stem, *blocks, channels=4 * width)).eval()


@pytest.mark.parametrize("norm", [True, False], ids=["ResNet", "Wide ResNet"])
def test_residual_networks(norm, no_fallback):
    network = narrow_resnet(norm)
    assert_exact(network, torch.randn(3, 3, 8, 8))
    assert_exact(network, torch.randn(3, 3, 8, 8), torch.randn(2, 3, 8, 8))


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
