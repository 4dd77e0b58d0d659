"""The law of the cloud against plain loops, and against replicas within their statistical error."""

import math

import naive_cloud
import numpy as np
import pytest
from scipy.linalg import expm

import lnsim
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import ntk_init
from lnsim.theory import axes, cloud, course, kicks, modes
from lnsim.theory.cloud_network import FORMULAS, Mean

NOISE = lnsim.LabelNoise(2.0)


def setting(samples=60, dim=4, width=30, seed=0):
    problem = gaussian_regression(samples, dim, seed, test_samples=50)
    return problem, ntk_init(width, dim, seed)


def stacked(problem, network):
    """The axes of the data, theta_star there and M = [W | a]."""
    data = axes.Data.of(problem.X)
    M = np.column_stack([network.W @ data.basis, network.a])
    return data, data.basis.T @ problem.theta_star, M


# Steps


@pytest.mark.parametrize("noise", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_a_step_multiplies_from_the_right_as_the_kick_says(noise, rho):
    """e and k of one sample: the variance of its residual is 0, so E|r| = |r|."""
    rng = np.random.default_rng(1)
    M, x, y, lr = rng.standard_normal((7, 4)), rng.standard_normal(3), 0.3, 1e-3
    W, a = M[:, :-1], M[:, -1]
    A = W.T @ W + a @ a * np.eye(3)
    r = a @ W @ x - y - noise
    size = np.array([x @ A @ x])
    dynamics = kicks.Sharp(lr, rho) if rho else kicks.Descent(lr, 0.0)
    kick = dynamics.kick(np.array([r]), np.array([1e-20]), size)
    S = naive_cloud.boost(x)
    expected = naive_cloud.one_sample(M, x, y, noise, lr, rho)
    ours = M - lr * M @ (kick.pull[0] * S + kick.contraction[0] * S @ S)
    # what is left out is of order lr rho^2 f, f the prediction
    left_out = 2 * lr * rho**2 * np.abs(M).max() * abs(a @ W @ x)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 + left_out)
    np.testing.assert_allclose(kick.square, kick.pull**2, rtol=1e-9)
    np.testing.assert_allclose(kick.fourth, kick.pull**4, rtol=1e-9)


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "uniform"])
def test_moments_of_a_kick_are_those_of_a_normal_residual(law):
    """Against a fine quadrature over the residual and the noise."""
    mean, variance, s, rho, sigma = 0.7, 1.3, 2.0, 0.4, 0.9
    kick = kicks.Sharp(1e-3, rho, sigma, law).kick(
        np.array([mean]), np.array([variance]), np.array([s**2])
    )
    plain = kicks.Descent(1e-3, sigma, 1, law).kick(
        np.array([mean]), np.array([variance]), np.array([s**2])
    )
    normal = np.linspace(-9, 9, 1501)
    weights = np.exp(-(normal**2) / 2)
    if law == "rademacher":
        noise, of_noise = np.array([-sigma, sigma]), np.ones(2)
    elif law == "gaussian":
        noise, of_noise = sigma * normal, weights
    else:
        noise = (np.arange(600) + 0.5) / 300 * math.sqrt(3) * sigma - math.sqrt(3) * sigma
        of_noise = np.ones(600)

    def average(f):
        r = mean + math.sqrt(variance) * normal[:, None] - noise
        joint = weights[:, None] * of_noise
        return np.sum(f(r) * joint) / joint.sum()

    e = lambda r: r + rho * s * np.sign(r)  # noqa: E731
    close = {"rtol": 4e-3}  # of the quadrature, as sign(r) jumps
    np.testing.assert_allclose(kick.pull[0], average(e), **close)
    np.testing.assert_allclose(kick.square[0], average(lambda r: e(r) ** 2), **close)
    np.testing.assert_allclose(kick.fourth[0], average(lambda r: e(r) ** 4), **close)
    direct = average(lambda r: rho**2 + rho * np.abs(r) / s)
    np.testing.assert_allclose(kick.contraction[0], direct, **close)
    np.testing.assert_allclose(plain.square[0], average(lambda r: r**2), **close)
    np.testing.assert_allclose(plain.fourth[0], average(lambda r: r**4), **close)
    shift = 1e-3
    shifted = kicks.Sharp(1e-3, rho, sigma, law).kick(
        np.array([mean + shift]), np.array([variance]), np.array([s**2])
    )
    slope = (shifted.pull[0] - kick.pull[0]) / shift
    np.testing.assert_allclose(kick.restoring[0], slope, rtol=1e-2)


