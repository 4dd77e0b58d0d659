"""A user's own dynamics, observables and backends, written as a user would."""

from dataclasses import dataclass

import numpy as np
import pytest
from numba import njit

import lnsim
import naive
from lnsim.run import quantities
from lnsim.simulation import custom

pytestmark = pytest.mark.small

LR = 1e-2
NOISE = lnsim.LabelNoise(0.7)


def gradient(W, a, X, y):
    z = (X @ (W.T @ a) - y) @ X / len(y)
    return np.outer(a, z), W @ z


def sgd(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    return W - LR * grad_W, a - LR * grad_a


def in_place(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    W -= LR * grad_W
    a -= LR * grad_a
    return W, a


@njit
def compiled(W, a, X, y, t):
    z = np.zeros(W.shape[1])
    for b in range(len(y)):
        residual = -y[b]
        for k in range(len(a)):
            for j in range(len(z)):
                residual += a[k] * W[k, j] * X[b, j]
        for j in range(len(z)):
            z[j] += residual * X[b, j] / len(y)
    for k in range(len(a)):
        moved = 0.0
        for j in range(len(z)):
            moved += LR * W[k, j] * z[j]
            W[k, j] -= LR * a[k] * z[j]
        a[k] -= moved
    return W, a


def decayed(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    return W - LR * (grad_W + 0.3 * W), a - LR * (grad_a + 0.3 * a)


def heavy_ball(W, a, X, y, t, V_W, V_a):
    grad_W, grad_a = gradient(W, a, X, y)
    V_W, V_a = 0.6 * V_W + grad_W, 0.6 * V_a + grad_a
    return W - LR * V_W[0], a - LR * V_a[0], V_W, V_a


@njit
def heavy_ball_compiled(W, a, X, y, t, V_W, V_a):
    z = np.zeros(W.shape[1])
    for j in range(len(z)):
        for b in range(len(y)):
            residual = -y[b]
            for i in range(len(z)):
                for k in range(len(a)):
                    residual += a[k] * W[k, i] * X[b, i]
            z[j] += residual * X[b, j] / len(y)
    for k in range(len(a)):
        moved = 0.0
        for j in range(len(z)):
            moved += W[k, j] * z[j]
            V_W[0, k, j] = 0.6 * V_W[0, k, j] + a[k] * z[j]
        V_a[0, k] = 0.6 * V_a[0, k] + moved
        a[k] -= LR * V_a[0, k]
        for j in range(len(z)):
            W[k, j] -= LR * V_W[0, k, j]
    return W, a, V_W, V_a


def sam(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    h = 0.2 / np.sqrt((grad_W**2).sum() + (grad_a**2).sum())
    grad_W, grad_a = gradient(W + h * grad_W, a + h * grad_a, X, y)
    return W - LR * grad_W, a - LR * grad_a


def signs(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    return W - LR * np.sign(grad_W), a - LR * np.sign(grad_a)


def tiny_signs(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    return W - 1e-9 * np.sign(grad_W), a - 1e-9 * np.sign(grad_a)


def counting(W, a, X, y, t):
    grad_W, grad_a = gradient(W, a, X, y)
    return W - LR / len(a) * grad_W, a - LR / len(a) * grad_a


def adam(W, a, X, y, t, V_W, V_a):
    moved = []
    for weights, V, grad in zip((W, a), (V_W, V_a), gradient(W, a, X, y), strict=True):
        V[0] = 0.9 * V[0] + 0.1 * grad
        V[1] = 0.99 * V[1] + 0.01 * grad**2
        step = V[0] / (1 - 0.9 ** (t + 1)) / (1e-8 + np.sqrt(V[1] / (1 - 0.99 ** (t + 1))))
        moved.append(weights - 1e-3 * step)
    return *moved, V_W, V_a


def case(n=6, d=9, m=30):
    return lnsim.gaussian_regression(n, d, test_samples=5), lnsim.ntk_init(m, d)


def simulate(problem, network, dynamics, steps=30, record_every=7, seed=3, **more):
    return lnsim.simulate(
        problem, network, dynamics, steps=steps, record_every=record_every, seed=seed, **more
    )


def relative(value, reference):
    return np.abs(value - reference).max() / np.abs(reference).max()


def same(run, other):
    """Whether all that both recorded is the same to rounding."""
    names = run.arrays.keys() & other.arrays.keys()
    return {"final_W", "train_loss", "lazy_escape"} <= names and all(
        np.allclose(run[name], other[name], rtol=1e-9, atol=1e-12, equal_nan=True) for name in names
    )


@pytest.mark.parametrize("step", [sgd, in_place, compiled])
@pytest.mark.parametrize("batch", [1, 3, 0])
@pytest.mark.parametrize("noise", [None, NOISE, lnsim.LabelNoise(0.7, "gaussian")])
def test_sgd_of_the_user_is_sgd(step, batch, noise):
    problem, network = case()
    run = simulate(problem, network, lnsim.CustomDynamics(step, noise, batch))
    assert run.provenance["reduced"] == ["hidden", "inputs"]
    assert same(run, simulate(problem, network, lnsim.SGD(LR, noise, batch)))


@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize(
    ("step", "memory", "built_in"),
    [
        (heavy_ball, 1, lnsim.SGD(LR, NOISE, momentum=0.6)),
        (heavy_ball_compiled, 1, lnsim.SGD(LR, NOISE, momentum=0.6)),
        (decayed, 0, lnsim.SGD(LR, NOISE, weight_decay=0.3)),
        (sam, 0, lnsim.SAM(LR, 0.2, NOISE)),
    ],
)
def test_other_rules_that_multiply_from_the_right(step, memory, built_in, n):
    problem, network = case(n)
    run = simulate(problem, network, lnsim.CustomDynamics(step, NOISE, memory=memory))
    # What shrinks the part of W that no input reaches cannot leave that part aside.
    sides = ["hidden"] if n > 9 or step is decayed else ["hidden", "inputs"]
    assert run.provenance["reduced"] == sides
    assert same(run, simulate(problem, network, built_in))


@pytest.mark.parametrize(
    ("step", "memory"), [(signs, 0), (tiny_signs, 0), (adam, 2), (counting, 0)]
)
@pytest.mark.parametrize("n", [6, 40])
def test_a_rule_that_is_not_equivariant_trains_the_dense_network(step, memory, n):
    problem, network = case(n)
    rule = lnsim.CustomDynamics(step, NOISE, batch_size=2, memory=memory)
    run = simulate(problem, network, rule)
    # To count neurons is no harm on the side of the inputs.
    assert run.provenance["reduced"] == (["inputs"] if step is counting and n == 6 else [])
    W, a = network.W.copy(), network.a.copy()
    kept = (np.zeros((memory, *W.shape)), np.zeros((memory, *a.shape))) if memory else ()
    stream = naive.words(3, 0, 60)
    for t in range(30):
        samples, labels = naive.noisy_labels(stream, t, 2, problem.y, 0.7, "rademacher")
        W, a, *kept = step(W, a, problem.X[samples], np.array(labels), t, *kept)
    assert relative(run.final.W, W) < 1e-9
    assert relative(run.final.a, a) < 1e-9


def test_the_dense_network_when_asked_for():
    problem, network = case()
    run = simulate(problem, network, lnsim.CustomDynamics(sgd, NOISE), reduce=False)
    assert run.provenance["reduced"] == []
    assert same(run, simulate(problem, network, lnsim.SGD(LR, NOISE)))


@pytest.mark.parametrize("way", [custom._both, custom._hidden, custom._inputs])
def test_departures_are_roundings_or_plain(way):
    problem, network = case()
    for step, apart in ((sgd, False), (sam, False), (signs, True), (tiny_signs, True)):
        found = custom.departure(lnsim.CustomDynamics(step), problem, network, 50, way)
        assert (found > 0.05) if apart else (found < 1e-9)


@pytest.mark.parametrize("step", [sgd, compiled])
def test_replicas_have_their_own_draws_and_noise(step):
    problem, network = case()
    sigma = np.array([0.0, 0.5, 2.0])
    rule = lnsim.CustomDynamics(step, lnsim.LabelNoise(sigma))
    run = simulate(problem, network, rule, replicas=3)
    built_in = lnsim.SGD(LR, lnsim.LabelNoise(sigma))
    assert same(run, simulate(problem, network, built_in, replicas=3))


def test_alternating_takes_its_noise_away():
    problem, network = case()
    rules = lnsim.CustomDynamics(sgd, NOISE), lnsim.SGD(LR, NOISE)
    runs = [simulate(problem, network, lnsim.Alternating(rule, 4)) for rule in rules]
    assert same(*runs)


@pytest.mark.parametrize(("step", "memory"), [(heavy_ball, 1), (adam, 2)])
def test_resumed_from_a_file_bit_for_bit(step, memory, tmp_path):
    problem, network = case()
    rule = lnsim.CustomDynamics(step, NOISE, memory=memory)
    observables = {"largest": lambda network: np.abs(network.W).max()}
    whole = simulate(problem, network, rule, steps=40, observables=observables)
    simulate(problem, network, rule, steps=21, observables=observables).save(tmp_path)
    earlier = lnsim.Trajectory.load(tmp_path)
    rest = simulate(
        problem, network, rule, steps=40, observables=observables, resume=earlier, reduce=True
    )
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(rest[name], value, err_msg=name)
    assert earlier.provenance["reduced"] == whole.provenance["reduced"]
    with pytest.raises(ValueError, match="cannot resume: dynamics was"):
        simulate(problem, network, lnsim.CustomDynamics(sgd, NOISE), steps=40, resume=earlier)
    with pytest.raises(ValueError, match="has no observable 'other'"):
        simulate(problem, network, rule, steps=40, resume=earlier, observables={"other": len})


def test_a_rule_with_numbers_of_its_own_shows_them():
    @dataclass
    class Clipped:
        lr: float

        def __call__(self, W, a, X, y, t):
            grad_W, grad_a = gradient(W, a, X, y)
            return W - self.lr * grad_W, a - self.lr * grad_a

    problem, network = case()
    run = simulate(problem, network, lnsim.CustomDynamics(Clipped(0.01), NOISE))
    assert "Clipped(lr=0.01)" in run.config["dynamics"]
    assert same(run, simulate(problem, network, lnsim.SGD(LR, NOISE)))
    assert "step=sgd" in repr(lnsim.CustomDynamics(sgd))
    assert "step=compiled" in repr(lnsim.CustomDynamics(compiled))


@pytest.mark.parametrize("batch", [1, 3, 0])
def test_divergence_is_found_where_sgd_finds_it(batch, monkeypatch):
    monkeypatch.setitem(globals(), "LR", 3.0)
    problem, network = case()
    expected = simulate(problem, network, lnsim.SGD(3.0, NOISE, batch), steps=100)
    run = simulate(problem, network, lnsim.CustomDynamics(sgd, NOISE, batch), steps=100)
    assert expected.status.code == run.status.code == "DIVERGED"
    assert run.status.step == expected.status.step


@njit
def breaks_compiled(W, a, X, y, t):
    return (W + np.inf, a) if t == 11 else (W, a)


def breaks(W, a, X, y, t):
    return (W + np.inf, a) if t == 11 else (W, a)


@pytest.mark.parametrize("step", [breaks, breaks_compiled])
@pytest.mark.parametrize("steps", [12, 30])
def test_a_step_to_infinity_is_not_taken(step, steps):
    problem, network = case()
    run = simulate(problem, network, lnsim.CustomDynamics(step), steps=steps, record_every=5)
    assert (run.status.code, run.status.step) == ("DIVERGED", 11)
    np.testing.assert_allclose(run.final.W, network.W, rtol=1e-12, atol=1e-12)


def test_what_a_rule_returns_is_checked():
    problem, network = case()
    calls = iter(range(1000))
    for step, error, says in (
        (lambda W, a, X, y, t: W, TypeError, r"step must return \(W, a\), got ndarray"),
        (lambda W, a, X, y, t: (W, a, a), TypeError, r"step must return \(W, a\)"),
        (lambda W, a, X, y, t: (W.tolist(), a), TypeError, "W as a float64 array, got list"),
        (lambda W, a, X, y, t: (W > 0, a), TypeError, "W as a float64 array, got bool"),
        (lambda W, a, X, y, t: (W.T, a), ValueError, r"W of shape \(30, 9\), got \(9, 30\)"),
        (lambda W, a, X, y, t: (W + next(calls), a), ValueError, "on its arguments alone: W"),
    ):
        for reduce in (True, False):
            with pytest.raises(error, match=says):
                simulate(problem, network, lnsim.CustomDynamics(step), reduce=reduce)


def test_what_a_rule_raises_says_that_it_is_the_rule_s():
    problem, network = case()
    with pytest.raises(ValueError, match="matmul") as raised:
        simulate(problem, network, lnsim.CustomDynamics(lambda W, a, X, y, t: (W @ X, a)))
    (note,) = raised.value.__notes__
    shapes = f"W {network.W.shape}, a {network.a.shape}, X (1, {problem.dim}), y (1,)"
    assert note == f"raised by the rule's own step, given {shapes} and t = 0"


def test_bad_values_are_named():
    problem, network = case()
    with pytest.raises(TypeError, match="step must be a function, got 3"):
        lnsim.CustomDynamics(3)
    with pytest.raises(ValueError, match="memory must be at least 0, got -1"):
        lnsim.CustomDynamics(sgd, memory=-1)
    with pytest.raises(TypeError, match="noise must be a LabelNoise"):
        lnsim.CustomDynamics(sgd, 0.3)
    with pytest.raises(ValueError, match="without ledger"):
        simulate(problem, network, lnsim.CustomDynamics(sgd), ledger=True)
    with pytest.raises(ValueError, match="without backend 'torch'"):
        simulate(problem, network, lnsim.CustomDynamics(sgd), backend="torch")


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
    run = simulate(problem, network, lnsim.SGD(LR, NOISE), ledger=True)
    assert run.arrays.keys() <= quantities.reserved()


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
