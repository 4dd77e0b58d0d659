"""The Hessian of the erf network, by hand, against the complex step on plain formulas."""

import numpy as np
import pytest
from scipy.special import erf

from lnsim.images import erf_network
from lnsim.images.data import Images
from lnsim.images.erf_curvature import Curvature

pytestmark = pytest.mark.small

SAMPLES, CLASSES = 8, 4


def case(width, samples=SAMPLES):
    """A task, and two states away from the start."""
    rng = np.random.default_rng(0)
    images = Images(
        rng.integers(0, 256, (30, 2, 2, 3)), rng.integers(0, CLASSES, 30),
        rng.integers(0, 256, (9, 2, 2, 3)), rng.integers(0, CLASSES, 9),
    )  # fmt: skip
    task = erf_network.choose(images, samples, 7, CLASSES, 0)
    network = erf_network.standard_init(width, task.X.shape[1], CLASSES, 0)
    start = erf_network.reduce(task, network)
    state = erf_network.state_at_start(network, samples, 2)
    state.coefficients += 0.01 * rng.standard_normal(state.coefficients.shape)
    state.W2[1] *= 1.3
    return task, network, start, state


def gradient(theta, task, width):
    """The gradient of the loss at all weights and biases, as erf_network.py has it."""
    n, d = task.X.shape
    ends = np.cumsum([width * d, width, CLASSES * width])
    W1, b1, W2, b2 = np.split(theta, ends)
    W1, W2 = W1.reshape(width, d), W2.reshape(CLASSES, width)
    H = task.X @ W1.T + b1
    Phi = erf(H)
    D = (Phi @ W2.T + b2 - task.y) / (n * CLASSES)
    Delta = (D @ W2) * 2 / np.sqrt(np.pi) * np.exp(-H * H)
    parts = (Delta.T @ task.X, Delta.sum(0), D.T @ Phi, D.sum(0))
    return np.concatenate([part.ravel() for part in parts])


def dense(task, network, state, run, width):
    """The Hessian at all weights and biases: the derivative of the gradient, to the last bits."""
    A = state.coefficients[run]
    theta = np.concatenate([
        (network.W1 + A.T @ task.X).ravel(), network.b1 + A.sum(0),
        state.W2[run].ravel(), state.b2[run],
    ])  # fmt: skip
    step = 1e-30
    return np.array([
        gradient(theta + 1j * step * e, task, width).imag / step for e in np.eye(len(theta))
    ])  # fmt: skip


@pytest.mark.parametrize(("width", "samples"), [(6, 8), (1, 1), (3, 20)])
def test_sharpness_and_trace_are_those_of_the_dense_hessian(width, samples):
    task, network, start, state = case(width, samples)
    H, _ = erf_network.preactivations(state, start)
    curvature = Curvature(start, task, 0)
    sharpness, trace = curvature.sharpness(state, H), curvature.trace(state, H)
    for run in range(2):
        exact = dense(task, network, state, run, width)
        np.testing.assert_allclose(exact, exact.T, atol=1e-13)
        assert sharpness[run] == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-9)
        assert trace[run] == pytest.approx(np.trace(exact), rel=1e-12)


def test_a_seed_changes_rounding_alone_and_the_same_one_nothing():
    task, _, start, state = case(6)
    H, _ = erf_network.preactivations(state, start)
    first, again, other = (Curvature(start, task, seed).sharpness(state, H) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(other, first, rtol=1e-9)


def test_a_run_that_is_not_finite_has_no_sharpness():
    task, _, start, state = case(6)
    state.W2[1, 0, 0] = np.inf
    H, _ = erf_network.preactivations(state, start)
    with np.errstate(all="ignore"):
        sharpness = Curvature(start, task, 0).sharpness(state, H)
    np.testing.assert_array_equal(np.isnan(sharpness), [False, True])
