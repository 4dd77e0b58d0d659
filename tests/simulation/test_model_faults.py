"""Runs of any model in the corners: what was once lost, mixed up or answered with a traceback."""

import re

import numpy as np
import pytest

import lnsim

RNG = np.random.default_rng(3)
X = RNG.standard_normal((12, 6))
PROBLEM = lnsim.Problem(X, X @ RNG.standard_normal(6))


def run(network, dynamics, problem=PROBLEM, **options):
    return lnsim.simulate(
        problem, network, dynamics, **({"steps": 20, "record_every": 5} | options)
    )


def test_another_network_is_not_resumed():
    given = {"reduce": False, "record_every": 5}
    first = run(lnsim.deep_init(6, [8, 9]), lnsim.SGD(0.01), **given)
    with pytest.raises(ValueError, match=r"cannot resume: shape was \[6, 8, 9, 1\]"):
        run(lnsim.deep_init(6, [2, 39]), lnsim.SGD(0.01), steps=30, resume=first, **given)
    wide = run(lnsim.ntk_init(20, 6, outputs=1), lnsim.SGD(0.01))
    with pytest.raises(ValueError, match="cannot resume: the earlier run has another last_theta"):
        run(lnsim.ntk_init(20, 6, outputs=1), lnsim.SGD(0.01), steps=30, reduce=False, resume=wide)


def test_a_network_without_a_kernel_has_no_distance_from_it():
    trajectory = run(lnsim.ntk_init(4, 6, outputs=1, scale=0.0), lnsim.SGD(0.01))
    assert np.isnan(trajectory["ntk_distance"]).all()
    assert (trajectory["norm_mean"] == 0.0).all()


def test_a_rule_keeps_its_labels_under_a_schedule():
    def rule(W, a, x, y, t):
        assert y.shape == (4,)
        residual = x @ (a @ W) - y
        z = residual @ x / 4
        return W - 0.01 * np.outer(a, z), a - 0.01 * W @ z

    noise = lnsim.LabelNoise(0.5)
    network, factor = lnsim.ntk_init(5, 6), lnsim.WarmUp(10)
    ours = run(
        network, lnsim.Scheduled(lnsim.CustomDynamics(rule, noise, batch_size=4), noise=factor)
    )
    built_in = run(network, lnsim.Scheduled(lnsim.SGD(0.01, noise, batch_size=4), noise=factor))
    np.testing.assert_allclose(ours["final_W"], built_in["final_W"], rtol=1e-12)


def test_skips_that_are_none_reduce():
    deep = run(lnsim.deep_init(6, [50]), lnsim.SGD(0.01))
    network = lnsim.deep_init(6, [50], residual=True)
    assert network.skips == (False, False)
    residual = run(network, lnsim.SGD(0.01))
    assert residual.provenance["reduced"] == deep.provenance["reduced"] == ["hidden"]
    np.testing.assert_array_equal(residual["final_W1"], deep["final_W1"])
    assert residual.final.residual


def test_scalar_networks_have_accuracies_of_signs():
    y = np.sign(X[:, 0])
    problem = lnsim.Problem(X, y, X_test=X, y_test=y)
    plain = run(lnsim.ntk_init(5, 6), lnsim.SGD(0.01), problem)
    general = run(lnsim.ntk_init(5, 6, outputs=1), lnsim.SGD(0.01), problem)
    for name in ("train_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(plain[name], general[name])
    assert plain["train_accuracy"][-1] > 0.5


def test_factors_of_replicas():
    sgd = lnsim.SGD(0.01)
    factors = lnsim.WarmUp([5, 10]), lnsim.Decay(20, [0.5, 0.0], "linear")
    both = run(lnsim.diagonal_init(6), lnsim.Scheduled(sgd, lr=factors), replicas=2, seed=[1, 2])
    for s, (steps, end) in enumerate(((5, 0.5), (10, 0.0))):
        alone = lnsim.Scheduled(sgd, lr=(lnsim.WarmUp(steps), lnsim.Decay(20, end, "linear")))
        one = run(lnsim.diagonal_init(6), alone, seed=1 + s)
        np.testing.assert_array_equal(both["final_u"][s], one["final_u"])
    for factor in (lnsim.Piecewise((3,), (1.0, np.array([1.0, 2.0]))), lnsim.WarmUp([1, 2])):
        with pytest.raises(ValueError, match="factor of lr has 2 values for 3 replicas"):
            run(lnsim.diagonal_init(6), lnsim.Scheduled(sgd, lr=factor), replicas=3)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: lnsim.SAM(0.1, 0.1, normalized="no"), "normalized must be True or False"),
        (lambda: lnsim.SGD(0.1, replacement="no"), "replacement must be True or False"),
        (lambda: lnsim.ParameterNoise(0.1, anticorrelated=1), "anticorrelated must be True or"),
        (lambda: lnsim.DeepLinear((np.eye(2),), residual="no"), "residual must be True or False"),
    ],
)
def test_words_are_no_flags(made, says):
    with pytest.raises(TypeError, match=re.escape(says)):
        made()


def test_a_reduction_that_is_asked_for_and_is_not_there_is_refused():
    with pytest.raises(ValueError, match="reduce must be False or None: a Network of this size"):
        run(lnsim.ntk_init(5, 6), lnsim.SGD(0.01), reduce=True)
    assert run(lnsim.ntk_init(8, 6), lnsim.SGD(0.01), reduce=True).provenance["reduced"]


def test_numbers_of_numpy_are_saved_with_a_model(tmp_path):
    u = np.full(6, 0.3)
    cubed = run(lnsim.Diagonal(u, 0.5 * u, "difference", np.int64(3)), lnsim.SGD(0.01))
    skipping = lnsim.DeepLinear((np.eye(6), np.eye(6)[:1]), np.bool_(True))
    for name, trajectory in (("cubed", cubed), ("skipping", run(skipping, lnsim.SGD(0.001)))):
        trajectory.save(tmp_path / name)
        final = lnsim.Trajectory.load(tmp_path / name).final
        assert final.about() == trajectory.final.about()
    with pytest.raises(ValueError, match="power must be at least 1, got -5"):
        lnsim.diagonal_init(3, power=-5)


def test_a_sample_that_overflows_stops_a_batch_before_its_step():
    # The first sample's prediction is inf - inf, the second's is tiny.
    inputs = np.array([[1e200, 1e200], [1e-300, 0.0]])
    problem = lnsim.Problem(inputs, np.zeros(2), theta_star=np.ones(2))
    network = lnsim.Diagonal(np.array([1e100, -1e100]), np.array([1e100, 1e100]))
    trajectory = run(network, lnsim.GD(1e-3), problem)
    assert trajectory.status.code == "DIVERGED" and trajectory["diverged_at"] == 0
    np.testing.assert_array_equal(trajectory["final_u"], network.u)
