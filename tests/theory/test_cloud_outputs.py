"""The law of the cloud with C outputs against algebra, one output, and replicas."""

import math

import numpy as np
import pytest
from scipy.linalg import expm

import lnsim
from lnsim.theory import axes, cloud, cloud_outputs_neurons, course_outputs, flatness
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold_outputs import Tangent, drift


def state(outputs=3, dim=4, samples=9, seed=0):
    """Data, P, q and Theta of a random network, in the principal axes."""
    rng = np.random.default_rng(seed)
    data = axes.Data.of(rng.standard_normal((samples, dim)) * (1 + np.arange(dim)))
    W, A = rng.standard_normal((20, dim)), rng.standard_normal((outputs, 20)) / 3
    return data, W.T @ W / 10, A @ A.T, A @ W


def matrix(tensor):
    """(C, r, C, r) as an operator."""
    size = tensor.shape[0] * tensor.shape[1]
    return tensor.reshape(size, size)


# Its parts


def test_finite_boosts():
    z = np.random.default_rng(0).standard_normal((2, 3, 4))
    boosts = axes.finite_boosts(z)
    for each, boost in zip(z, boosts, strict=True):
        np.testing.assert_allclose(boost, expm(axes.boosts(each)), rtol=1e-12)
    one = axes.finite_boost(z[0, 0])
    np.testing.assert_allclose(axes.finite_boosts(z[0, :1]), one, rtol=1e-12, atol=1e-13)


def test_tangent_solves_its_operator():
    data, P, q, _ = state()
    V = np.random.default_rng(1).standard_normal((3, 4))
    U = Tangent.of(data, P, q).solve(V)
    np.testing.assert_allclose(q @ U + U @ P, V, rtol=1e-10)
    np.testing.assert_allclose(course_outputs.tangent(P, q, U), V, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 3, 0])
def test_covariance_is_stationary_under_the_exact_average_over_draws(batch):
    data, P, q, theta = state()
    lr, sigma = 1e-3, 2.0
    C = matrix(drift(data, theta, Descent(lr, sigma, batch), P, q, tolerance=1e-12).C)
    x, n, outputs = data.samples, len(data.samples), len(q)
    operator = np.kron(np.eye(outputs), P) + np.kron(q, np.eye(len(P)))
    # One step D <- D - lr T[g], g = mean over the batch of (D x - epsilon) x^T.
    maps = [np.kron(np.eye(outputs), np.outer(each, each)) for each in x]
    of_all = sum(maps) / n
    of_noise = sigma**2 * np.kron(np.eye(outputs), x.T @ x / n)
    if batch:
        of_samples = sum(S @ C @ S for S in maps) / n
        N = (of_samples + of_noise) / batch + (1 - 1 / batch) * of_all @ C @ of_all
    else:
        N = of_noise / n + of_all @ C @ of_all
    drifted = operator @ of_all @ C
    after = C - lr * (drifted + drifted.T) + lr**2 * operator @ N @ operator
    np.testing.assert_allclose(after, C, atol=1e-13 * np.abs(C).max() / lr)


def test_contraction_is_the_mean_over_boosts():
    data, P, q, _ = state()
    rng = np.random.default_rng(2)
    outputs, rank = len(q), len(P)
    root = 1e-2 * rng.standard_normal((outputs * rank, outputs * rank))
    zbar = 1e-4 * rng.standard_normal((outputs, rank))
    half = rng.standard_normal((outputs * rank, outputs * rank))
    N, Z = (half @ half.T).reshape(outputs, rank, outputs, rank), root @ root.T
    bare = course_outputs.contraction(N, 0 * N, 0 * zbar)
    points = math.sqrt(outputs * rank) * root.T.reshape(-1, outputs, rank)
    boosts = [axes.boosts(zbar + sign * z) for z in points for sign in (1, -1)]
    mean = sum(expm(S) @ bare @ expm(-S) for S in boosts) / len(boosts)
    K = course_outputs.contraction(N, Z.reshape(N.shape), zbar)
    second = np.abs(mean - bare).max()
    assert np.abs(K - mean).max() < 0.05 * second  # terms of fourth order
    of_blocks = drift(data, np.ones((outputs, rank)), Descent(1e-3, 1.0), P, q)
    assert of_blocks.K.shape == K.shape


