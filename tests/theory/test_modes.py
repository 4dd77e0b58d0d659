"""The law of modes against algebra, finite boosts and plain simulation."""

import math

import numpy as np
import pytest
from scipy.linalg import expm

import lnsim
from lnsim.theory import axes, integrator, modes, paper
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold import descent_covariance


def norm_curve(*arguments, **named):
    """|W|_F^2 by the law of modes, (T,)."""
    return modes.integrate_modes(*arguments, **named).norm_squared


def problem(seed=0, samples=60, dim=5, width=40, scales=1.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((samples, dim)) * scales
    theta_star = rng.standard_normal(dim)
    W = rng.standard_normal((width, dim)) / math.sqrt(dim)
    a = rng.standard_normal(width) / math.sqrt(width)
    return X, theta_star, W, a


def boost(z):
    """S(z) of the derivation."""
    S = np.zeros((len(z) + 1, len(z) + 1))
    S[:-1, -1] = S[-1, :-1] = z
    return S


# Its parts


def test_quasi_stationary_loss():
    A, Sigma = 51 * np.eye(20), np.eye(20)
    assert modes.quasi_stationary_loss(A, Sigma, 1e-3, 4.0) == pytest.approx(4.08 / 0.49)
    assert modes.quasi_stationary_loss(A, Sigma, 1e-3, 0.0) == 0
    assert modes.quasi_stationary_loss(A, Sigma, 2e-3, 4.0) == math.inf


def test_quasi_stationary_loss_is_the_covariance_closed_in_the_wick_limit():
    # many dimensions, so that x.Cx hardly varies from sample to sample
    rng = np.random.default_rng(0)
    X = rng.choice([-1.0, 1.0], size=(4000, 60))
    Sigma = X.T @ X / len(X)
    C = modes.quasi_stationary_covariance(X, 3 * np.eye(60), 1e-3, 2.0)
    closed = modes.quasi_stationary_loss(3 * np.eye(60), Sigma, 1e-3, 2.0)
    assert np.sum(Sigma * C) / 2 == pytest.approx(closed, rel=0.01)


@pytest.mark.parametrize("batch", [1, 2])
def test_covariance_is_stationary_under_the_exact_average_over_draws(batch):
    X, _, W, a = problem(samples=7, dim=3)
    A = W.T @ W + a @ a * np.eye(3)
    lr, sigma = 0.01, 2.0
    C = modes.quasi_stationary_covariance(X, A, lr, sigma, batch)
    draws = [(x,) for x in X] if batch == 1 else [(x, y) for x in X for y in X]
    after = np.zeros((3, 3))
    for draw in draws:
        second = sum(np.outer(x, x) for x in draw) / batch
        step = np.eye(3) - lr * A @ second
        after += (step @ C @ step.T + lr**2 * sigma**2 * A @ second @ A / batch) / len(draws)
    np.testing.assert_allclose(after, C, rtol=0, atol=1e-6 * np.abs(C).max())


def test_one_step_drift_of_the_conserved_quantity():
    """E[tr(P) - q] falls by lr^2 (tr(NP) - q tr N): the exact average over samples and signs."""
    X, theta_star, W, a = problem(samples=9, dim=3, width=4)
    lr, sigma = 0.05, 1.5
    delta = W.T @ a - theta_star
    N = np.einsum("k,ki,kj->ij", (X @ delta) ** 2 + sigma**2, X, X) / len(X)
    change = 0.0
    for x in X:
        for sign in (-1, 1):
            g = (x @ delta - sign * sigma) * x
            W1, a1 = W - lr * np.outer(a, g), a - lr * W @ g
            change += (np.sum(W1**2) - a1 @ a1 - np.sum(W**2) + a @ a) / (2 * len(X))
    assert change == pytest.approx(lr**2 * (a @ a * np.trace(N) - np.sum(N * (W.T @ W))))


def test_slope_is_the_projected_mean_contraction():
    """Equation (2) against finite boosts: quadrature over z, then theta held by a boost."""
    X, theta_star, W, _ = problem(dim=3, samples=20)
    a = np.linalg.lstsq(W.T, theta_star, rcond=None)[0] + 0.2 * np.linalg.svd(W.T)[2][-1]
    data = axes.Data.of(X)
    target, W = data.basis.T @ theta_star, W @ data.basis
    G = np.column_stack([W, a]).T @ np.column_stack([W, a])
    A = G[:3, :3] + G[3, 3] * np.eye(3)

    def correction_error(lr, sigma=2.0):
        state = np.append(G[:3, :3].ravel(), G[3, 3])
        slope = modes.law(data, target, Descent(lr, sigma), state).slope / lr**2
        eigen = np.linalg.eigh(axes.scaled(A, data.root))
        N = axes.scaled(descent_covariance(data, eigen, Descent(lr, sigma), 1e-12)[0], data.root)
        total = data.spectrum.sum()
        c = lr * np.trace(N) / (2 * total)
        Ai = np.linalg.inv(A)
        mean = -c * np.diag(1 / data.spectrum) @ Ai @ (total * target + data.spectrum * target)
        zbar = Ai @ (mean - c * (3 * Ai @ target + np.trace(Ai) * target) / 2)
        K = np.zeros((4, 4))
        for column in math.sqrt(3 * c) * np.linalg.cholesky(Ai).T:
            for z in (zbar + column, zbar - column):
                noise = np.diag(np.append(np.zeros(3), np.trace(N)))
                noise[:3, :3] = N
                K += expm(boost(z)) @ noise @ expm(-boost(z)) / 6
        contraction = -(K.T @ G + G @ K) / 2
        hold = boost(np.linalg.solve(A, -contraction[:3, 3]))
        dG = contraction + hold @ G + G @ hold
        expected = np.append(dG[:3, :3].ravel(), dG[3, 3])
        return np.abs(slope - expected).max() / np.abs(expected).max()

    # third order in z and zbar*z: second in lr, where dropping the corrections would leave first
    assert correction_error(1e-3) < 1e-4
    assert correction_error(1e-3) < 0.03 * correction_error(1e-2)


# Its solution


def test_modes_off_theta_star_decay_at_their_rates():
    """At leading order, with theta_star an axis whose (P, q) rests, the others decay alone."""
    dim, lr, sigma = 3, 1e-6, 2.0
    X = np.diag([1.0, 1.5, 0.7]) * math.sqrt(dim)
    Sigma = X.T @ X / dim
    theta_star = np.array([2.0, 0.0, 0.0])
    along, second = paper.stationary_norms(theta_star, Sigma)
    W = np.diag([math.sqrt(along), 2.0, 3.0])
    a = np.array([math.sqrt(second), 0.0, 0.0])
    times = np.array([0.0, 0.5, 2.0]) / (lr * sigma) ** 2
    curve = norm_curve(X, theta_star, W, a, lr, sigma, times)
    rates = paper.decay_rates(X, lr, sigma)  # ascending: axes 2, 0, 1
    expected = along + 9 * np.exp(-rates[0] * times) + 4 * np.exp(-rates[2] * times)
    np.testing.assert_allclose(curve, expected, rtol=1e-3)


def test_stationary_state_is_a_fixed_point():
    X, theta_star, _, _ = problem(scales=np.array([0.5, 1.0, 1.5, 1.0, 0.8]))
    first, second = paper.stationary_norms(theta_star, X.T @ X / len(X))
    W = np.outer([0.6, 0.8], theta_star) * math.sqrt(first) / np.linalg.norm(theta_star)
    a = np.array([0.6, 0.8]) * math.sqrt(second)
    lr = 1e-6
    curve = modes.integrate_modes(X, theta_star, W, a, lr, 2.0, [0, 1 / (2 * lr) ** 2])
    np.testing.assert_allclose(curve.norm_squared, first, rtol=1e-3)
    np.testing.assert_allclose(curve.second_layer_squared, second, rtol=1e-3)


@pytest.mark.parametrize(("dim", "width"), [(1, 1), (1, 6), (4, 1), (4, 30)])
def test_curve_ends_in_the_stationary_state(dim, width):
    X, theta_star, W, a = problem(seed=3, dim=dim, width=width)
    lr, sigma = 1e-3, 2.0
    expected = paper.stationary_norms(theta_star, X.T @ X / len(X))
    curve = modes.integrate_modes(X, theta_star, W, a, lr, sigma, [0, 40 / (lr * sigma) ** 2])
    assert curve.norm_squared[0] == pytest.approx(np.sum(W**2), rel=1e-4)
    assert curve.norm_squared[-1] == pytest.approx(expected[0], rel=0.01)
    assert curve.second_layer_squared[-1] == pytest.approx(expected[1], rel=0.01)


def test_without_label_noise_there_is_gradient_flow_and_no_decay():
    X, theta_star, W, a = problem(width=4)
    times = np.array([0, 100, 2_000, 20_000, 2_000_000])
    curve = modes.integrate_modes(X, theta_star, W, a, 2e-3, 0.0, times)
    assert curve.norm_squared[-1] == pytest.approx(curve.norm_squared[-2], rel=1e-6)
    np.testing.assert_allclose(
        curve.norm_squared - curve.second_layer_squared, np.sum(W**2) - a @ a, rtol=1e-4
    )
    for _ in range(2_000):
        g = X.T @ (X @ (W.T @ a - theta_star)) / len(X)
        W, a = W - 2e-3 * np.outer(a, g), a - 2e-3 * W @ g
    assert curve.norm_squared[2] == pytest.approx(np.sum(W**2), rel=2e-3)


def test_inputs_outside_the_span_keep_their_weights():
    X, theta_star, W, a = problem(samples=40, dim=3)
    times = [0, 1_000, 50_000]
    inside = norm_curve(X, theta_star, W, a, 4e-3, 2.0, times)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    spare = rng.standard_normal((len(W), 2))
    wide = norm_curve(
        np.pad(X, ((0, 0), (0, 2))) @ rotation,
        np.append(theta_star, [7.0, -7.0]) @ rotation,
        np.column_stack([W, spare]) @ rotation,
        a, 4e-3, 2.0, times,
    )  # fmt: skip
    np.testing.assert_allclose(wide, inside + np.sum(spare**2), rtol=1e-5)


def test_only_the_gram_matrix_of_the_hidden_layer_matters():
    X, theta_star, W, a = problem(width=8)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    times = [0, 500, 20_000]
    np.testing.assert_allclose(
        norm_curve(X, theta_star, rotation @ W, rotation @ a, 4e-3, 2.0, times),
        norm_curve(X, theta_star, W, a, 4e-3, 2.0, times),
        rtol=1e-6,
    )


@pytest.mark.parametrize(("width", "batch", "sigma"), [(40, 1, 2.0), (40, 4, 4.0), (3, 1, 2.0)])
def test_curve_matches_simulation(width, batch, sigma):
    """Within 4 standard errors of the mean of 24 replicas, and the 1% the expansion leaves."""
    X, theta_star, W, a = problem(width=width)
    lr, replicas = 4e-3, 24
    run = lnsim.simulate(
        lnsim.Problem(X, X @ theta_star, theta_star),
        lnsim.Network(W, a),
        lnsim.SGD(lr, lnsim.LabelNoise(sigma), batch_size=batch),
        steps=48_000,
        record_every=2_000,
        seed=1,
        replicas=replicas,
    )
    curve = modes.integrate_modes(X, theta_star, W, a, lr, sigma, run.steps, batch)
    assert curve.expansion.max() < 0.1
    for measured, predicted in (
        (run["norm_squared"], curve.norm_squared),
        (run["second_layer_norm"] ** 2, curve.second_layer_squared),
    ):
        mean = measured.mean(axis=0)
        error = measured.std(axis=0, ddof=1) / math.sqrt(replicas)
        assert np.all(np.abs(predicted - mean) <= 4 * error + 0.01 * mean)


def test_the_start_alone_is_the_measured_start():
    X, theta_star, W, a = problem()
    assert norm_curve(X, theta_star, W, a, 4e-3, 2.0, [0]) == pytest.approx(
        [np.sum(W**2)], rel=1e-5
    )


@pytest.mark.parametrize("stages", [2, 5, 20])
def test_chebyshev_steps_are_stable_and_of_second_order(stages):
    """On y' = -y, from 1."""

    def after(h):
        return integrator.chebyshev_step(np.negative, np.ones(1), -np.ones(1), h, stages)[0]

    def error(h):
        return abs(after(h) - math.exp(-h))

    longest = 0.65 * (stages**2 - 1)
    assert max(abs(after(h)) for h in np.linspace(0.01, 1, 100) * longest) < 1
    assert error(0.05) / error(0.1) == pytest.approx(1 / 8, rel=0.2)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_integrator_is_as_accurate_as_it_says(sigma, monkeypatch):
    X, theta_star, W, a = problem(seed=4, samples=100, dim=8, width=50)
    lr = 2e-3
    times = np.linspace(0, 10 / (lr * sigma) ** 2, 300)
    curve = modes.integrate_modes(X, theta_star, W, a, lr, sigma, times)
    monkeypatch.setattr(integrator, "TOLERANCE", 3e-6)
    exact = modes.integrate_modes(X, theta_star, W, a, lr, sigma, times)
    np.testing.assert_allclose(curve.norm_squared, exact.norm_squared, rtol=2.5e-3)
    np.testing.assert_allclose(curve.second_layer_squared, exact.second_layer_squared, rtol=2.5e-3)
    np.testing.assert_allclose(curve.loss, exact.loss, rtol=1e-2)


# Bad input

GOOD = dict(zip(("X", "theta_star", "W", "a"), problem(), strict=True)) | {
    "lr": 1e-3,
    "sigma": 2.0,
    "times": [0, 10],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones(3)}, "X must have 2 axes"),
        ({"X": np.zeros((60, 5))}, "X must have a row"),
        ({"theta_star": np.ones(4)}, r"theta_star must have shape \(5,\)"),
        ({"W": np.ones((40, 4))}, "X has 5 columns"),
        ({"W": np.zeros((40, 5)), "a": np.zeros(40)}, "positive definite"),
        ({"a": np.full(40, np.nan)}, "a must be finite"),
        ({"a": np.ones(3)}, "W has 40 rows"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"lr": 0.2}, "lr = 0.2 is too large"),
        ({"sigma": -1.0}, "sigma must be finite and at least 0, got -1"),
        ({"batch_size": -1}, "batch_size must be at least 0, got -1"),
        ({"times": [0, 2, 1]}, "times must ascend"),
        ({"times": [-1, 2]}, "times must ascend"),
        ({"times": []}, "times must not be empty"),
    ],
)
def test_the_law_of_modes_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        norm_curve(**(GOOD | change))


def test_a_setting_outside_the_expansion_is_refused(monkeypatch):
    monkeypatch.setattr(integrator, "ATTEMPTS", 100)
    X, theta_star, W, a = problem(samples=200, dim=20, width=1000)
    with pytest.raises(ValueError, match=r"cannot be followed beyond step .* small parameter is"):
        norm_curve(X, theta_star, W, a, 1e-3, 40.0, [0, 2_000_000])


def test_covariance_refuses():
    with pytest.raises(ValueError, match="A must be positive definite"):
        modes.quasi_stationary_covariance(np.eye(2), -np.eye(2), 1e-3, 1.0)
    with pytest.raises(ValueError, match="X has 2 columns"):
        modes.quasi_stationary_covariance(np.eye(2), np.eye(3), 1e-3, 1.0)
    with pytest.raises(ValueError, match="the shape of A"):
        modes.quasi_stationary_loss(np.eye(2), np.eye(3), 1e-3, 1.0)
