"""The pull-backs written by hand against complex-step derivatives of plain NumPy predictions.

For a loss L that is analytic, dL/dtheta_p = Im L(theta + i h e_p) / h up to h^2, and nothing is
subtracted: with h = 1e-30 it is exact to rounding.
"""

import numpy as np
import pytest
from scipy.special import erf

import lnsim
from lnsim_numba import general
from lnsim_numba.models import forward, pull_back, work

pytestmark = pytest.mark.small

N, D, M = 7, 4, 5
MODELS_RNG = np.random.default_rng(0)


def normal(*shape, rng=MODELS_RNG):
    """Entries so small that no loss is flat at the predictions."""
    return 0.7 * rng.standard_normal(shape)


def two_layer(network, parameters, X, keep):
    W, A = parameters
    h = X @ W.T
    activation = getattr(network, "activation", None)
    h = h * (h.real > 0.0) if activation == "relu" else erf(h) if activation == "erf" else h
    return (h * keep) @ A.reshape(-1, len(W)).T


def diagonal(network, parameters, X, keep):
    if network.form == "square":
        beta = parameters[0] ** 2
    elif network.form == "difference":
        beta = parameters[0] ** network.power - parameters[1] ** network.power
    else:
        return (X * parameters[0] * keep) @ parameters[1][:, None]
    return X @ beta[:, None]


def deep(network, parameters, X, keep):
    units, first = X, 0
    for W in parameters[:-1]:
        skip = network.residual and W.shape[0] == W.shape[1]
        units = (units @ W.T + (units if skip else 0.0)) * keep[:, first : first + len(W)]
        first += len(W)
    return units @ parameters[-1].T


def diagonals(form, power=2):
    return lnsim.Diagonal(None if form == "square" else normal(D), normal(D), form, power)


MODELS = {
    "one output": (two_layer, lnsim.Network(normal(M, D), normal(M))),
    "outputs": (two_layer, lnsim.Network(normal(M, D), normal(3, M))),
    "relu": (two_layer, lnsim.ReLUNetwork(normal(M, D), normal(3, M))),
    "erf": (two_layer, lnsim.ReLUNetwork(normal(M, D), normal(1, M), "erf")),
    "product": (diagonal, diagonals("product")),
    "difference": (diagonal, diagonals("difference")),
    "difference of first powers": (diagonal, diagonals("difference", 1)),
    "difference of fifth powers": (diagonal, diagonals("difference", 5)),
    "square": (diagonal, diagonals("square")),
    "one layer": (deep, lnsim.DeepLinear([normal(3, D)])),
    "deep": (deep, lnsim.DeepLinear([normal(M, D), normal(2, M), normal(1, 2)])),
    "some skips": (deep, lnsim.DeepLinear([normal(M, D), *normal(2, M, M), normal(3, M)], True)),
    "all skips": (deep, lnsim.DeepLinear([*normal(3, D, D), normal(3, D)], True)),
}


def squared(f, y):
    return 0.5 * ((f - y) ** 2).sum(axis=1)


def logistic(f, y):
    return np.log1p(np.exp(-y * f))[:, 0]


def cross_entropy(f, y):
    return np.log(np.exp(f).sum(axis=1)) - (y * f).sum(axis=1)


def losses(outputs, rng):
    """The losses that fit, and targets for them."""
    if outputs == 1:
        signs = np.where(normal(N, 1, rng=rng) > 0.0, 1.0, -1.0)
        return {"squared": (squared, normal(N, 1, rng=rng)), "logistic": (logistic, signs)}
    classes = np.eye(outputs)[np.arange(N) % outputs]
    return {
        "squared": (squared, normal(N, outputs, rng=rng)),
        "cross-entropy": (cross_entropy, classes),
    }


def by_hand(network, theta, X, keep, loss, y, out):
    """Adds the gradient of the mean loss to `out`; returns the prediction."""
    sizes = general.MODELS[network.kernel](network)
    f, g = np.empty(y.shape), np.empty(y.shape)
    places = work(sizes, len(X))
    forward(sizes, theta, X, keep, places, f)
    general.derivative(general.LOSSES[loss], f, y, g)
    pull_back(sizes, theta, X, keep, places, g, 1.0 / len(X), out)
    return f


def by_complex_step(network, predict, theta, X, keep, loss, y, h=1e-30):
    """The prediction, and the gradient of the mean loss."""

    def mean(theta):
        parameters = list(network.from_flat(theta).parameters.values())
        f = predict(network, parameters, X, keep)
        return f, loss(f, y).mean()

    steps = 1j * h * np.eye(theta.size)
    return mean(theta)[0], np.array([mean(theta + step)[1].imag / h for step in steps])


def close(found, expected):
    return np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("samples", [N, 1])
@pytest.mark.parametrize("name", MODELS)
def test_the_pull_back_is_the_gradient(name, samples):
    rng = np.random.default_rng(1)
    predict, network = MODELS[name]
    X, theta, before = normal(samples, D, rng=rng), network.flat, normal(network.size, rng=rng)
    all_kept = np.ones((samples, network.hidden))
    some_kept = np.where(rng.random(all_kept.shape) < 0.7, 1.0 / 0.7, 0.0)
    for loss, (function, y) in losses(network.outputs, rng).items():
        for keep, mask in ((np.empty((0, 0)), all_kept), (some_kept, some_kept)):
            out = before.copy()
            f = by_hand(network, theta, X, keep, loss, y[:samples], out)
            prediction, gradient = by_complex_step(
                network, predict, theta, X, mask, function, y[:samples]
            )
            assert close(f, prediction), (loss, keep)
            assert close(out - before, gradient), (loss, keep)


@pytest.mark.parametrize("name", MODELS)
def test_one_sample_is_added_to_theta_in_place(name):
    rng = np.random.default_rng(2)
    _, network = MODELS[name]
    X, none = normal(1, D, rng=rng), np.empty((0, 0))
    for loss, (_, y) in losses(network.outputs, rng).items():
        theta, gradient = network.flat, np.zeros(network.size)
        by_hand(network, theta, X, none, loss, y[:1], gradient)
        moved = theta.copy()
        by_hand(network, moved, X, none, loss, y[:1], moved)
        assert close(moved - theta, gradient), loss
