"""The speed of one-sample SAM: its closed form, the matching with label noise, and runs."""

import math

import numpy as np
import pytest

import lnsim
from lnsim.experiments import label_noise
from lnsim.experiments import sam as experiment
from lnsim.experiments._synthetic import start
from lnsim.theory import axes, cloud, flatness, manifold, sam
from lnsim.theory.kicks import Descent, Sharp


def setting(samples=100, dim=5, width=300, seed=0):
    problem = lnsim.gaussian_regression(samples, dim, seed, test_samples=10)
    return problem, lnsim.ntk_init(width, dim, seed)


def fitted(samples=100, dim=5, width=300, seed=0):
    problem, network = setting(samples, dim, width, seed)
    return sam.fitted(problem.X, problem.theta_star, network.W, network.a)


# The closed form


@pytest.mark.parametrize("heat", [1e-3, 0.3, 1.0, 1.7])
def test_the_closed_form_solves_its_closure(heat):
    lr, rho = 2e-3, 0.3
    law = sam.speed_law(lr, rho, heat / lr)
    v, b = law.shaking, math.sqrt(2 / math.pi)
    growth = 1 + 2 * b * v + v**2
    assert 2 * v * (v + b) == pytest.approx(heat * growth, rel=1e-12)
    tau, s = v * rho * math.sqrt(heat / lr), math.sqrt(heat / lr)
    square = tau**2 + 2 * rho * s * b * tau + (rho * s) ** 2
    contraction = rho**2 + rho * b * tau / s
    assert law.rate == pytest.approx(lr**2 * square + 2 * lr * contraction, rel=1e-12)
    noise_loss = law.sigma_eff**2 * heat / (2 - heat)
    assert law.rate == pytest.approx(lr**2 * (law.sigma_eff**2 + noise_loss), rel=1e-12)
    assert law.loss == pytest.approx(tau**2 / 2)


def test_the_leading_order_is_the_drift_down_the_trace():
    law = sam.speed_law(1e-6, 0.2, 10.0)
    assert law.rate == pytest.approx(2 * 1e-6 * 0.2**2, rel=2e-5)
    assert law.sigma_eff == pytest.approx(0.2 * math.sqrt(2 / 1e-6), rel=2e-5)


@pytest.mark.parametrize("heat", [0.05, 0.5, 1.2])
def test_the_closed_form_is_the_drift_where_all_samples_are_alike(heat):
    """Many dimensions and signs as inputs, so that |grad f| is one for all and x.C x nearly."""
    rng = np.random.default_rng(0)
    data = axes.Data.of(rng.choice([-1.0, 1.0], size=(4000, 60)))
    P = 3 * np.diag(1 / data.spectrum)
    state = sam.State(data, np.zeros(60), P, 0.0)
    lr, rho = heat / state.trace, 1e-3
    law = sam.speed_law(lr, rho, state.trace)
    weighted = float(P.diagonal() @ data.spectrum / P.trace())
    at = manifold.drift(data, state.target, Sharp(lr, rho), P, 0.0)
    assert at.loss == pytest.approx(law.loss, rel=0.03)
    rate = sam.decay_rate(state, Sharp(lr, rho))
    assert rate == pytest.approx(law.rate * weighted, rel=0.03)


def test_no_closed_form_where_label_noise_feeds_itself():
    with pytest.raises(ValueError, match="must be below 2, got 2"):
        sam.speed_law(1e-3, 0.1, 2000.0)


# The covariance behind it


@pytest.mark.parametrize(
    ("samples", "heat", "rho", "sigma"),
    [(60, 0.5, 0.1, 0.0), (60, 1e-4, 0.01, 3.0), (8, 0.9, 0.3, 0.0), (24, 1e-4, 5.0, 0.01)],
)
def test_the_covariance_is_stationary(samples, heat, rho, sigma):
    """A R C + C R A = lr A N A, few samples and noise far below and above rho s included."""
    state = fitted(samples)
    lr = heat / state.trace
    dynamics = Sharp(lr, rho, sigma)
    at = manifold.drift(state.data, state.target, dynamics, state.P, state.q, tolerance=1e-9)
    A, x = state.P + state.q * np.eye(5), state.data.samples
    kick = dynamics.kick(
        np.zeros(samples),
        np.einsum("ki,ij,kj->k", x, at.C, x),
        np.einsum("ki,ij,kj->k", x, A, x),
    )
    R, N = ((x.T * moment) @ x / samples for moment in (kick.restoring, kick.square))
    np.testing.assert_allclose(at.N, N, rtol=1e-6, atol=1e-9 * np.abs(N).max())
    right = lr * A @ N @ A
    left = A @ R @ at.C
    np.testing.assert_allclose(left + left.T, right, rtol=0, atol=1e-6 * np.abs(right).max())


