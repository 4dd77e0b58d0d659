"""A user's own observables and backends, written as a user would."""

import numpy as np
import pytest
from own_rules import LR, NOISE, case, same, simulate

import lnsim
from lnsim.run import quantities

pytestmark = pytest.mark.small


def spread(network):
    return np.linalg.norm(network.W, axis=1).std()


@pytest.mark.parametrize("dynamics", [
    lnsim.SGD(LR, NOISE),
    lnsim.SGD(LR, NOISE, momentum=0.5, weight_decay=0.3),
    lnsim.Oscillation(LR, 0.3),
])  # fmt: skip
@pytest.mark.parametrize("reduce", [True, False])
def test_an_observable_of_the_user(dynamics, reduce, tmp_path):
    problem, network = case()
    own = {
        "spread": spread,
        "own_norm": lambda network: (network.W**2).sum(),
        "own_loss": lambda network: ((problem.X @ network.theta - problem.y) ** 2).mean() / 2,
    }
    run = simulate(problem, network, dynamics, observables=own, reduce=reduce)
    np.testing.assert_allclose(run["own_norm"], run["norm_squared"], rtol=1e-10)
    np.testing.assert_allclose(run["own_loss"], run["train_loss"], rtol=1e-8)
    assert run["spread"].shape == run.steps.shape
    assert run["spread"][-1] == pytest.approx(spread(run.final), rel=1e-10)
    run.save(tmp_path)
    loaded = lnsim.Trajectory.load(tmp_path)
    np.testing.assert_array_equal(loaded["spread"], run["spread"])
    assert loaded.summary()["first_and_last"]["spread"][1] == run["spread"][-1]
    both = simulate(problem, network, dynamics, observables=own, reduce=reduce, replicas=2)
    assert both["spread"].shape == (2, run.steps.size)
    np.testing.assert_array_equal(both["spread"][0], run["spread"])


def test_an_observable_is_asked_at_the_records_alone():
    problem, network = case()
    asked = []
    run = simulate(
        problem, network, lnsim.SGD(LR, NOISE), steps=200, record_every=50,
        observables={"calls": lambda network: asked.append(0) or len(asked)},
    )  # fmt: skip
    np.testing.assert_array_equal(run["calls"], [1, 2, 3, 4, 5])


def test_a_diverged_replica_is_asked_no_more():
    problem, network = case()
    dynamics = lnsim.SGD(np.array([1e-3, 9.0]), NOISE)
    run = simulate(problem, network, dynamics, replicas=2, observables={"spread": spread})
    np.testing.assert_array_equal(np.isnan(run["spread"]), np.isnan(run["norm_mean"]))
    assert np.isnan(run["spread"][1, -1]) and np.isfinite(run["spread"][0]).all()


def overwrite(network):
    network.W[0] = 0.0
    return 0.0


@pytest.mark.parametrize("reduce", [True, False])
def test_observables_that_cannot_be(reduce):
    problem, network = case()
    for observables, error, says in (
        ({"own": lambda network: network.a}, TypeError, "must return a number, got ndarray of"),
        ({"own": lambda network: None}, TypeError, "'own' must return a number, got NoneType"),
        ({"own": lambda network: "3"}, TypeError, "'own' must return a number, got str"),
        ({"own": lambda network: 1j}, TypeError, "'own' must return a number, got complex"),
        ({"own": 3.0}, TypeError, "'own' must be a function, got 3.0"),
        ({"own": overwrite}, ValueError, "read-only"),
        ({"own loss": spread}, ValueError, "needs a name such as my_loss, got 'own loss'"),
        ({3: spread}, ValueError, "needs a name such as my_loss, got 3"),
        ({"state_W": spread}, ValueError, "needs a name"),
        ({"train_loss": spread}, ValueError, "'train_loss': a trajectory has an array of that"),
        ({"about": spread}, ValueError, "'about'"),
    ):  # fmt: skip
        with pytest.raises(error, match=says) as raised:
            simulate(problem, network, lnsim.SGD(LR), observables=observables, reduce=reduce)
        if says == "read-only":
            assert raised.value.__notes__ == ["raised by the observable 'own'"]


def test_no_array_of_a_trajectory_is_free_to_take():
    problem, network = case()
    run = simulate(problem, network, lnsim.SGD(LR, NOISE), ledger=True, measures="none")
    assert run.arrays.keys() <= quantities.reserved()


def test_an_observable_with_the_name_of_a_measure_stands_in_its_place():
    problem, network = case()
    run = simulate(
        problem, network, lnsim.SGD(LR, NOISE), observables={"effective_rank": lambda net: 7.0}
    )
    assert (run["effective_rank"] == 7.0).all() and "sharpness" in run.arrays


BACKEND = '''
"""SGD of the two-layer linear network in plain NumPy."""

import numpy as np

from lnsim import SGD, streams
from lnsim.backend import DIVERGED_ABOVE


class Engine:
    def advance(self, state, problem, dynamics, words, first_step, rows=None, twin=None):
        if not isinstance(dynamics, SGD) or state.W_velocity is not None or rows is not None:
            raise ValueError("backend 'plain' trains by SGD without momentum or a ledger")
        if twin is not None:
            raise ValueError("backend 'plain' has no linearised twin: give linearized=False")
        index = streams.sample_index(words, problem.samples)
        noise = dynamics.noise.sigma * streams.unit_noise(words, dynamics.noise.law)
        for s, t in np.ndindex(words.shape[:2]):
            W, a, X = state.W[s], state.a[s], problem.X[index[s, t]]
            residual = X @ (W.T @ a) - problem.y[index[s, t]] - noise[s, t]
            if state.diverged_at[s] < 0 and not (residual**2).max() < DIVERGED_ABOVE:
                state.diverged_at[s] = first_step + t
            if state.diverged_at[s] < 0:
                z = residual @ X / len(residual)
                W[:], a[:] = W - dynamics.lr * np.outer(a, z), a - dynamics.lr * W @ z


def linear_engine():
    return Engine()
'''


def test_a_backend_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "lnsim_plain.py").write_text(BACKEND, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    problem, network = case()
    dynamics = lnsim.SGD(LR, NOISE, batch_size=2)
    run = simulate(problem, network, dynamics, backend="plain", linearized=False, replicas=2)
    assert same(run, simulate(problem, network, dynamics, replicas=2))
    far = lnsim.SGD(9.0, NOISE)
    runs = [
        simulate(problem, network, far, backend=b, linearized=False) for b in ("plain", "numba")
    ]
    assert runs[0].status == runs[1].status and runs[0].status.code == "DIVERGED"
    with pytest.raises(ValueError, match="give linearized=False"):
        simulate(problem, network, dynamics, backend="plain")
    with pytest.raises(ValueError, match="backend 'plain' takes no options 'cuda'"):
        simulate(problem, network, dynamics, backend="plain:cuda")
    (tmp_path / "lnsim_needy.py").write_text("import a_package_that_nobody_has", encoding="utf-8")
    with pytest.raises(ValueError, match="needs a_package_that_nobody_has: pip install a_package_"):
        simulate(problem, network, dynamics, backend="needy")
    (tmp_path / "lnsim_empty.py").touch()
    with pytest.raises(ValueError, match="'empty': package lnsim_empty has no linear_engine"):
        simulate(problem, network, dynamics, backend="empty")
    from lnsim.cli import info

    assert "plain" in info.backend_names()