# The course


def test_the_fit_is_the_recursion_of_the_moments():
    """The equation leaves out the size of a step: its error is of order lr."""
    problem, network = setting(samples=12, dim=2, width=9)
    data, target, M = stacked(problem, network)

    def worst(lr):
        steps = round(0.4 / lr)
        path = naive_cloud.fit(data.samples, target, M, lr, 1.0, steps)
        times = np.array([0.1, 0.3, 1.0]) * steps
        followed = course.follow(data, target, M, kicks.Descent(lr, 1.0), times)
        assert followed.fitted > steps
        differences = []
        for k, time in enumerate(times.round().astype(int)):
            G, C = path[time]
            differences.append(np.abs(followed.G[k] - G).max() / np.abs(G).max())
            differences.append(np.abs(followed.C[k] - C).max() / np.abs(C).max())
        return max(differences)

    coarse, fine = worst(4e-3), worst(1e-3)
    assert fine < 0.01
    assert fine < 0.4 * coarse


def test_the_course_carries_the_law_of_modes():
    """After the fit M(0)^T M(0) and G give |W|_F^2 and |a|^2 of the other solver."""
    problem, network = setting(samples=200, dim=8, width=100)
    lr, sigma = 1e-3, 3.0
    times = np.array([2e3, 2e4, 1e5, 4e5, 3e6])
    curve = modes.integrate_modes(
        problem.X, problem.theta_star, network.W, network.a, lr, sigma, times
    )
    dynamics = lnsim.SGD(lr, lnsim.LabelNoise(sigma))
    prediction = cloud.predict(problem, network, dynamics, times)
    np.testing.assert_allclose(prediction["norm_squared"], curve.norm_squared, rtol=0.006)
    second = prediction["second_layer_norm"]
    np.testing.assert_allclose(second, np.sqrt(curve.second_layer_squared), rtol=0.01)
    np.testing.assert_allclose(prediction["train_loss"][1:], curve.loss[1:], rtol=0.02)
    np.testing.assert_allclose(prediction.expansion, curve.expansion, rtol=0.05)


def test_theta_stays_on_the_manifold():
    problem, network = setting(samples=100, dim=5, width=50)
    data, target, M = stacked(problem, network)
    followed = course.follow(data, target, M, kicks.Descent(2e-3, 3.0), np.geomspace(3e3, 3e6, 9))
    for G in followed.G:
        theta = (M @ G)[:, :-1].T @ (M @ G)[:, -1]
        np.testing.assert_allclose(theta, target, atol=2e-3 * np.abs(target).max())


def test_the_end_is_the_flattest_interpolator():
    problem, network = setting(samples=100, dim=3, width=10)
    prediction = cloud.predict(problem, network, lnsim.SGD(1e-4, NOISE), [1e9, 2e9])
    np.testing.assert_allclose(prediction["flatness_gap"], 1.0, atol=2e-3)
    np.testing.assert_allclose(prediction["cosine_mean"], 1.0, atol=1e-3)


# From the moments to the quantities


@pytest.mark.parametrize(("size", "without"), [(0.006, ""), (0.02, "flatness_gap")])
def test_quantities_are_the_means_over_the_fluctuation(size, without):
    """E over z by Monte Carlo of the plain formulas: to its error, and to third order in z.

    The flatness gap divides by the predictor, which the larger fluctuation carries close to 0.
    """
    problem, network = setting(samples=15, dim=3, width=8)
    data, target, M = stacked(problem, network)
    rng = np.random.default_rng(3)
    root = size * rng.standard_normal((3, 3))
    Z = root @ root.T
    G = np.eye(4) + 0.3 * rng.standard_normal((4, 4))
    P, q, theta = course.moments(M.T @ M, G)
    A = P + q * np.eye(3)
    for _ in range(5):
        P, q, theta = course.moments(M.T @ M, G)
        A = P + q * np.eye(3)
        G = G @ axes.finite_boost(np.linalg.solve(A, target - theta))
    # With this mean of z that of theta is theta_star, to second order (modes.py).
    zbar = -np.linalg.solve(A, (3 * Z @ target + np.trace(Z) * target) / 2)
    draws = zbar + rng.multivariate_normal(np.zeros(3), Z, 3000)
    nothing = np.zeros((1, 3))
    followed = course.Course(
        times=np.ones(1), G=G[None], delta=nothing, Z=Z[None], zbar=zbar[None],
        C=(A @ Z @ A)[None], N=Z[None], expansion=nothing[:, 0], fitted=0.0,
    )  # fmt: skip
    mean = Mean(problem, network, data, kicks.Descent(1e-9, 1.0), M, followed)
    prediction = cloud.Prediction(np.ones(1), mean)
    at = [
        naive_cloud.measures(M @ G @ expm(naive_cloud.boost(z)), 0.0, data.samples, target, M)
        for z in draws
    ]
    for name in set(at[0]) - {without}:
        values = np.array([each[name] for each in at])
        error = values.std() / math.sqrt(len(values))
        allowed = 4 * error + 0.02 * abs(values.mean())
        assert abs(prediction[name][0] - values.mean()) < allowed, name


