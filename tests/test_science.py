"""What the theory says of label noise SGD, within statistical error."""

import numpy as np
import pytest

import lnsim

SEEDS = 4


@pytest.fixture(scope="module")
def figures_setting():
    return lnsim.gaussian_regression(200, 20, seed=0), lnsim.ntk_init(1000, 20, seed=0)


def test_without_noise_the_run_stays_lazy(figures_setting):
    problem, network = figures_setting
    run = lnsim.simulate(problem, network, lnsim.SGD(1e-3), steps=100_000, record_every=10_000)
    assert run["train_loss"][-1] < 1e-20
    assert run["norm_mean"][-1] == pytest.approx(run["norm_mean"][0], rel=0.02)
    assert run["cosine_mean"][-1] < 1.2 * run["cosine_mean"][0]
    assert run["ntk_distance"][-1] < 0.05


def test_with_noise_it_ends_in_the_stationary_rank_one_state(figures_setting):
    # |W|_F^2 -> |theta*| sqrt(tr S / (u S u)), |a|^2 -> |theta*| / the same root (paper.md).
    problem, network = figures_setting
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(4.0))
    run = lnsim.simulate(
        problem, network, dynamics, steps=2_000_000, record_every=10_000, replicas=SEEDS
    )
    norm = np.linalg.norm(problem.theta_star)
    direction = problem.theta_star / norm
    covariance = problem.X.T @ problem.X / problem.samples
    ratio = np.sqrt(np.trace(covariance) / (direction @ covariance @ direction))
    late = run.steps >= 1_400_000
    for name, predicted in (
        ("norm_squared", norm * ratio),
        ("second_layer_norm", np.sqrt(norm / ratio)),
    ):
        means = run[name][:, late].mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(SEEDS)
        # 3 % for what is left of the other directions and for the noise in theta.
        assert abs(means.mean() - predicted) < 4 * error + 0.03 * predicted, name
    assert (run["cosine_mean"][:, -1] > 0.98).all()


def test_phases_do_not_depend_on_how_often_is_recorded(figures_setting):
    problem, network = figures_setting
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(4.0))
    found = [
        lnsim.simulate(problem, network, dynamics, steps=600_000, record_every=every).phases()
        for every in (1_000, 3_000, 20_000)
    ]
    for phases in found[1:]:
        assert phases.first_escape == found[0].first_escape
        assert phases.last_escape == found[0].last_escape
        assert phases.alignment == pytest.approx(found[0].alignment, rel=0.02)
    assert found[0].first_escape < found[0].last_escape < found[0].alignment
