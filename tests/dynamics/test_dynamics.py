"""Reduced, dense and naive runs agree; nothing but (seed, replica) matters to a trajectory."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lnsim
import naive
from lnsim.base import threads as _threads


@st.composite
def settings_of_runs(draw):
    """Sizes on both sides of every reduction, every law, every term of the update."""
    return {
        "n": draw(st.integers(1, 12)),
        "d": draw(st.integers(1, 12)),
        "m": draw(st.sampled_from([1, 2, 3, 5, 9, 24, 25, 40])),
        "sigma": draw(st.sampled_from([0.0, 0.3, 2.0])),
        "lr": draw(st.sampled_from([1e-3, 1e-2])),
        "batch": draw(st.integers(1, 4)),
        "law": draw(st.sampled_from(["rademacher", "gaussian", "uniform"])),
        "momentum": draw(st.sampled_from([0.0, 0.0, 0.6])),
        "decay": draw(st.sampled_from([0.0, 0.0, 0.1])),
        "seed": draw(st.integers(0, 2**40)),
    }


def make(case):
    """(problem, network, dynamics) of a setting."""
    problem = lnsim.gaussian_regression(case["n"], case["d"], seed=case["seed"], test_samples=5)
    network = lnsim.ntk_init(case["m"], case["d"], seed=case["seed"])
    dynamics = lnsim.SGD(
        case["lr"],
        lnsim.LabelNoise(case["sigma"], case["law"]),
        batch_size=case["batch"],
        momentum=case["momentum"],
        weight_decay=case["decay"],
    )
    return problem, network, dynamics


def relative(value, reference):
    """Largest deviation, relative to the largest entry."""
    return np.abs(value - reference).max() / np.abs(reference).max()


@pytest.mark.small
@given(settings_of_runs())
def test_reduced_dense_and_naive_runs_agree(case):
    problem, network, dynamics = make(case)
    W, a = naive.sgd(
        network.W, network.a, problem.X, problem.y, steps=40, lr=case["lr"], sigma=case["sigma"],
        batch=case["batch"], law=case["law"], momentum=case["momentum"], decay=case["decay"],
        seed=case["seed"],
    )  # fmt: skip
    for reduce in (None, False):
        run = lnsim.simulate(
            problem, network, dynamics, steps=40, record_every=7, seed=case["seed"], reduce=reduce
        )
        assert relative(run.final.W, W) < 1e-10
        assert relative(run.final.a, a) < 1e-10
        expected = naive.observe(
            W, a, network.W, network.a, problem.X, problem.y,
            problem.X_test, problem.y_test, problem.theta_star,
        )  # fmt: skip
        for name, value in expected.items():
            assert run[name][-1] == pytest.approx(value, rel=1e-7, abs=1e-10), name


@pytest.mark.small
@given(settings_of_runs(), st.integers(1, 39), st.integers(1, 40), st.integers(1, 64))
def test_recording_stopping_and_chunks_change_no_bit(case, split, record_every, chunk):
    problem, network, dynamics = make(case)

    def run(steps=40, record_every=record_every, **more):
        return lnsim.simulate(
            problem, network, dynamics, steps=steps, record_every=record_every,
            seed=case["seed"], tracked=3, **more,
        )  # fmt: skip

    whole = run()
    resumed = run(resume=run(steps=split))
    assert set(resumed.arrays) == set(whole.arrays)
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)

    every = run(record_every=1)
    np.testing.assert_array_equal(every["train_loss"][whole.steps], whole["train_loss"])
    np.testing.assert_array_equal(every["lazy_escape"], whole["lazy_escape"])
    np.testing.assert_array_equal(every.final.W, whole.final.W)

    from lnsim.simulation import replicas as driver

    before = driver.WORDS_AT_ONCE
    driver.WORDS_AT_ONCE = chunk
    try:
        np.testing.assert_array_equal(run().final.W, whole.final.W)
    finally:
        driver.WORDS_AT_ONCE = before


@pytest.mark.small
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_replicas_are_single_runs_of_their_key(momentum):
    problem = lnsim.gaussian_regression(6, 4)
    network = lnsim.ntk_init(9, 4)
    lr, sigma = np.array([1e-3, 1e-2, 2e-2]), np.array([0.0, 1.0, 2.0])
    dynamics = lnsim.SGD(lr, lnsim.LabelNoise(sigma), momentum=momentum)
    run = lnsim.simulate(problem, network, dynamics, steps=30, record_every=10, seed=3, replicas=3)
    assert run["train_loss"].shape == (3, 4)
    for c in range(3):
        W, a = naive.sgd(
            network.W, network.a, problem.X, problem.y, steps=30, lr=lr[c], sigma=sigma[c],
            batch=1, law="rademacher", momentum=momentum, decay=0.0, seed=3, replica=c,
        )  # fmt: skip
        assert relative(run["final_W"][c], W) < 1e-10
        assert relative(run["final_a"][c], a) < 1e-10
    alone = lnsim.simulate(
        problem, network, lnsim.SGD(lr[0], lnsim.LabelNoise(sigma[0]), momentum=momentum),
        steps=30, record_every=10, seed=3,
    )  # fmt: skip
    for name, value in alone.arrays.items():
        if name not in ("step", "tracked_neurons", "cloud_step", "theta_star", "diverged_at"):
            np.testing.assert_array_equal(run[name][0], value, err_msg=name)


FIXED = ("step", "tracked_neurons", "cloud_step", "theta_star", "diverged_at")
"""Arrays without a replica axis."""


@pytest.mark.small
@pytest.mark.parametrize("kind", ["sgd", "sam", "batches", "gd"])
def test_ensemble_is_bit_for_bit_its_single_runs(kind):
    problem = lnsim.gaussian_regression(12, 5, test_samples=7)
    network = lnsim.ntk_init(30, 5)
    seeds, lr = [3, 3, 4, 5], np.array([1e-3, 2e-2, 5e-3, 1e-2])
    sigma, other = np.array([0.0, 1.0, 3.0, 2.0]), np.array([0.0, 0.9, 0.0, 0.5])

    def dynamics(c):
        noise = lnsim.LabelNoise(sigma[c], "gaussian" if kind == "sam" else "rademacher")
        return {
            "sgd": lambda: lnsim.SGD(lr[c], noise, momentum=other[c]),
            "sam": lambda: lnsim.SAM(lr[c], rho=other[c], noise=noise),
            "batches": lambda: lnsim.SGD(lr[c], noise, batch_size=3, weight_decay=other[c]),
            "gd": lambda: lnsim.GD(lr[c], noise),
        }[kind]()

    driver = {"steps": 40, "record_every": 7}
    ensemble = lnsim.simulate(problem, network, dynamics(slice(None)), seed=seeds, **driver)
    for c, seed in enumerate(seeds):
        alone = lnsim.simulate(problem, network, dynamics(c), seed=seed, **driver)
        for name in alone.arrays.keys() - set(FIXED):
            np.testing.assert_array_equal(ensemble[name][c], alone[name], err_msg=name)


@pytest.mark.small
def test_one_diverging_replica_leaves_the_others_as_they_are():
    problem, network = lnsim.gaussian_regression(12, 5), lnsim.ntk_init(30, 5)
    lr = np.array([1e-3, 5.0, 2e-3])
    driver = {"steps": 60, "record_every": 10, "seed": [1, 1, 1], "clouds": False}
    run = lnsim.simulate(problem, network, lnsim.SGD(lr, lnsim.LabelNoise(1.0)), **driver)
    assert run.status.code == "OK"
    assert run["diverged_at"][0] == run["diverged_at"][2] == -1 < run["diverged_at"][1] < 60
    assert np.isnan(run["train_loss"][1, -1])
    others = lnsim.SGD(lr[[0, 2]], lnsim.LabelNoise(1.0))
    without = lnsim.simulate(problem, network, others, **{**driver, "seed": [1, 1]})
    assert "cloud_norm" not in run.arrays and "final_W" not in run.arrays
    for name in without.arrays.keys() - set(FIXED):
        np.testing.assert_array_equal(run[name][[0, 2]], without[name], err_msg=name)


def test_blocks_change_no_bit(monkeypatch):
    problem, network = lnsim.gaussian_regression(12, 5), lnsim.ntk_init(30, 5)
    dynamics = lnsim.SGD(np.linspace(1e-3, 1e-2, 23), lnsim.LabelNoise(1.0))

    def run():
        return lnsim.simulate(problem, network, dynamics, steps=50, record_every=5, replicas=23)

    expected = run()
    monkeypatch.setattr(_threads, "BLOCKS_OF_A_THREAD", 3)
    other = run()
    for name, value in expected.arrays.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


DIGEST = """
import hashlib, lnsim
problem, network = lnsim.gaussian_regression(60, 150), lnsim.ntk_init(2000, 150)
dynamics = lnsim.SGD(1e-4, lnsim.LabelNoise(2.0), batch_size=2)
run = lnsim.simulate(problem, network, dynamics, steps=6, record_every=2, replicas=3)
content = b"".join(run[name].tobytes() for name in sorted(run.arrays))
print(hashlib.sha256(content).hexdigest())
"""


def test_threads_of_the_machine_change_no_bit():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], check=True, capture_output=True, encoding="utf-8",
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2", "3")
    }  # fmt: skip
    assert len(digests) == 1


def test_reduction_is_exact_over_many_steps():
    problem, network = lnsim.gaussian_regression(50, 20), lnsim.ntk_init(100, 20)
    dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(4.0))
    runs = [
        lnsim.simulate(
            problem,
            network,
            dynamics,
            steps=50_000,
            record_every=50_000,
            reduce=reduce,
        )
        for reduce in (None, False)
    ]
    assert relative(runs[0].final.W, runs[1].final.W) < 1e-12


@pytest.mark.small
def test_gradient_against_finite_differences(backend):
    from lnsim.backend import State, load

    problem, network = lnsim.gaussian_regression(7, 3), lnsim.ntk_init(4, 3)
    state = State(network.W[None], network.a[None], None, None, np.array([-1]))
    gradient = load(backend).gradient(state, problem)

    def loss(W, a):
        return np.mean((problem.X @ W.T @ a - problem.y) ** 2) / 2

    h = 1e-6
    for index in np.ndindex(network.W.shape):
        up, down = network.W.copy(), network.W.copy()
        up[index] += h
        down[index] -= h
        slope = (loss(up, network.a) - loss(down, network.a)) / (2 * h)
        assert gradient.W[0][index] == pytest.approx(slope, rel=1e-6, abs=1e-8)
    for k in range(4):
        step = h * np.eye(4)[k]
        slope = (loss(network.W, network.a + step) - loss(network.W, network.a - step)) / (2 * h)
        assert gradient.a[0][k] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_kernels_compile_once_for_each_kind_of_call():
    from numba import config

    from lnsim_numba import kernels

    assert not config.DISABLE_JIT
    problem, network = lnsim.gaussian_regression(30, 20), lnsim.ntk_init(60, 20)
    before = set(kernels.one_sample_tiled.signatures)
    for width, sigma in ((60, 1.0), (70, 2.0), (500, np.float32(1.0))):
        network = lnsim.ntk_init(width, 20)
        # A view with strides and float32 data: coerced at the edge, so no new signature.
        strided = lnsim.Problem(problem.X[::2].astype(np.float32), problem.y[::2])
        dynamics = lnsim.SGD(1e-3, lnsim.LabelNoise(sigma))
        lnsim.simulate(strided, network, dynamics, steps=5, record_every=2)
    assert len(set(kernels.one_sample_tiled.signatures) - before) <= 1


@pytest.mark.small
def test_a_diverging_run_stops_where_it_did_and_keeps_its_records():
    problem, network = lnsim.gaussian_regression(20, 5), lnsim.ntk_init(10, 5)
    dynamics = lnsim.SGD(5.0, lnsim.LabelNoise(1.0))
    run = lnsim.simulate(problem, network, dynamics, steps=1000, record_every=2)
    assert run.status.code == "DIVERGED"
    at = run.status.step
    assert run.steps[-1] <= at < run.steps[-1] + 2
    assert np.isfinite(run["train_loss"]).all()
    assert np.isfinite(run.final.W).all()
    finer = lnsim.simulate(problem, network, dynamics, steps=1000, record_every=1)
    assert finer.status.step == at
    with pytest.raises(ValueError, match="diverged at step"):
        lnsim.simulate(problem, network, dynamics, steps=2000, record_every=2, resume=run)


@pytest.mark.small
def test_a_diverging_replica_leaves_the_others_alone():
    problem, network = lnsim.gaussian_regression(20, 5), lnsim.ntk_init(10, 5)
    both = lnsim.SGD(np.array([5.0, 1e-3]), lnsim.LabelNoise(1.0))
    run = lnsim.simulate(problem, network, both, steps=60, record_every=20, replicas=2, seed=1)
    assert run.status.code == "OK"
    assert run["diverged_at"][0] > 0 and run["diverged_at"][1] == -1
    assert np.isnan(run["train_loss"][0, -1]) and np.isfinite(run["train_loss"][1]).all()
    assert np.isfinite(run["final_W"]).all()


@pytest.mark.small
@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, 1), (1, 5, 3), (4, 1, 1), (3, 8, 2), (3, 8, 50)])
@pytest.mark.parametrize("steps", [0, 1, 10])
def test_smallest_sizes(n, d, m, steps):
    problem, network = lnsim.gaussian_regression(n, d), lnsim.ntk_init(m, d)
    dynamics = lnsim.SGD(1e-2, lnsim.LabelNoise(0.5))
    run = lnsim.simulate(problem, network, dynamics, steps=steps, record_every=4)
    assert run.steps[-1] == steps
    assert run.final.W.shape == (m, d)
    assert all(np.isfinite(run[name]).all() for name in ("train_loss", "norm_mean", "ntk_distance"))


@pytest.mark.small
@pytest.mark.parametrize(("n", "d", "m", "p", "r"), [
    (200, 20, 1000, 21, 20), (10, 20, 1000, 11, 10), (10, 20, 8, 8, 10), (30, 4, 5, 5, 4),
])  # fmt: skip
def test_size_of_the_reduced_state(n, d, m, p, r):
    from lnsim.models.reduction import reduce

    reduced = reduce(lnsim.gaussian_regression(n, d), lnsim.ntk_init(m, d))
    assert reduced.W.shape == (p, r)
    assert (reduced.Q is None) == (p == m)
