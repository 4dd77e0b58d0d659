"""Curvature against dense matrices that torch.func forms, parameter by parameter."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from curvature_networks import CLASSES, LOSSES, NETWORKS, case, dense, squared
from lnsim_torch import curvature
from lnsim_torch.curvature import Curvature, density, top_eigenvalues, trace
from lnsim_torch.curvature.budget import peak_bytes
from lnsim_torch.curvature.layers import twice_differentiable

nn = torch.nn

pytestmark = pytest.mark.usefixtures("small_doubles")

MATRICES = ("hessian", "gauss-newton")


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_and_trace_are_those_of_the_dense_matrix(name, loss, matrix):
    network, x, y = case(name)
    exact = dense(network, x, y, loss, matrix)
    eigenvalues = torch.linalg.eigvalsh(exact).flip(0).numpy()
    measured = Curvature(network, x, y, loss, matrix=matrix)
    assert measured.size == len(eigenvalues)
    for count in (1, 3, measured.size):
        np.testing.assert_allclose(
            top_eigenvalues(measured, count), eigenvalues[:count], rtol=1e-9, atol=1e-12
        )
    for products in (measured.size, measured.size + 1):
        value, error = trace(measured, products)
        assert error == 0.0
        np.testing.assert_allclose(value, float(exact.trace()), rtol=1e-9)
    v = torch.randn(measured.size)
    torch.testing.assert_close(measured.product(v), exact @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("matrix", MATRICES)
def test_estimates_of_a_trace_scatter_by_their_standard_error(matrix):
    network, x, y = case("erf", samples=30)
    exact = float(dense(network, x, y, squared, matrix).trace())
    measured = Curvature(network, x, y, squared, matrix=matrix)
    estimates = np.array([trace(measured, 9, seed=seed) for seed in range(120)])
    values, errors = estimates.T
    assert (errors > 0).all()
    scatter = values.std(ddof=1)
    assert abs(values.mean() - exact) < 4 * scatter / np.sqrt(len(values))
    assert np.sqrt((errors**2).mean()) == pytest.approx(scatter, rel=0.25)


def test_more_products_bring_a_trace_nearer():
    network, x, y = case("erf", samples=30)
    measured = Curvature(network, x, y, squared, matrix="gauss-newton")
    exact = float(dense(network, x, y, squared, "gauss-newton").trace())

    def off(products):
        return np.mean([abs(trace(measured, products, seed=s).value - exact) for s in range(30)])

    assert off(30) < off(6) / 2


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_steps_of_lanczos_find_every_eigenvalue(matrix):
    network, x, y = case("erf", samples=40)
    exact = torch.linalg.eigvalsh(dense(network, x, y, squared, matrix)).numpy()
    # The eigenvalues of the last layer come in CLASSES copies, of which each probe sees one.
    different = exact[np.diff(exact, prepend=-np.inf) > 1e-9]
    found = density(Curvature(network, x, y, squared, matrix=matrix), len(exact), probes=1)
    seen = np.sort(found.nodes)
    np.testing.assert_allclose(seen[[0, -1]], exact[[0, -1]], rtol=1e-9, atol=1e-12)
    gaps = abs(seen[:, None] - different).min(axis=1)
    assert gaps.max() < 1e-9
    assert found.weights.sum() == pytest.approx(1.0)


def test_density_is_the_mean_over_eigenvalues():
    """The quadrature is exact for polynomials, of the probes' own spectral measure."""
    network, x, y = case("erf", samples=30)
    exact = dense(network, x, y, squared, "hessian")
    measured = Curvature(network, x, y, squared)
    for power in range(5):  # below twice the number of steps
        few, many = (density(measured, steps, probes=3, seed=5) for steps in (3, 20))
        of_few = few.weights @ few.nodes**power
        assert of_few == pytest.approx(many.weights @ many.nodes**power, rel=1e-9)
    many = density(measured, 3, probes=300)
    for power in (1, 2, 3):
        mean = float(torch.linalg.matrix_power(exact, power).trace()) / measured.size
        assert many.weights @ many.nodes**power == pytest.approx(mean, rel=0.05), power