def test_finite_boosts_are_exponentials():
    rng = np.random.default_rng(0)
    for size in (0.0, 1e-6, 1e-3, 1.0):
        z = size * rng.standard_normal((2, 3))
        for each, of_each in zip(z, axes.finite_boost(z), strict=True):
            np.testing.assert_allclose(of_each, expm(axes.boost(each)), rtol=0, atol=1e-12)


# Against replicas

BOUNDS = {"norm_mean": 0.01, "norm_squared": 0.02, "alignment_mean": 0.02, "ntk_distance": 0.03,
          "hessian_trace": 0.02, "effective_rank": 0.02, "sharpness": 0.03,
          "kernel_alignment": 0.02, "balancedness": 0.02, "second_layer_norm": 0.03}  # fmt: skip
LOSSES = ("train_loss", "test_loss", "linearized_train_loss", "linearized_test_loss",
          "gradient_noise")  # fmt: skip


def check(problem, network, dynamics, steps, replicas=16):
    """Every prediction within its bound, plus four standard errors, of the replicas' mean."""
    run = lnsim.simulate(
        problem, network, dynamics, steps=steps, record_every=steps // 200, replicas=replicas
    )
    prediction = cloud.predict(problem, network, dynamics, run.steps.astype(float))
    assert prediction.expansion.max() < 0.2
    compared = 0
    for name in prediction.names:
        if name not in {*BOUNDS, *LOSSES, "cosine_mean"} & run.arrays.keys():
            continue
        predicted, measured = prediction[name], run[name]
        error = measured.std(axis=0, ddof=1) / math.sqrt(replicas)
        mean = measured.mean(axis=0)
        if name in BOUNDS:
            allowed = BOUNDS[name] * np.abs(mean) + 4 * error
            assert np.all(np.abs(predicted - mean) <= allowed + 1e-12), name
        elif name == "cosine_mean":
            assert np.all(np.abs(predicted - mean) <= 0.02 + 4 * error), name
        else:
            for window in np.array_split(np.arange(1, len(run.steps)), 4):
                of_replicas = measured[:, window].mean(axis=1)
                error = of_replicas.std(ddof=1) / math.sqrt(replicas)
                away = abs(predicted[window].mean() - of_replicas.mean())
                assert away <= 0.05 * of_replicas.mean() + 4 * error, name
        compared += 1
    assert compared >= 10
    return prediction


def test_label_noise():
    problem, network = setting(samples=200, dim=10, width=200)
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(3.0))
    prediction = check(problem, network, dynamics, 400_000)
    assert prediction["norm_mean"][-1] < 0.5 * prediction["norm_mean"][0]


def test_batches_of_gaussian_noise():
    problem, network = setting(samples=100, dim=6, width=50)
    dynamics = lnsim.SGD(4e-3, lnsim.LabelNoise(4.0, "gaussian"), batch_size=4)
    check(problem, network, dynamics, 50_000)


def test_full_batches():
    problem, network = setting(samples=20, dim=5, width=50)
    check(problem, network, lnsim.GD(4e-3, lnsim.LabelNoise(8.0, "uniform")), 40_000)


def test_fewer_samples_than_dimensions():
    problem, network = setting(samples=8, dim=12, width=60)
    check(problem, network, lnsim.SGD(2e-3, NOISE), 100_000)