def test_drift_contracts_by_the_law_of_its_own_moments():
    data, P, q, theta = state()
    at = drift(data, theta, Descent(1e-3, 1.0), P, q, tolerance=1e-12)
    N = course_outputs.step_square(data, Descent(1e-3, 1.0), at.C, np.zeros_like(theta))
    np.testing.assert_allclose(at.K, course_outputs.contraction(N, at.Z, at.zbar), rtol=1e-8)
    # T[l] undoes what K does to Theta.
    gram = np.block([[P, theta.T], [theta, q]])
    slope = gram @ (axes.boosts(at.hold) - at.K / 2)
    np.testing.assert_allclose((slope + slope.T)[4:, :4], 0, atol=1e-10 * np.abs(slope).max())


@pytest.mark.parametrize(("outputs", "dim"), [(3, 4), (4, 3), (1, 4)])
def test_the_flattest_interpolator_is_at_rest(outputs, dim):
    data, *_, theta = state(outputs, dim)
    spectrum, root = data.spectrum, data.root
    ratio = math.sqrt(outputs / spectrum.sum())
    U, s, Vt = np.linalg.svd(theta * root, full_matrices=False)
    q, P = ratio * (U * s) @ U.T, (Vt.T * s / ratio) @ Vt / np.outer(root, root)
    trace = outputs * np.trace(P * spectrum) + np.trace(q) * spectrum.sum()
    assert trace == pytest.approx(float(flatness.least_trace(theta, np.diag(spectrum))))
    small = 1e-6 * np.trace(q) / outputs  # outputs > dim: q is singular
    at = drift(data, theta, Descent(1e-7, 1.0), P, q + small * (dim < outputs) * np.eye(outputs))
    gram = np.block([[P, theta.T], [theta, q]])
    slope = gram @ (axes.boosts(at.hold) - at.K / 2)
    assert np.abs(slope + slope.T).max() < 1e-4 * np.abs(gram @ at.K).max()
    away = np.block([[2 * P, theta.T], [theta, q]])  # the same predictor, less flat
    far = drift(data, theta, Descent(1e-7, 1.0), 2 * P, q + small * np.eye(outputs))
    slope = away @ (axes.boosts(far.hold) - far.K / 2)
    assert np.abs(slope + slope.T).max() > 0.05 * np.abs(away @ far.K).max()


def normal_norm(mean, root):
    """E|x| of x ~ N(mean, root root^T) by the law, and over 200,000 draws (0.1%)."""
    x = mean + np.random.default_rng(0).standard_normal((200_000, len(mean))) @ root.T
    law = cloud_outputs_neurons.mean_norm(
        np.array([mean]), (root @ root.T)[None, :, None, :], np.ones((1, 1))
    )
    return law[0], np.linalg.norm(x, axis=1).mean()


def test_mean_norm_of_a_normal_vector():
    root = np.array([[0.5, 0.3, 0.0], [0.0, 0.4, 0.2], [-0.3, 0.0, 0.6]])
    law, drawn = normal_norm(np.array([3.0, 0.0, 1.0]), root)
    assert law == pytest.approx(drawn, rel=0.003)
    law, drawn = normal_norm(np.zeros(3), 0.7 * np.eye(3))
    assert 1.01 < law / drawn < 1.025
    law, drawn = normal_norm(np.array([0.4]), np.eye(1))
    assert law == pytest.approx(drawn, rel=0.005)


# One output