def test_smoothed_density_is_a_density():
    network, x, y = case("relu", samples=30)
    found = density(Curvature(network, x, y, squared), 10)
    grid, values = found.smoothed(2001, 0.02)
    assert np.trapezoid(values, grid) == pytest.approx(1.0, rel=1e-3)
    mean = found.weights @ found.nodes
    assert np.trapezoid(values * grid, grid) == pytest.approx(mean, rel=1e-2)
    single = curvature.Density(np.array([2.0]), np.array([1.0]))
    assert np.trapezoid(single.smoothed()[1], single.smoothed()[0]) == pytest.approx(1.0, rel=1e-3)


def test_lanczos_stops_in_an_invariant_subspace():
    """The Gauss-Newton matrix of one sample has rank CLASSES."""
    network, x, y = case("erf", samples=1)
    measured = Curvature(network, x, y, squared, matrix="gauss-newton")
    found = density(measured, 30, probes=2)
    assert len(found.nodes) <= 2 * (CLASSES + 1)
    exact = torch.linalg.eigvalsh(dense(network, x, y, squared, "gauss-newton"))
    assert found.nodes.max() == pytest.approx(float(exact[-1]), rel=1e-9)


@pytest.mark.parametrize(("name", "matrix"), [("relu", "gauss-newton"), ("conv", "hessian")])
def test_a_budget_changes_rounding_alone(name, matrix):
    network, x, y = case(name, samples=23)
    whole = Curvature(network, x, y, squared, matrix=matrix)
    assert whole.micro_batch == 23
    with pytest.raises(ValueError, match="memory must be at least") as caught:
        Curvature(network, x, y, squared, matrix=matrix, memory=1)
    enough = int(str(caught.value).split("at least ")[1].split()[0])
    sizes = set()
    for memory in (enough, enough * 3):
        parts = Curvature(network, x, y, squared, matrix=matrix, memory=memory)
        sizes.add(parts.micro_batch)
        np.testing.assert_allclose(top_eigenvalues(parts, 2), top_eigenvalues(whole, 2), rtol=1e-9)
        np.testing.assert_allclose(trace(parts, 9), trace(whole, 9), rtol=1e-9)
        np.testing.assert_allclose(
            density(parts, 5).smoothed(50), density(whole, 5).smoothed(50), rtol=1e-7
        )
    assert min(sizes) == 1 < max(sizes) < 23


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_product_takes_no_more_than_its_budget(matrix):
    network, x, y = case("conv", samples=60)
    memory = 200_000
    measured = Curvature(network, x, y, squared, matrix=matrix, memory=memory)
    assert 1 < measured.micro_batch < 60
    v = torch.ones(measured.size)
    peak = peak_bytes(lambda: measured.product(v))
    assert 0.5 * memory < peak < 1.05 * memory


def test_peak_bytes_counts_what_lives_at_a_time():
    def one_after_another():
        for _ in range(5):
            torch.ones(1000)

    def together():
        held = [torch.ones(1000) for _ in range(5)]
        return [h.view(10, 100) for h in held]

    assert peak_bytes(one_after_another) == 8000
    assert peak_bytes(together) == 40_000