def test_one_sample_sam():
    problem, network = setting(samples=200, dim=10, width=200)
    prediction = check(problem, network, lnsim.SAM(1e-3, 0.1), 100_000)
    assert prediction["norm_mean"][-1] < 0.7 * prediction["norm_mean"][0]


def test_sam_with_label_noise():
    problem, network = setting(samples=100, dim=6, width=60)
    check(problem, network, lnsim.SAM(1e-3, 0.05, lnsim.LabelNoise(1.5)), 60_000)


def test_without_noise_the_network_stays_where_the_fit_leaves_it():
    problem, network = setting(samples=100, dim=6, width=200)
    dynamics = lnsim.GD(1e-4)
    run = lnsim.simulate(problem, network, dynamics, steps=20_000, record_every=100)
    prediction = cloud.predict(problem, network, dynamics, run.steps.astype(float))
    for name in ("norm_mean", "norm_squared", "alignment_mean", "ntk_distance"):
        np.testing.assert_allclose(prediction[name], run[name], rtol=0.01, atol=1e-6, err_msg=name)
    for name in ("train_loss", "test_loss", "linearized_train_loss", "linearized_test_loss"):
        early = run[name] > 1e-5 * run[name][0]
        assert np.count_nonzero(early) > 10
        np.testing.assert_allclose(prediction[name][early], run[name][early], rtol=0.05)


def test_single_neurons_follow_their_own_paths():
    """Neuron by neuron, while the matrix G that carries them all hardly fluctuates."""
    problem, network = setting(samples=200, dim=10, width=200)
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(3.0))
    run = lnsim.simulate(problem, network, dynamics, steps=100_000, record_every=1000, tracked=5)
    steps = run.steps.astype(float)
    prediction = cloud.predict(problem, network, dynamics, steps)
    paths = prediction.paths(run["tracked_neurons"])
    np.testing.assert_allclose(paths["tracked_norm"], run["tracked_norm"], rtol=0.08)
    for k, step in enumerate(run["cloud_step"]):
        norms, alignments = prediction.cloud(int(np.flatnonzero(run.steps == step)[0]))
        away = norms / run["cloud_norm"][k] - 1
        assert math.sqrt(np.mean(away**2)) < 0.03
        assert np.corrcoef(alignments, run["cloud_alignment"][k])[0, 1] > 0.9


# What it refuses


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        (lnsim.SGD(1e-3, NOISE, momentum=0.9), "momentum 0.9"),
        (lnsim.SGD(1e-3, NOISE, weight_decay=0.1), "weight decay 0.1"),
        (lnsim.SGD(1e-3, NOISE, replacement=False), "with replacement"),
        (lnsim.SGD(np.array([1e-3, 2e-3]), NOISE), "one lr"),
        (lnsim.SAM(1e-3, 0.1, batch_size=2), "one sample a step"),
        (lnsim.SAM(1e-3, 0.1, normalized=False), "plain label noise"),
        (lnsim.Oscillation(1e-3), "Oscillation"),
        (lnsim.SGD(0.2, NOISE), "too large for a quasi-stationary"),
        (lnsim.SGD(3e-3, lnsim.LabelNoise(60.0)), "small parameter is"),
    ],
)
def test_dynamics_outside_the_premises_are_refused(dynamics, message):
    problem, network = setting(samples=100, dim=5, width=100)
    with pytest.raises(ValueError, match=message):
        cloud.predict(problem, network, dynamics, [0.0, 1e6])


def test_problems_outside_the_premises_are_refused():
    problem, network = setting()
    dynamics = lnsim.SGD(1e-3, NOISE)
    with pytest.raises(ValueError, match="times must ascend"):
        cloud.predict(problem, network, dynamics, [2.0, 1.0])
    noisy = lnsim.Problem(problem.X, problem.y + np.arange(60.0), problem.theta_star)
    with pytest.raises(ValueError, match="labels that theta_star interpolates"):
        cloud.predict(noisy, network, dynamics, [0.0, 1.0])
    with pytest.raises(KeyError, match="norm_mean"):
        cloud.predict(problem, network, dynamics, [0.0, 1.0])["norm_meen"]


def test_every_formula_is_of_a_recorded_quantity():
    from lnsim.run import quantities

    known = quantities.TABLE
    assert set(FORMULAS) <= set(known)
