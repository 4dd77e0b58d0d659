"""A user's own dynamics, written as a user would."""

from dataclasses import dataclass

import numpy as np
import pytest
from numba import njit
from own_rules import LR, NOISE, case, same, simulate

import lnsim
import naive
from lnsim.simulation import custom

pytestmark = pytest.mark.small


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


def relative(value, reference):
    return np.abs(value - reference).max() / np.abs(reference).max()


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
        problem, network, rule, steps=40, observables=observables, resume=earlier, reduce=None
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
        for reduce in (None, False):
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
