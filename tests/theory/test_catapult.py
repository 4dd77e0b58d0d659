"""The law of large steps: its recursion against runs, and its three phases."""

import numpy as np
import pytest

import lnsim
from lnsim.theory import catapult


def one_neuron_a_number(W, a, x, y, lr, steps):
    """f and |x|^2 (|a|^2 + |W x|^2/|x|^2), step by step, by the gradient of (f - y)^2 / 2."""
    path = []
    for _ in range(steps + 1):
        hidden = W @ x
        path.append((a @ hidden, x @ x * (a @ a) + hidden @ hidden))
        r = path[-1][0] - y
        W, a = W - lr * r * np.outer(a, x), a - lr * r * hidden
    return np.array(path).T


def start(width, seed=0):
    """u^T v / sqrt(m) of standard normal u and v, as a^T W x with x = 1."""
    u, v = np.random.default_rng(seed).standard_normal((2, width))
    W, a = (v * width**-0.25)[:, None], u * width**-0.25
    return W, a, float(a @ W[:, 0]), float(a @ a + np.sum(W**2))


@pytest.mark.parametrize("multiple", [0.5, 1.9, 2.3, 3.0, 3.9, 4.3])
@pytest.mark.parametrize("width", [1, 50])
def test_a_run_repeats_the_recursion(multiple, width, backend):
    W, a, f, level = start(width)
    lr, steps = multiple / level, 30 if multiple < 4 else 6
    path = catapult.recursion(f, level, lr, steps)
    run = lnsim.simulate(
        lnsim.Problem(np.ones((1, 1)), np.zeros(1)), lnsim.Network(W, a), lnsim.GD(lr),
        steps=steps, record_every=1, backend=backend,
        observables={"level": lambda n: float(n.a @ n.a + np.sum(n.W**2))},
    )  # fmt: skip
    largest = np.maximum.accumulate(path.f**2) / 2
    assert (np.abs(run["train_loss"] - path.f**2 / 2) <= 1e-9 * largest).all()
    np.testing.assert_allclose(run["level"], path.curvature, rtol=1e-9)


@pytest.mark.small
def test_with_a_label_and_any_input():
    rng = np.random.default_rng(1)
    W, a, x = rng.standard_normal((5, 3)), rng.standard_normal(5), rng.standard_normal(3)
    lrs = np.array([0.01, 0.05])
    f, level = one_neuron_a_number(W, a, x, 0.7, 0.0, 0)[:, 0]
    path = catapult.recursion(f, level, lrs, 30, label=0.7, square=float(x @ x))
    for i, lr in enumerate(lrs):
        plain = one_neuron_a_number(W, a, x, 0.7, lr, 30)
        np.testing.assert_allclose([path.f[i], path.curvature[i]], plain, rtol=1e-9)


@pytest.mark.small
@pytest.mark.parametrize("width", [1, 10, 1000])
def test_below_4_it_converges_by_the_product_and_above_it_diverges(width):
    _, _, f, level = start(width, 3)
    multiples = np.array([0.5, 1.5, 1.9, 2.5, 2.9, 3.5, 3.9])
    lrs = multiples / level
    path = catapult.recursion(f, level, lrs, 3_000)
    assert (np.abs(path.f[:, -1]) < 1e-3 * abs(f)).all()
    assert (np.diff(path.curvature) <= 0).all() and (path.curvature >= 0).all()
    assert (np.abs(path.f).max(axis=1) <= level / 2 * (1 + 1e-12)).all()
    product = np.prod(1 + (lrs[:, None] * path.f[:, :-1]) ** 2, axis=1)
    np.testing.assert_allclose(4 - lrs * path.curvature[:, -1], (4 - multiples) * product)
    assert (lrs * path.curvature[:, -1] < catapult.RISES).all()
    above = catapult.recursion(f, level, np.array([4.01, 5.0]) / level, 3_000)
    assert not np.isfinite(above.f[:, -1]).any()


@pytest.mark.small
@pytest.mark.parametrize("width", [3, 10, 100, 10_000])
def test_the_loss_rises_from_the_boundary_on(width):
    _, _, f, level = start(width, 1)
    edge = catapult.rise_boundary(f, level)
    assert 2.0 < edge < 3.0
    path = catapult.recursion(f, level, np.array([1.0, 1 - 1e-6, 1 + 1e-6]) * edge / level, 500)
    rises = (np.diff(np.abs(path.f[1:])) > 0).any(axis=1)
    assert rises.tolist() == [False, True]
    np.testing.assert_allclose(np.abs(path.f[0, 1]), abs(f), rtol=1e-12)


@pytest.mark.small
def test_the_boundary_at_the_ends_of_its_range():
    assert catapult.rise_boundary(0.0, 1.0) == 2.0
    assert catapult.rise_boundary(1e-9, 1.0) == 2.0
    assert catapult.rise_boundary(1.0, 3.0) == pytest.approx(3.0)
    assert np.isnan(catapult.rise_boundary(0.34, 1.0))


@pytest.mark.small
def test_the_lower_boundary_nears_2_as_one_over_the_width():
    means = [
        np.mean([catapult.rise_boundary(*start(m, seed)[2:]) - 2 for seed in range(200)])
        for m in (100, 1000)
    ]
    np.testing.assert_allclose(np.multiply(means, [100, 1000]), 1.0, rtol=0.25)


@pytest.mark.small
def test_values_out_of_range_are_named():
    for words, name in (
        ({"lr": 0.0}, "lr"), ({"steps": -1}, "steps"), ({"f": np.inf}, "f must"),
        ({"square": [1.0, 2.0]}, "square"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=name):
            catapult.recursion(**{"f": 1.0, "curvature": 2.0, "lr": 0.1, "steps": 3, **words})
    assert catapult.recursion(1.0, 2.0, 0.1, 0).f.tolist() == [1.0]