def test_one_row_of_outputs_agrees_with_one_output_to_leading_order():
    problem = lnsim.gaussian_regression(60, 5, seed=1)
    network = lnsim.ntk_init(40, 5, seed=1)
    row = lnsim.Network(network.W, network.a[None])
    times = np.array([0.0, 1e3, 1e4, 1e5, 1e6])
    dynamics = lnsim.SGD(2e-4, lnsim.LabelNoise(2.0))
    one = cloud.predict(problem, network, dynamics, times)
    outputs = cloud.predict(problem, row, dynamics, times)
    assert one.expansion.max() < 2e-3
    np.testing.assert_allclose(outputs.expansion[-1], one.expansion[-1], rtol=1e-3)
    allowed = 10 * one.expansion.max()  # 0.3%
    shared = [name for name in one.names if name in outputs.names]
    assert len(shared) >= 14
    for name in shared:
        error = np.abs(outputs[name] - one[name]).max()
        scale = 1.0 if name == "ntk_distance" else np.abs(one[name]).max()
        assert error < allowed * scale, (name, error / scale)
    for name, path in one.paths([0, 3]).items():
        np.testing.assert_allclose(
            outputs.paths([0, 3])[name], np.abs(path), rtol=allowed, err_msg=name
        )
    for mine, theirs in zip(outputs.cloud(3), one.cloud(3), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=allowed)
    column = lnsim.Problem(problem.X, problem.y[:, None], problem.theta_star[None])
    again = cloud.predict(column, row, dynamics, times)
    np.testing.assert_array_equal(again["norm_mean"], outputs["norm_mean"])


# Replicas

REPLICAS = 16


def compare(problem, network, dynamics, steps, *, within, measures=("kernel_alignment",)):
    """Asserts that the law is within a share `within` of the replicas' mean, or 5 standard errors.

    Every quantity is averaged over the records of each quarter of the run, the first without the
    start, in every replica; the standard error is that of the REPLICAS averages.
    """
    run = lnsim.simulate(
        problem, network, dynamics, steps=steps, record_every=steps // 80, replicas=REPLICAS,
        clouds=False, tracked=4, measures=measures,
    )  # fmt: skip
    law = cloud.predict(problem, network, dynamics, run.arrays["step"].astype(float))
    quarters = np.array_split(np.arange(1, 81), 4)
    measured = [name for name in law.names if name in run.arrays]
    assert set(law.names) - set(measured) == {"kernel_alignment"} - set(measures)
    paths = law.paths(run.arrays["tracked_neurons"])
    for name in [*measured, *paths]:
        predicted = paths[name] if name in paths else law[name]
        for quarter in quarters:
            averages = run.arrays[name][:, quarter].mean(axis=1)
            error = averages.std(axis=0, ddof=1) / math.sqrt(REPLICAS)
            gap = np.abs(predicted[quarter].mean(axis=0) - averages.mean(axis=0))
            allowed = 5 * error + within * np.abs(averages.mean(axis=0))
            assert (gap <= allowed).all(), (name, quarter[0], gap / allowed)
    start = [law[name][0] for name in measured if name != "ntk_distance"]
    of_run = [run.arrays[name][0, 0] for name in measured if name != "ntk_distance"]
    np.testing.assert_allclose(start, of_run, rtol=1e-9)
    return law, run


def test_the_law_holds_from_the_start_to_the_flattest_interpolator():
    # Standard errors of the averages: norms 0.01-0.05%, tr H 0.05%, losses 1-2%.
    problem = lnsim.gaussian_regression(100, 6, outputs=3)
    network = lnsim.ntk_init(30, 6, outputs=3)
    dynamics = lnsim.SGD(2e-3, lnsim.LabelNoise(1.0))
    law, run = compare(problem, network, dynamics, 320_000, within=0.002, measures=())
    assert law.expansion.max() < 0.003
    assert law["flatness_gap"][1] > 1.9
    assert run.arrays["flatness_gap"][:, -1].mean() < 1.03
    rest = cloud.predict(problem, network, dynamics, np.array([0.0, 4e6]))
    assert rest["flatness_gap"][1] == pytest.approx(1.0, abs=0.002)