@pytest.mark.parametrize("measure", [
    top_eigenvalues, trace, lambda c, seed: density(c, 9, seed=seed).smoothed()
], ids=["eigenvalues", "trace", "density"])  # fmt: skip
def test_a_seed_determines_every_bit_whatever_other_generators_do(measure):
    network, x, y = case("conv")
    measured = Curvature(network, x, y, squared)

    def result(seed):
        return np.array(measure(measured, seed=seed))

    before, state = result(3), torch.get_rng_state()
    torch.rand(5)
    np.random.default_rng().random(5)
    np.testing.assert_array_equal(result(3), before)
    assert np.any(result(4) != before)
    torch.set_rng_state(state)
    result(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_give_the_same_bits():
    """Arms of a run are measured side by side."""
    cases = [case("erf", samples=30) for _ in range(4)]
    found = [None] * 4

    def work(i):
        torch.set_num_threads(1)
        network, x, y = cases[i]
        measured = Curvature(network, x, y, squared)
        found[i] = [*top_eigenvalues(measured, 2), *trace(measured, 9)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(0)
    assert found[1:] == [found[0]] * 3
    graphs = []
    compiled = torch.compile(lambda z: z + 1, backend=lambda g, _: graphs.append(g) or g.forward)
    compiled(torch.ones(2))
    assert graphs  # no thread left the compiler switched off


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_left_as_it_was(training):
    network, x, y = case("conv")
    network.train(training)
    network[1].train(not training)
    network(x).sum().backward()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [p.grad.clone() for p in network.parameters()]
    measured = Curvature(network, x, y, squared)
    top_eigenvalues(measured), trace(measured, 6), density(measured, 3)
    with pytest.raises(ValueError, match="memory must be at least"):
        Curvature(network, x, y, squared, memory=1)
    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient) and p.requires_grad


def test_single_precision_and_gradients_switched_off():
    network, x, y = case("conv", samples=40)
    exact = top_eigenvalues(Curvature(network, x, y, squared), 2)
    network.float()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            measured = Curvature(network, x.float(), y, squared)
            np.testing.assert_allclose(top_eigenvalues(measured, 2), exact, rtol=1e-4)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds():
    network, x, y = case("conv", samples=40)
    exact = Curvature(network, x, y, squared)
    expected = [*top_eigenvalues(exact, 2), *trace(exact, 9)]
    on_gpu = Curvature(network.cuda(), x, y, squared)  # the samples stay on the host
    found = [*top_eigenvalues(on_gpu, 2), *trace(on_gpu, 9)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


class Counting(nn.Module):
    """Writes to a buffer in eval mode, and depends on it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls.clamp(max=0.5)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("memory", [200_000, 2**30])
def test_products_at_one_point_are_those_of_each_point(matrix, memory):
    network, x, y = case("conv", samples=60)
    measured = Curvature(network, x, y, squared, matrix=matrix, memory=memory)
    vectors = torch.randn(3, measured.size, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        alone = [measured.product(v) for v in vectors]
        with measured.at_one_point():
            together = [measured.product(v) for v in vectors]
        assert all(map(torch.equal, alone, together))
        with torch.no_grad():  # at the next point nothing is left of this one
            network[-1].weight += 0.5


def test_a_network_that_writes_to_its_state_begins_every_product_anew():
    network, x = Counting().eval(), torch.randn(6, 4)
    measured = Curvature(network, x, torch.arange(6) % 3, nn.CrossEntropyLoss())
    v = torch.ones(measured.size)
    with measured.at_one_point():
        products = [measured.product(v) for _ in range(3)]
    assert torch.equal(products[0], products[2]) and network.calls == 0


LAYERS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding=(2, 0)),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "norm": lambda: nn.BatchNorm2d(4),
    "without weights": lambda: nn.BatchNorm2d(4, affine=False),
    "without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_derivatives_of_those_they_stand_for(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double().eval()
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
    parameters = [*layer.parameters()]
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    theirs = [x, *parameters]

    def derivatives():
        y = layer(x).tanh()
        first = torch.autograd.grad(y.square().sum(), theirs, create_graph=True)
        pairs = zip(theirs, first, strict=True)
        weighted = sum((t * (i + g.sin())).sum() for i, (t, g) in enumerate(pairs))
        return [y, *first, *torch.autograd.grad(weighted, theirs)]

    plain, kind = derivatives(), type(layer)
    with twice_differentiable(layer):
        ours = derivatives()
        assert type(layer) is not kind
    assert type(layer) is kind
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