def test_without_a_stationary_state_it_refuses():
    state = fitted()
    with pytest.raises(ValueError, match="too large for a quasi-stationary state"):
        sam.decay_rate(state, Sharp(2.5 / state.trace, 0.1))


# As fast as label noise


def test_the_states_are_on_the_interpolators():
    problem, network = setting()
    state, rest = fitted(), sam.at_rest(problem.X, problem.theta_star)
    assert state.P.trace() == pytest.approx(np.sum(network.W**2), rel=0.01)
    least = flatness.least_trace(problem.theta_star[None], problem.gram)
    assert rest.trace == pytest.approx(float(least))
    assert np.linalg.matrix_rank(rest.P) == 1


def test_matched_radius_and_noise_undo_each_other():
    state = fitted()
    noise = Descent(0.5 / state.trace, 2.0)
    rho = sam.matched_radius(state, noise)
    assert sam.matched_noise(state, Sharp(noise.lr, rho)) == pytest.approx(2.0, rel=1e-6)
    assert rho == pytest.approx(2.0 / sam.speed_law(noise.lr, 1.0, state.trace).sigma_eff, rel=0.1)
    with pytest.raises(ValueError, match="sigma"):
        sam.matched_radius(state, Descent(noise.lr, 0.0))


def test_the_default_of_the_experiment_is_as_fast_as_that_of_label_noise():
    config, noisy = experiment.Config(), label_noise.Config()
    problem, network = start(config)
    rho = sam.radius_over_phase(problem, network, Descent(noisy.lr, noisy.sigma))
    assert config.rho == float(f"{rho:.2g}")
    assert (config.lr, config.steps) == (noisy.lr, noisy.steps)
    course = cloud.predict(problem, network, lnsim.SAM(config.lr, config.rho), [0.0, config.steps])
    assert course["cosine_mean"][-1] > 0.99


def test_radius_over_phase_refuses_what_does_not_fall():
    problem, network = setting(width=10)
    with pytest.raises(ValueError, match=r"does not fall to 0\.01"):
        sam.radius_over_phase(problem, network, Descent(1e-3, 1.0), share=0.01)
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        sam.radius_over_phase(problem, network, Descent(1e-3, 1.0), share=1.0)


def fall(dynamics, steps, seeds=16):
    """log of |W|_F^2 at step 0 over that at the end, mean over the seeds and its error."""
    run = lnsim.simulate(
        *setting(), dynamics, steps=steps, record_every=steps, replicas=seeds, tracked=0,
        linearized=False, measures="none",
    )  # fmt: skip
    fallen = np.log(run["norm_squared"][:, 0] / run["norm_squared"][:, -1])
    return fallen.mean(), fallen.std(ddof=1) / math.sqrt(seeds)


@pytest.mark.parametrize(("heat", "rho"), [(0.2, 0.1), (0.8, 0.05)])
def test_sam_and_its_label_noise_are_as_fast_as_predicted(heat, rho):
    """|W|_F^2 falls by 6%, all from one state or nearly so; the runs have errors of 1 to 3%."""
    state = fitted()
    lr = heat / state.trace
    rate = sam.decay_rate(state, Sharp(lr, rho))
    steps = round(0.06 / rate)
    sigma = sam.matched_noise(state, Sharp(lr, rho))
    falls = []
    for dynamics in (lnsim.SAM(lr, rho), lnsim.SGD(lr, lnsim.LabelNoise(sigma))):
        measured, error = fall(dynamics, steps)
        norms = cloud.predict(*setting(), dynamics, [0.0, steps])["norm_squared"]
        assert error < 0.03 * measured
        assert measured == pytest.approx(math.log(norms[0] / norms[1]), abs=4 * error)
        falls.append(measured)
    assert falls[0] == pytest.approx(falls[1], rel=0.1)
    assert falls[0] == pytest.approx(rate * steps, rel=0.2)