@pytest.mark.parametrize(
    ("dynamics", "outputs"),
    [
        (lnsim.SGD(1e-3, lnsim.LabelNoise(3.0), batch_size=4), 2),
        (lnsim.GD(2e-3, lnsim.LabelNoise(10.0, law="gaussian")), 5),
    ],
    ids=["batches", "full batch, Gaussian"],
)
def test_the_law_holds_for_batches_and_other_laws(dynamics, outputs):
    # d = 3 inputs for 2 or 5 outputs; standard errors as above, of the first quarter twice that.
    problem = lnsim.gaussian_regression(40, 3, seed=2, outputs=outputs)
    network = lnsim.ntk_init(25, 3, seed=2, outputs=outputs)
    compare(problem, network, dynamics, 80_000, within=0.004)


def test_the_second_order_of_the_fit():
    # Standard errors 0.03-0.1%; without zbar tr H would be 0.8% off, |W|^2 0.4%.
    problem = lnsim.gaussian_regression(100, 6, outputs=3)
    network = lnsim.ntk_init(30, 6, outputs=3)
    dynamics = lnsim.SGD(2e-3, lnsim.LabelNoise(4.0))
    run = lnsim.simulate(
        problem, network, dynamics, steps=2_000, record_every=50, replicas=256, clouds=False
    )
    law = cloud.predict(problem, network, dynamics, run.arrays["step"].astype(float))
    assert law.fitted > 2_000
    for name in ("norm_squared", "norm_mean", "second_layer_norm", "hessian_trace"):
        measured = run.arrays[name][:, 20:].mean()
        assert law[name][20:].mean() == pytest.approx(measured, rel=0.003), name


def test_the_law_holds_off_the_span_of_the_inputs():
    problem = lnsim.gaussian_regression(10, 15, seed=3, outputs=2)
    network = lnsim.ntk_init(25, 15, seed=3, outputs=2)
    dynamics = lnsim.SGD(2e-3, lnsim.LabelNoise(1.0))
    law, _ = compare(problem, network, dynamics, 80_000, within=0.004, measures=())
    assert "balancedness" not in law.names


# What it refuses


def test_refusals():
    problem = lnsim.gaussian_regression(40, 3, outputs=2)
    network = lnsim.ntk_init(20, 3, outputs=2)
    noise = lnsim.LabelNoise(1.0)
    times = [0.0, 10.0]
    with pytest.raises(ValueError, match="SAM kicks C outputs"):
        cloud.predict(problem, network, lnsim.SAM(1e-3, 0.1, noise), times)
    with pytest.raises(ValueError, match="a must have shape"):
        cloud.predict(problem, lnsim.ntk_init(20, 3, outputs=3), lnsim.SGD(1e-3, noise), times)
    with pytest.raises(ValueError, match="too large for a quasi-stationary state"):
        cloud.predict(problem, network, lnsim.SGD(0.5, noise), times)
    with pytest.raises(ValueError, match="theta_star interpolates"):
        off = lnsim.Problem(problem.X, problem.y + 1.0, problem.theta_star)
        cloud.predict(off, network, lnsim.SGD(1e-3, noise), times)
    with pytest.raises(ValueError, match=r"must be at most 256, got 30 x 9"):
        many = lnsim.gaussian_regression(20, 9, outputs=30)
        cloud.predict(many, lnsim.ntk_init(40, 9, outputs=30), lnsim.SGD(1e-3, noise), times)
    with pytest.raises(ValueError, match="small parameter"):  # rank 1 of 2: T becomes singular
        low = lnsim.low_rank_teacher(40, 3, 2, [3.0])
        cloud.predict(low, network, lnsim.SGD(2e-3, noise), [0.0, 1e7])
