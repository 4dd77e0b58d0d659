"""The law of full-batch SAM against its definition, convex optimality and runs.

Such a run is deterministic: what separates it from the law is the expansion and the step of the
integrator, not statistics.
"""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import lnsim
from lnsim.theory import axes, cloud, full_sam
from lnsim.theory.kicks import FullSharp
from lnsim.theory.whole import whole

LR, RHO = 4e-3, 0.1


def setting(samples=50, dim=5, width=1000, seed=0):
    problem = lnsim.gaussian_regression(samples, dim, seed, test_samples=200)
    return problem, lnsim.ntk_init(width, dim, seed)


def on_manifold(dim=6, seed=0):
    """A state with theta = theta_star, and its G^T G."""
    rng = np.random.default_rng(seed)
    data = axes.Data.of(rng.standard_normal((40, dim)))
    M = rng.standard_normal((dim + 2, dim + 1))
    gram = M.T @ M
    state = full_sam._OnManifold.of(data, gram[:-1, -1], gram, np.eye(dim + 1))
    return state, gram


def shares(dim, seed):
    """A positive definite matrix of trace 1."""
    root = np.random.default_rng(seed).standard_normal((dim, dim))
    return root @ root.T / np.sum(root**2)


@pytest.fixture(scope="module")
def run():
    problem, network = setting()
    sam = lnsim.SAM(LR, RHO, batch_size=0)
    return lnsim.simulate(problem, network, sam, steps=160_000, record_every=1_001)


@pytest.fixture(scope="module")
def law(run):
    return cloud.predict(*setting(), lnsim.SAM(LR, RHO, batch_size=0), run.steps.astype(float))


def test_the_fall_of_B_is_that_along_the_slope_and_theta_stays():
    at, gram = on_manifold()
    Y, h = shares(6, 1), 1e-6
    moved = np.eye(7) + h * at.slope(Y)
    then = full_sam._OnManifold.of(at.data, at.target, gram, moved)
    np.testing.assert_allclose((at.B - then.B) / h, at.fall(Y), rtol=0, atol=1e-4)
    theta = (moved.T @ gram @ moved)[:-1, -1]
    np.testing.assert_allclose(theta, at.target, rtol=0, atol=1e-9)


def test_the_fall_is_symmetric_and_positive_and_below_its_bound():
    at, _ = on_manifold()
    Y, other = shares(6, 1), shares(6, 2)
    across = np.sum(Y * at.fall(other))
    assert across == pytest.approx(np.sum(other * at.fall(Y)), rel=1e-12)
    for each in (Y, other, Y - other):
        assert 0 < np.sum(each * at.fall(each)) <= at.steepest * np.sum(each**2)


@pytest.mark.parametrize("reach", [1e-3, 0.03, 1.0])
def test_the_shares_keep_the_largest_eigenvalues_together(reach):
    """The optimality of (4): B - h F(Y) has its largest eigenvalue on the range of Y."""
    at, _ = on_manifold()
    Y = full_sam._shares(at, reach, np.eye(6) / 6)
    assert np.trace(Y) == pytest.approx(1)
    after = at.B - reach * at.fall(Y)
    largest = np.linalg.eigvalsh(after)[-1]
    assert np.sum(Y * after) == pytest.approx(largest, rel=3e-4)
    assert np.linalg.eigvalsh(Y)[0] > -1e-12


def test_the_nearest_matrix_of_trace_one():
    Y = full_sam._projected(np.diag([0.9, 0.5, -2.0]))
    np.testing.assert_allclose(Y, np.diag([0.7, 0.3, 0.0]), atol=1e-12)


def test_one_step_of_the_fit_is_one_step_of_sam():
    problem, network = setting()
    sam = lnsim.SAM(LR, RHO, batch_size=0)
    run = lnsim.simulate(problem, network, sam, steps=30, record_every=1)
    law = cloud.predict(problem, network, sam, run.steps.astype(float))
    assert law.fitted > 30
    for name in ("norm_squared", "train_loss", "linearized_train_loss", "hessian_trace"):
        np.testing.assert_allclose(law[name], run[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("norm_squared", 0.002), ("hessian_trace", 0.002),
        ("sharpness", 0.02), ("norm_mean", 0.002), ("cosine_mean", 0.005), ("ntk_distance", 0.02),
        ("balancedness", 0.002), ("linearized_train_loss", 1e-6),
    ],
)  # fmt: skip
def test_the_law_follows_a_run(run, law, name, within):
    """|W|_F^2 falls to a twentieth.  The eigenvalues that fall together are 0.5% apart."""
    assert run["norm_squared"][-1] < 0.05 * run["norm_squared"][0]
    np.testing.assert_allclose(law[name][1:], run[name][1:], rtol=within)


@pytest.mark.parametrize(("name", "within"), [("train_loss", 0.1), ("second_layer_norm", 0.01)])
def test_what_bounces_follows_the_law_in_the_mean(run, law, name, within):
    """d turns, and its size and |a| with it, by 30% and 3%: a mean over 40 records has 5%, 0.5%."""
    for part in (slice(1, 40), slice(40, 80), slice(80, 120)):
        assert run[name][part].mean() == pytest.approx(law[name][part].mean(), rel=within)


def test_the_largest_eigenvalue_falls_to_the_least_of_all_interpolators():
    problem, network = setting()
    data = axes.Data.of(problem.X)
    t = data.root * (data.basis.T @ problem.theta_star)

    def largest(log_q):  # with W^T W = theta theta^T/|a|^2, the least there is
        q = math.exp(log_q)
        return np.linalg.eigvalsh(np.outer(t, t) / q + q * np.diag(data.spectrum))[-1]

    least = minimize_scalar(largest, (-3, 3)).fun
    sam = lnsim.SAM(LR, 0.05, batch_size=0)
    end = cloud.predict(problem, network, sam, [0.0, 1_050_000.0])
    assert least < end["sharpness"][-1] < 1.01 * least
    assert end["cosine_mean"][-1] < 0.5  # which leaves the neurons where they were
    with pytest.raises(ValueError, match="predicts nothing here"):
        cloud.predict(problem, network, sam, [0.0, 2_000_000.0])


def test_the_whole_course_ends_where_the_eigenvalue_is_least():
    problem, network = setting()
    course = whole(problem, network, lnsim.SAM(LR, RHO, batch_size=0))
    assert 200_000 < course.until < 280_000
    assert "predicts nothing here" in course.beyond
    assert course.prediction["norm_squared"][-1] < 30


def test_refusals():
    problem, network = setting()
    for changes in ({"batch_size": 2}, {"batch_size": 0, "noise": lnsim.LabelNoise(1.0)}):
        with pytest.raises(ValueError, match="one sample a step, or with all of them"):
            lnsim.SAM(LR, RHO, **changes).kicks()
    with pytest.raises(ValueError, match="above 0"):
        FullSharp(LR, 0.0)
    twin = cloud.predict(problem, network, lnsim.SAM(8e-3, RHO, batch_size=0), [0.0, 1000.0])
    assert twin["sharpness"][-1] < 200
    with pytest.raises(ValueError, match=r"lr lambda_max = 2\.42"):
        twin["linearized_train_loss"]
    with pytest.raises(ArithmeticError, match="too small"):
        cloud.predict(problem, network, lnsim.SAM(1e-9, RHO, batch_size=0), [0.0, 1.0])
