"""Measures at saddles, crossings of eigenvalues, extreme scales, and where all is 0."""

import numpy as np
import pytest
from test_measures import compare, deep, normal, one_output, run, theta_of, two_layer

import lnsim
import naive_measures
import naive_models as naive


def agrees(problem, model, dynamics, witness=None, size=0, **options):
    """Whether every measure of a two-layer linear network is the oracle's; the trajectory."""
    trajectory, networks = run(problem, model, dynamics, **options)
    Y = problem.y.reshape(len(problem.y), -1)
    for record, network in enumerate(networks):
        expected = naive_measures.measures(
            witness or naive.TwoLayer(), theta_of(network), problem.X, Y, "squared", size=size
        )
        compare(trajectory, record, expected)
    return trajectory


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("width", [1, 3, 9])
@pytest.mark.parametrize("dim", [3, 6])
def test_the_sharpness_that_is_the_residuals_alone(dim, width, several):
    """W = a e^T with theta = |a|^2 e below the labels: the largest eigenvalue is |z| itself.

    Sigma is the identity on the span of the inputs, so z = theta - k e, |z| = k - |a|^2.
    """
    Q, _ = np.linalg.qr(normal(dim, 3))
    X, direction = np.sqrt(3) * Q.T, Q[:, 0]
    a = 0.3 * normal(width) / np.linalg.norm(normal(width))
    a_of = a[None] if several else a
    problem = lnsim.Problem(X, X @ direction)
    network = lnsim.Network(np.outer(a, direction), a_of)
    trajectory = agrees(problem, network, lnsim.GD(lr=0.1), steps=40, record_every=10)
    assert trajectory["sharpness"][0] == pytest.approx(1 - 0.09, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e4])
@pytest.mark.parametrize("make", [lambda: one_output(9, 4), lambda: two_layer(3, 9, 4)])
def test_weights_far_smaller_and_larger_than_the_labels(make, scale):
    model, _ = make()
    model = model.with_parameters([scale * array for array in model.parameters.values()])
    y = normal(3, 1)[:, 0] if model.outputs == 1 else normal(3, 3)
    agrees(lnsim.Problem(normal(3, 4), y), model, lnsim.GD(lr=0.01), steps=0)


@pytest.mark.parametrize("size", [0, 2])
def test_labels_that_the_network_fits(size):
    """The gradient is 0 up to rounding; the Hessian is the Gauss-Newton matrix."""
    model, _ = one_output(9, 4)
    X = normal(6, 4)
    sgd = lnsim.SGD(lr=0.01, batch_size=size)
    trajectory, _ = run(lnsim.Problem(X, X @ model.theta), model, sgd, steps=0)
    trace = naive_measures.gauss_newton_trace(naive.TwoLayer(), theta_of(model), X)
    assert trajectory["hessian_trace"][0] == pytest.approx(trace, rel=1e-12)
    assert trajectory["gradient_noise"][0] < 1e-28
    G = naive_measures.output_gradients(naive.TwoLayer(), theta_of(model), X)[:, 0]
    top = np.linalg.norm(G, 2) ** 2 / 6
    assert trajectory["sharpness"][0] == pytest.approx(top, rel=1e-12)


def test_the_largest_eigenvalue_is_followed_where_two_cross():
    """Inputs along the axes: a diagonal Hessian 6 v^2 - 2 y, one entry of which overtakes another.

    The first eigenvector is that of an entry at rest, whose Hessian's others it never meets.
    """
    d = 400
    square = np.concatenate([[1.0, 0.99], np.linspace(0.5, 0.99, d - 2)])
    y = square.copy()
    y[1] = 1.05
    model = lnsim.Diagonal(None, np.sqrt(square), "square")
    problem = lnsim.Problem(np.sqrt(d) * np.eye(d), np.sqrt(d) * y)
    trajectory, networks = run(
        problem, model, lnsim.GD(lr=0.01), steps=120, record_every=5, measures="none,sharpness"
    )
    expected = [(6 * network.v**2 - 2 * y).max() for network in networks]
    assert expected[0] == pytest.approx(4.0)
    assert expected[-1] > 4.1
    assert trajectory["sharpness"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("dim", "samples"), [(3, 6), (6, 3)])
def test_a_balanced_network_is_balanced_to_rounding(dim, samples, several):
    """Also where inputs are reduced and the rest of W is as large as what is trained."""
    direction, u = (v / np.linalg.norm(v) for v in (normal(dim), normal(9)))
    network = lnsim.Network(np.outer(u, direction), u[None] if several else u)
    problem = lnsim.Problem(normal(samples, dim), normal(samples, 1)[:, 0])
    trajectory, _ = run(problem, network, lnsim.GD(lr=0.01), steps=0)
    assert trajectory["balancedness"][0] < 1e-14


@pytest.mark.parametrize("make", [lambda: one_output(4, 2), lambda: deep(2, 3, 3, 1)])
def test_labels_that_are_all_alike_have_no_alignment(make):
    """Centred they are 0, and not what rounding leaves of them."""
    problem = lnsim.Problem(normal(3, 2), np.full(3, 0.1))
    trajectory, _ = run(problem, make()[0], lnsim.GD(lr=0.01), steps=0)
    assert np.isnan(trajectory["kernel_alignment"][0])


@pytest.mark.parametrize(
    "make", [lambda: one_output(4, 3), lambda: two_layer(2, 4, 3), lambda: deep(3, 2, 2, 1)]
)
def test_inputs_that_are_all_zero(make):
    """No gradient and no curvature."""
    model, _ = make()
    y = np.ones((4, 2)) if model.outputs == 2 else np.ones(4)
    trajectory, _ = run(lnsim.Problem(np.zeros((4, 3)), y), model, lnsim.GD(lr=0.01), steps=0)
    for name in ("sharpness", "hessian_trace", "gradient_noise"):
        assert trajectory[name][0] == 0.0
    assert np.isnan(trajectory["batch_sharpness"][0])
    assert np.isnan(trajectory["flatness_gap"][0])


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_samples_that_are_alike(samples):
    """Every batch is the full batch."""
    model, _ = two_layer(2, 4, 3)
    X, Y = np.tile(normal(1, 3), (samples, 1)), np.tile([[1.0, -2.0]], (samples, 1))
    values = []
    for size in (0, 1, 2, 5):
        sgd = lnsim.SGD(lr=0.01, batch_size=size)
        trajectory, _ = run(lnsim.Problem(X, Y), model, sgd, steps=0)
        assert trajectory["gradient_noise"][0] < 1e-14
        values.append(trajectory["batch_sharpness"][0])
    assert values == pytest.approx([values[0]] * 4, rel=1e-12)
