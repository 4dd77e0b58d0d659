"""Wide networks, whose Q is not formed: the same numbers as of any network, to rounding."""

import dataclasses

import numpy as np
import pytest

import lnsim
import naive
from lnsim.models import tall
from lnsim.models.reduction import reduce
from lnsim.models.tall import Columns
from lnsim.simulation import recorder, watch, watch_wide, wide_loop

STEPS, EVERY, WIDTH, DIM = 1200, 200, 130, 5
NOISE = lnsim.LabelNoise(4.0)


@pytest.fixture(autouse=True)
def every_network_is_wide(monkeypatch):
    monkeypatch.setattr(tall, "TALL", 0)
    monkeypatch.setattr(tall, "IN_CACHE", 1 << 7)


@pytest.fixture
def usual(monkeypatch):
    """Runs with a formed Q, as all runs of earlier versions."""

    def usual_run(*args, **options):
        with monkeypatch.context() as earlier:
            earlier.setattr(tall, "TALL", 1 << 62)
            return run(*args, **options)

    return usual_run


def start(samples=30, dim=DIM, width=WIDTH, outputs=None):
    problem = lnsim.gaussian_regression(samples, dim, test_samples=9)
    network = lnsim.ntk_init(width, dim, outputs=outputs)
    if outputs:
        y = problem.X @ np.random.default_rng(1).standard_normal((dim, outputs))
        problem = lnsim.Problem(problem.X, y)
    return problem, network


def run(dynamics=None, samples=30, outputs=None, **options):
    options = {"steps": STEPS, "record_every": EVERY} | options
    dynamics = lnsim.SGD(4e-3, NOISE) if dynamics is None else dynamics
    return lnsim.simulate(*start(samples, outputs=outputs), dynamics, **options)


def assert_close(run, other, rtol=1e-11):
    """The same arrays and states, relative to the largest number of each."""
    assert run.status == other.status
    for arrays, others in ((run.arrays, other.arrays), (run.state, other.state)):
        assert arrays.keys() == others.keys()
        for name, value in others.items():
            if np.asarray(value).dtype.kind != "f":
                np.testing.assert_array_equal(arrays[name], value, err_msg=name)
                continue
            size = np.nanmax(np.abs(value), initial=0.0)
            np.testing.assert_allclose(arrays[name], value, rtol=0, atol=rtol * size, err_msg=name)


def assert_equal(run, other):
    for arrays, others in ((run.arrays, other.arrays), (run.state, other.state)):
        assert arrays.keys() == others.keys()
        for name, value in others.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)


