"""The compiled equations of SGD against those for the kicks of any dynamics, in NumPy."""

from dataclasses import dataclass

import numpy as np
import pytest

import lnsim
from lnsim.experiments.case import Case
from lnsim.theory import cloud, course, descent, manifold
from lnsim.theory.axes import Data
from lnsim.theory.kicks import Descent, Sharp


@dataclass(frozen=True)
class Plain:
    """The kicks of SGD as a dynamics of its own, which the general equations take."""

    same: Descent

    @property
    def lr(self):
        return self.same.lr

    @property
    def sigma(self):
        return self.same.sigma

    def shares(self, samples):
        return self.same.shares(samples)

    def kick(self, mean, variance, size):
        return self.same.kick(mean, variance, size)


def start(samples=40, dim=4, width=60):
    rng = np.random.default_rng(1)
    data = Data.of(rng.standard_normal((samples, dim)) * np.linspace(0.7, 1.3, dim))
    M = rng.standard_normal((width, dim + 1)) / np.sqrt([*[dim] * dim, width])
    return data, rng.standard_normal(dim), M


def test_the_drift_is_that_of_the_general_equations():
    data, target, M = start()
    gram = M.T @ M
    dynamics = Descent(4e-3, 2.0)
    P, q, _ = course.moments(gram, np.eye(len(gram)))
    found, expected = (
        manifold.drift(data, target, each, P, q, tolerance=1e-12)
        for each in (dynamics, Plain(dynamics))
    )
    # The general equations take the size of C from its trace, SGD's from that of N: at leading
    # order alike, so that these agree to the order of the small parameter.
    for name in ("N", "C", "loss", "slowest", "K_a"):
        left, right = getattr(found, name), getattr(expected, name)
        if name != "K_a":
            np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-9 * np.abs(right).max())
        else:
            assert left == pytest.approx(right, rel=found.expansion * np.trace(found.Z))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_the_fit_is_that_of_the_general_equations(batch):
    data, target, M = start()
    dynamics = Descent(4e-3, 2.0, batch)
    times = np.array([0.0, 1.0, 7.0, 40.0, 200.0])
    if batch:
        found, expected = (
            course._fit(data, target, M.T @ M, each, times) for each in (dynamics, Plain(dynamics))
        )
        # Each takes steps of its own, within the integrator's tolerance.
        for name in ("G", "delta", "C", "Z", "N"):
            left, right = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(left, right, rtol=2e-3, atol=1e-3 * np.abs(right).max())
    still = course._fit(data, target, M.T @ M, dynamics, times, frozen=True)
    np.testing.assert_array_equal(still.G, np.broadcast_to(np.eye(5), still.G.shape))
    # Frozen, the mean predictor relaxes at the rates of A Sigma.
    P, q, theta = course.moments(M.T @ M, np.eye(5))
    rates, vectors = np.linalg.eig((P + q * np.eye(4)) @ np.diag(data.spectrum))
    relaxed = vectors @ (
        np.exp(-4e-3 * rates[:, None] * times) * np.linalg.solve(vectors, theta - target)[:, None]
    )
    np.testing.assert_allclose(still.delta, relaxed.T.real, rtol=2e-3, atol=2e-3)


def test_the_course_is_that_of_the_general_equations():
    """Z and zbar differ in c alone (manifold.py), by the order of the small parameter."""
    data, target, M = start()
    dynamics = Descent(4e-3, 2.0)
    times = np.array([0.0, 500.0, 2_000.0, 20_000.0])
    found, expected = (
        course.follow(data, target, M, each, times) for each in (dynamics, Plain(dynamics))
    )
    assert times[2] > found.fitted and found.expansion[-1] < 0.2
    assert np.trace(found.G[3]) < 0.8 * np.trace(found.G[2])
    for name, within in (("G", 1e-3), ("C", 1e-3), ("N", 1e-3), ("Z", 0.02), ("zbar", 0.02)):
        left, right = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(
            left, right, rtol=0, atol=within * np.abs(right).max(), err_msg=name
        )


def test_an_unknown_law_of_noise_is_refused():
    with pytest.raises(ValueError, match="law must be"):
        Descent(1e-3, 1.0, law="cauchy")
    with pytest.raises(ValueError, match="law must be"):
        Sharp(1e-3, 0.1, 1.0, "cauchy")


def test_a_covariance_without_a_bound_is_refused():
    data, target, M = start()
    P, q, _ = course.moments(M.T @ M, np.eye(5))
    with pytest.raises(manifold.NoStationaryState, match=r"lr = 0\.5 is too large"):
        manifold.drift(data, target, Descent(0.5, 1.0), P, q)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_the_largest_rate_is_bounded_closely_from_above(rank):
    rng = np.random.default_rng(rank)
    weights = rng.standard_normal((rank + 2, rank))
    A, spectrum = weights.T @ weights, rng.uniform(0.2, 3.0, rank)
    exact = np.linalg.eigvals(A * spectrum).real.max()
    assert exact <= descent.largest_rate(A, spectrum) * (1 + 1e-12)
    assert descent.largest_rate(A, spectrum) <= exact * rank ** (1 / 32) * (1 + 1e-12)


def test_what_has_decayed_to_nothing_does_not_stop_the_fit():
    """Without label noise C and delta fall below rounding long before the fit is over."""
    case = Case.of_keys(
        "label-noise",
        {"lr": 5e-4, "sigma": 0.0, "samples": 28, "dim": 6, "width": 44, "seed": 29, "steps": 10},
    )
    prediction = case.predict([0.0, 1e6])
    assert prediction.fitted < 1e6 and abs(prediction["train_loss"][1]) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 0, 7])
def test_the_compiled_loops_of_a_sweep_are_the_same_equations(batch_size):
    """Whole courses, from the fit of the labels on, in steps that may differ by rounding."""
    problem, network = lnsim.gaussian_regression(30, 5), lnsim.ntk_init(40, 5)
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(2.0), batch_size=batch_size)
    times = np.array([0.0, 3.0, 100.0, 2e4, 1e6])
    ours = cloud.predict(problem, network, dynamics, times)
    with course.many():
        looped = cloud.predict(problem, network, dynamics, times)
    for name in ("norm_mean", "norm_squared", "train_loss", "cosine_mean", "hessian_trace"):
        np.testing.assert_allclose(looped[name], ours[name], rtol=1e-8, err_msg=name)
