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


def test_theorem_2_bounds_the_lazy_escape(figures_setting):
    problem, network = figures_setting
    lr, sigma, width = 1e-3, 4.0, 1000
    dynamics = lnsim.SGD(lr, lnsim.LabelNoise(sigma))
    run = lnsim.simulate(
        problem, network, dynamics, steps=20_000, record_every=20_000, replicas=SEEDS
    )
    bound = 384 * np.sqrt(np.log(width)) / (sigma**2 * lr**2 * np.sqrt(width))
    assert (run["lazy_escape"] > 0).all()
    assert (run.phases().last_escape < bound).all()


def decay_rates(lr, sigma):
    """Measured Phase I decay rates of |W|_F^2 over seeds, at a width where the loss adds little."""
    rates = []
    for seed in range(SEEDS):
        problem = lnsim.gaussian_regression(200, 20, seed=seed, theta_norm=0.5)
        steps = int(1.5 / (lr * sigma) ** 2)
        run = lnsim.simulate(
            problem, lnsim.ntk_init(50, 20, seed=seed), lnsim.SGD(lr, lnsim.LabelNoise(sigma)),
            steps=steps, record_every=steps // 50, seed=seed, linearized=False,
        )  # fmt: skip
        logs = np.log(run["norm_squared"])
        rates.append(-np.polyfit(run.steps, logs, 1)[0])
    return np.array(rates)


@pytest.mark.parametrize("of", ["sigma", "lr"])
def test_the_decay_rate_is_of_second_order_in_sigma_and_in_lr(of):
    values = {"sigma": [2.0, 3.0, 4.5], "lr": [5e-4, 7e-4, 1e-3]}[of]
    rates = [decay_rates(**({"lr": 7e-4, "sigma": 3.0} | {of: v})) for v in values]
    slopes = np.polyfit(np.log(values), np.log(np.array(rates)), 1)[0]
    error = slopes.std(ddof=1) / np.sqrt(SEEDS)
    # The loss, of order lr, adds to the noise: at this width less than 0.1 to the exponent.
    assert abs(slopes.mean() - 2.0) < 4 * error + 0.1


def test_descent_without_noise_conserves_the_balance_to_first_order():
    # d/dt (W W^T - a a^T) = 0 under gradient flow; descent of step lr leaves an error of order lr.
    problem, network = lnsim.gaussian_regression(40, 6), lnsim.ntk_init(8, 6)
    before = network.W @ network.W.T - np.outer(network.a, network.a)
    errors = []
    for lr in (0.02, 0.01, 0.005):
        run = lnsim.simulate(
            problem, network, lnsim.GD(lr), steps=round(10 / lr), record_every=round(10 / lr)
        )
        W, a = run.final.W, run.final.a
        errors.append(np.abs(W @ W.T - np.outer(a, a) - before).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert errors[0] < 0.2 * np.abs(before).max()
    np.testing.assert_allclose(ratios, 2.0, rtol=0.1)


def test_sam_leaves_the_lazy_regime_and_sgd_does_not(figures_setting):
    problem, network = figures_setting
    rho = np.array([0.0, 0.1])
    run = lnsim.simulate(
        problem, network, lnsim.SAM(1e-3, rho), steps=200_000, record_every=20_000, replicas=2
    )
    lazy, rich = run["norm_squared"][:, -1] / run["norm_squared"][:, 0]
    assert lazy > 0.98
    assert rich < 0.2
    assert run["cosine_mean"][1, -1] > 3 * run["cosine_mean"][0, -1]


def test_the_twin_is_what_a_lazy_run_follows():
    problem = lnsim.gaussian_regression(20, 10)
    gaps = []
    for width in (100, 1_600):
        network = lnsim.ntk_init(width, 10)
        descent = lnsim.GD(2e-2 * 100 / width)
        run = lnsim.simulate(problem, network, descent, steps=40, record_every=1)
        gap = np.abs(run["train_loss"] - run["linearized_train_loss"]).max()
        gaps.append(gap / run["train_loss"][0])
    assert gaps[1] < 0.4 * gaps[0]