CASES = {
    "plain": {},
    "all measures": {"measures": "all"},
    "replicas": {"replicas": 3},
    "SAM": {"dynamics": lnsim.SAM(4e-3, 0.1)},
    "inputs reduced": {"samples": 3, "measures": "all"},
    "decay": {"dynamics": lnsim.SGD(4e-3, NOISE, weight_decay=1e-2, momentum=0.5)},
    "inputs decay": {"dynamics": lnsim.SGD(4e-3, NOISE, weight_decay=1e-2), "samples": 3},
    "ledger": {"ledger": True},
    "observable": {"observables": {"product": lambda network: network.W[3] @ network.W[5]}},
    "outputs": {"outputs": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_with_a_formed_matrix(usual, case):
    wide = run(**CASES[case])
    assert wide.provenance["reduced"][0] == "hidden"
    if "outputs" not in CASES[case]:
        assert np.mean(wide["lazy_escape"] > 0) > 0.2
    assert_close(wide, usual(**CASES[case]))


@pytest.mark.small
def test_records_and_weights_are_those_of_the_naive_loop():
    steps = 300
    problem, network = start()
    assert isinstance(reduce(problem, network).Q, Columns)
    result = run(steps=steps, record_every=steps)
    W, a = naive.sgd(
        network.W, network.a, problem.X, problem.y, steps=steps, lr=4e-3, sigma=4.0, batch=1,
        law="rademacher", momentum=0.0, decay=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(result["final_W"], W, atol=1e-12)
    np.testing.assert_allclose(result["final_a"], a, atol=1e-12)
    expected = naive.observe(
        W, a, network.W, network.a, problem.X, problem.y, problem.X_test, problem.y_test,
        problem.theta_star,
    )  # fmt: skip
    for name, value in expected.items():
        if name in result.arrays:
            np.testing.assert_allclose(result[name][..., -1], value, rtol=1e-10, err_msg=name)
    assert "norm_mean" in expected
    np.testing.assert_allclose(result["cloud_norm"][-1], [np.linalg.norm(w) for w in W], rtol=1e-12)
    np.testing.assert_allclose(result["tracked_second_layer"][-1], a[:8], atol=1e-13)


@pytest.mark.small
def test_measures_of_neurons_are_those_of_lifted_rows():
    problem, network = start()
    reduction = reduce(problem, network)
    rng = np.random.default_rng(0)
    W = reduction.W + 1e-9 * rng.standard_normal((2, *reduction.W.shape))
    a = reduction.a + rng.standard_normal((2, *reduction.a.shape))
    measured = wide_loop.measure_wide(reduction, W, a)
    Q = reduction.Q.rows(slice(None))
    for b in range(2):
        moved = Q @ (W[b] - reduction.W)
        lifted = network.W + moved
        np.testing.assert_allclose(measured[0, b], [w @ w for w in lifted], rtol=1e-13)
        np.testing.assert_allclose(measured[1, b], lifted @ problem.theta_star, atol=1e-12)
        # Digits that |w - w(0)|^2 would have lost: it is 1e-18 of |w|^2.
        np.testing.assert_allclose(measured[2, b], [w @ w for w in moved], rtol=1e-5)
        np.testing.assert_allclose(measured[3, b], Q @ a[b], atol=1e-13)


def test_no_bit_depends_on_threads_or_on_networks_measured_together(monkeypatch):
    alone = run(measures="all", replicas=2)
    monkeypatch.setattr("lnsim.base.threads.number", lambda: 4)
    monkeypatch.setattr(recorder, "TOGETHER", 1)
    assert_equal(run(measures="all", replicas=2), alone)


def test_the_clouds_are_not_lifted_twice(monkeypatch):
    networks = []
    measure = wide_loop.measure_wide
    monkeypatch.setattr(
        wide_loop, "measure_wide", lambda of, W, a: (networks.append(len(W)), measure(of, W, a))[1]
    )
    run(steps=8 * EVERY)
    assert sum(networks) == 9


def test_a_stopped_run_goes_on_bit_for_bit():
    records = iter(range(9))
    stopped = run(stop=lambda: next(records) == 2)
    assert stopped.status.step == 2 * EVERY
    assert np.any(stopped["lazy_escape"] < 0)
    assert_equal(run(resume=stopped), run())


@pytest.mark.parametrize("watched", ["watched_W", "watched_moved"])
def test_a_run_stopped_with_a_formed_matrix_goes_on(usual, watched):
    """As earlier versions left it: the signs of Q are the same.  The oldest have watched_moved."""
    records = iter(range(9))
    stopped = usual(stop=lambda: next(records) == 2)
    assert np.any(stopped["lazy_escape"] < 0)
    if watched == "watched_moved":
        state = dict(stopped.state)
        problem, network = start()
        change = state.pop("watched_W") - reduce(problem, network).W
        moved = np.linalg.norm(np.linalg.qr(np.column_stack([network.W, network.a]))[0] @ change,
                               axis=2)  # fmt: skip
        stopped = dataclasses.replace(stopped, state=state | {"watched_moved": moved})
    end = run(resume=stopped)
    assert_close(end, usual(resume=stopped))
    np.testing.assert_allclose(end["lazy_escape"], run()["lazy_escape"], rtol=1e-9)


@pytest.mark.parametrize("first", [0, 1, 4, 9])
def test_looks_see_the_escapes_that_all_neurons_show(monkeypatch, first):
    """Whatever the number of singular vectors that screen the neurons."""
    with monkeypatch.context() as plain:
        plain.setattr(
            recorder, "watch_of",
            lambda frame, replicas, last, scale, decays: watch.PlainWatch(
                frame, replicas, last, scale
            ),
        )  # fmt: skip
        expected = run()["lazy_escape"]
    assert 20 < np.count_nonzero(expected > 0) < WIDTH
    monkeypatch.setattr(watch_wide, "FIRST", first)
    np.testing.assert_allclose(run()["lazy_escape"], expected, rtol=1e-9)


def test_a_bound_spares_looks(monkeypatch):
    looks = []
    look = wide_loop.look_at_rows
    monkeypatch.setattr(
        wide_loop, "look_at_rows", lambda *args: (looks.append(args[-2]), look(*args))[1]
    )
    times = run()["lazy_escape"]
    first = times[times > 0].min()
    steps = sorted(set(looks))
    assert 1 < steps[0] <= first
    assert len(steps) < len(watch.watch_steps(STEPS))
    looks.clear()
    run(dynamics=lnsim.SGD(1e-6))
    assert not looks


def test_the_start_is_not_written_to():
    problem, network = start()
    before = network.W.copy(), network.a.copy()
    result = lnsim.simulate(problem, network, lnsim.SGD(4e-3, NOISE), steps=50, record_every=25)
    for array, earlier in zip((network.W, network.a), before, strict=True):
        np.testing.assert_array_equal(array, earlier)
    assert not np.shares_memory(result["final_W"], network.W)


def test_a_run_that_diverges_says_when(usual):
    dynamics = lnsim.SGD(0.5, NOISE)
    wide, other = run(dynamics), usual(dynamics)
    assert wide.status == other.status
    assert wide.status.code == "DIVERGED"
