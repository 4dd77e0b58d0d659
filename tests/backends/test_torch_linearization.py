"""The linearised module against differences, the predictor against long explicit training."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from lnsim_torch.linearization.descent import (
    effective_rank,
    kernel_change,
    label_alignment,
    linearize,
    mse_predictor,
)
from lnsim_torch.ntk.kernel import empirical_ntk
from torch import nn

INFINITY = float("inf")


pytestmark = pytest.mark.usefixtures("small_doubles")


def small_network():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Softplus(),
        nn.Linear(5, 2),
    ).eval()


def move(module, directions, scale):
    with torch.no_grad():
        for p, direction in zip(module.parameters(), directions, strict=True):
            p.add_(direction, alpha=scale)


def moved_outputs(module, x, directions, scale):
    move(module, directions, scale)
    with torch.no_grad():
        value = module(x)
    move(module, directions, -scale)
    return value


def test_linearised_module_is_the_first_order_model():
    network, x = small_network(), torch.randn(4, 2, 4, 4)
    linear = linearize(network)
    directions = [torch.randn_like(p) for p in network.parameters()]
    start = network(x)
    torch.testing.assert_close(linear(x), start)
    h = 1e-6
    ahead, behind = (moved_outputs(network, x, directions, s) for s in (h, -h))
    slope = (ahead - behind) / (2 * h)
    for scale in (1.0, -0.5, 3.0):  # exactly affine: the same slope at any distance
        found = (moved_outputs(linear, x, directions, scale) - start) / scale
        torch.testing.assert_close(found, slope, rtol=1e-7, atol=1e-8)


def test_linearised_module_keeps_its_kernel_and_leaves_the_network_alone():
    network, x = small_network(), torch.randn(3, 2, 4, 4)
    kernel = empirical_ntk(network, x)
    linear = linearize(network)
    move(linear, [torch.randn_like(p) for p in linear.parameters()], 1.0)
    torch.testing.assert_close(empirical_ntk(linear, x), kernel)
    torch.testing.assert_close(empirical_ntk(network, x), kernel)
    assert all(p.requires_grad for p in network.parameters())


def test_linearised_module_trains_with_any_optimiser():
    network, x, y = small_network(), torch.randn(6, 2, 4, 4), torch.randn(6, 2)
    network[0].requires_grad_(False)
    for optimiser in (torch.optim.SGD, torch.optim.Adam):
        linear = linearize(network).train()
        assert not linear.origin.training
        steps = optimiser(linear.parameters(), lr=1e-2)
        losses = []
        for _ in range(30):
            loss = (linear(x) - y).square().mean() / 2
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    network, x = Tied(), torch.randn(4, 3)
    linear = linearize(network)
    assert len(list(linear.parameters())) == 3
    torch.testing.assert_close(empirical_ntk(linear, x), empirical_ntk(network, x))


def test_linearize_refuses():
    with pytest.raises(ValueError, match="training mode"):
        linearize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="no parameter"):
        linearize(nn.Tanh())


@pytest.mark.parametrize("full", [True, False], ids=["full kernel", "shared kernel"])
def test_predictor_is_gradient_descent_on_the_linear_model(full):
    """A linear network shares one kernel over its outputs; any network has a full one."""
    network = small_network() if full else nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    x, x_test, y = torch.randn(5, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.randn(5, 2)
    linear = linearize(network)
    outputs = "full" if full else "mean"
    kernel, cross = (empirical_ntk(network, *z, outputs=outputs) for z in ((x,), (x_test, x)))
    lr = 0.3
    with torch.no_grad():
        f0, f0_test = linear(x), linear(x_test)
    predictor = mse_predictor(kernel, f0, y, lr, cross, f0_test)
    optimiser = torch.optim.SGD(linear.parameters(), lr=lr)
    for step in range(301):
        if step in (0, 1, 2, 17, 300):
            with torch.no_grad():
                torch.testing.assert_close(
                    predictor.train(step, discrete=True), linear(x), rtol=1e-9, atol=1e-10
                )
                torch.testing.assert_close(
                    predictor.test(step, discrete=True), linear(x_test), rtol=1e-9, atol=1e-10
                )
        optimiser.zero_grad()
        ((linear(x) - y).square().mean() / 2).backward()
        optimiser.step()


def random_problem(rank=6):
    features, f0, y = torch.randn(6, rank), torch.randn(6, 3), torch.randn(6, 3)
    test_features, f0_test = torch.randn(4, rank), torch.randn(4, 3)
    return features @ features.T, f0, y, test_features @ features.T, f0_test


def test_flow_is_the_limit_of_small_steps_and_solves_its_equation():
    kernel, f0, y, cross, f0_test = random_problem()
    flow = mse_predictor(kernel, f0, y, 0.1, cross, f0_test)
    fine = mse_predictor(kernel, f0, y, 0.1 / 2**20, cross, f0_test)
    torch.testing.assert_close(
        flow.test(40), fine.test(40 * 2**20, discrete=True), rtol=1e-5, atol=1e-6
    )
    rate = (flow.train(7 + 1e-4) - flow.train(7 - 1e-4)) / 2e-4
    torch.testing.assert_close(rate, -0.1 / f0.numel() * kernel @ (flow.train(7) - y))


@pytest.mark.parametrize("discrete", [True, False])
def test_infinite_time(discrete):
    kernel, f0, y, cross, f0_test = random_problem()
    predictor = mse_predictor(kernel, f0, y, 0.5, cross, f0_test)
    torch.testing.assert_close(predictor.train(INFINITY, discrete=discrete), y)
    interpolated = f0_test - cross @ torch.linalg.solve(kernel, f0 - y)
    torch.testing.assert_close(predictor.test(INFINITY, discrete=discrete), interpolated)


@pytest.mark.parametrize("discrete", [True, False])
def test_singular_kernel(discrete):
    """What the kernel does not see stays; the limit is the pseudo-inverse's."""
    kernel, f0, y, cross, f0_test = random_problem(rank=2)
    predictor = mse_predictor(kernel, f0, y, 0.5, cross, f0_test)
    pseudo_inverse = torch.linalg.pinv(kernel, hermitian=True, rtol=1e-10)
    left = (f0 - y) - kernel @ pseudo_inverse @ (f0 - y)
    torch.testing.assert_close(predictor.train(INFINITY, discrete=discrete), y + left)
    limit = f0_test - cross @ pseudo_inverse @ (f0 - y)
    torch.testing.assert_close(predictor.test(INFINITY, discrete=discrete), limit)
    torch.testing.assert_close(predictor.test(10**7, discrete=discrete), limit)


def test_steps_that_overshoot():
    """At (1 − a) negative the residual changes sign; at a = 1 it goes in one step."""
    kernel, f0, y = torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1), torch.ones(3, 1)
    predictor = mse_predictor(kernel, f0, y, 1.5, kernel, f0)
    residual = torch.ones(3)
    for step in range(5):
        found = predictor.train(step, discrete=True)
        torch.testing.assert_close(found[:, 0], 1 - residual)
        torch.testing.assert_close(predictor.test(step, discrete=True), found)
        residual = residual * (1 - 1.5 * torch.tensor([1.0, 2.0, 3.0]) / 3)
    with pytest.raises(ValueError, match=r"no limit: lr is 1\.5 times"):
        mse_predictor(kernel, f0, y, 3.0).train(INFINITY, discrete=True)


def test_many_times_at_once():
    predictor = mse_predictor(*random_problem()[:3], 0.1, *random_problem()[3:])
    times = [0.0, 1.0, 50.0, INFINITY]
    for values in (predictor.train, predictor.test):
        together = values(times)
        assert together.shape[0] == 4 and together.dtype == torch.float64
        for t, value in zip(times, together, strict=True):
            torch.testing.assert_close(values(t), value)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 40), st.floats(0.01, 1.9))
def test_predictor_property(samples, outputs, steps, share):
    """Random kernels of any rank: prediction equals the recursion, up to the edge of stability."""
    features = torch.randn(samples, outputs, 4)
    kernel = torch.einsum("ncp,mdp->nmcd", features, features)
    f0, y = torch.randn(samples, outputs), torch.randn(samples, outputs)
    top = torch.linalg.eigvalsh(kernel.transpose(1, 2).reshape(f0.numel(), -1)).max()
    lr = float(share * f0.numel() / top)
    f = f0
    for _ in range(steps):
        f = f - lr / f0.numel() * torch.einsum("nmcd,md->nc", kernel, f - y)
    predictor = mse_predictor(kernel, f0, y, lr, kernel, f0)
    torch.testing.assert_close(predictor.train(steps, discrete=True), f, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predictor.test(steps, discrete=True), f, rtol=1e-9, atol=1e-9)


def test_predictor_refuses():
    kernel, f0, y, cross, f0_test = random_problem()
    for arguments, message in [
        ((kernel[:5], f0, y, 0.1), "ntk_train must be"),
        ((kernel, f0, y[:, :2], 0.1), "f0 and y"),
        ((kernel, f0, y, -0.1), "lr must be positive"),
        ((kernel, f0, y, 0.1, cross), "together"),
        ((kernel, f0, y, 0.1, cross.T, f0_test), "ntk_test must be"),
        ((kernel, f0, y, 0.1, cross, f0_test[:, :1]), "f0_test must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            mse_predictor(*arguments)
    predictor = mse_predictor(kernel, f0, y, 0.1)
    with pytest.raises(ValueError, match="ntk_test and f0_test"):
        predictor.test(1)
    with pytest.raises(ValueError, match="non-negative"):
        predictor.train(-1)
    with pytest.raises(ValueError, match="whole numbers"):
        predictor.train(0.5, discrete=True)


def test_measures_of_a_kernel():
    y = torch.eye(3).repeat(4, 1)
    labels = y @ y.T
    torch.testing.assert_close(label_alignment(labels, y), torch.tensor(1.0))
    torch.testing.assert_close(label_alignment(3 * labels + 2, y), torch.tensor(1.0))
    full = labels[..., None, None] * torch.eye(2)
    torch.testing.assert_close(label_alignment(full, y), torch.tensor(1.0))
    assert label_alignment(torch.eye(12), y) < 0.5
    torch.testing.assert_close(kernel_change(2 * labels, labels), torch.tensor(1.0))
    torch.testing.assert_close(effective_rank(torch.eye(7)), torch.tensor(7.0))
    torch.testing.assert_close(effective_rank(torch.ones(7, 7)), torch.tensor(1.0))
    torch.testing.assert_close(
        effective_rank(labels[..., None, None] * torch.eye(2)).round(), torch.tensor(6.0)
    )
    with pytest.raises(ValueError, match="does not match"):
        label_alignment(labels, y[:5])
    with pytest.raises(ValueError, match="differ in shape"):
        kernel_change(labels, full)
