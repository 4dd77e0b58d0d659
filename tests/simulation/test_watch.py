"""The watch for lazy escape: its bound, and that every way of looking sees the same."""

import dataclasses

import numpy as np
import pytest

import lnsim
from lnsim.models.reduction import reduce
from lnsim.simulation import recorder, watch, watch_loop
from lnsim.simulation.observables import Frame

STEPS, EVERY = 4000, 500


def run(width=60, dim=5, replicas=3, **options):
    problem = lnsim.gaussian_regression(40, dim, test_samples=1)
    dynamics = lnsim.SGD(2e-3, lnsim.LabelNoise(4.0))
    options = {"steps": STEPS, "record_every": EVERY, "replicas": replicas} | options
    return lnsim.simulate(problem, lnsim.ntk_init(width, dim), dynamics, **options)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_screen_errs_by_no_more_than_it_allows_for(rank):
    rng = np.random.default_rng(0)
    W, start = rng.standard_normal((2, 9, rank))
    Q, F, D = rng.standard_normal((70, 9)), np.empty((9, 9)), np.empty((9, rank))
    watch_loop.moved_form(W, start, D, F)
    np.testing.assert_allclose(F, (W - start) @ (W - start).T, rtol=1e-12, atol=1e-12)
    size, moved = np.square(Q).sum(axis=1), np.square(Q @ D).sum(axis=1)
    tiles = watch_loop.tiles_of(Q, np.arange(70)[::-1])
    assert tiles.shape == (2, 12, watch_loop.LANES)
    for unit, kind in ((1.0, np.float64), (0.3, np.float32)):
        L = np.zeros((12, 12), dtype=kind)
        found = np.empty((2, watch_loop.LANES), dtype=kind)
        watch_loop.lower(F, unit, L)
        for tile, result in zip(tiles.astype(kind), found, strict=True):
            watch_loop.form_at(L, tile, result)
        error = watch_loop.ROUNDING * (9 + 4) * size * np.trace(F) / unit
        assert np.all(np.abs(found.ravel()[:70][::-1] - moved / unit) <= error)
        assert not found.ravel()[70:].any()


def test_reduced_and_plain_looks_see_the_same_escapes(monkeypatch):
    reduced = run()["lazy_escape"]
    assert (reduced > 0).any()
    assert len(np.unique(reduced)) > 20
    monkeypatch.setattr(
        recorder,
        "watch_of",
        lambda frame, replicas, last, scale, decays: watch.PlainWatch(frame, replicas, last, scale),
    )
    np.testing.assert_allclose(run()["lazy_escape"], reduced, rtol=1e-9)


@pytest.mark.parametrize("replicas", [1, 3])
def test_threads_that_share_neurons_see_the_same_bits(monkeypatch, replicas):
    alone = run(replicas=replicas)["lazy_escape"]
    monkeypatch.setattr(watch, "SHARED", 0)
    monkeypatch.setattr("lnsim.base.threads.number", lambda: 4)
    np.testing.assert_array_equal(run(replicas=replicas)["lazy_escape"], alone)


def test_a_run_of_an_earlier_version_goes_on():
    """Its file has what the neurons had moved at the last look, not the weights then."""
    whole = run()
    records = iter(range(3))
    stopped = run(stop=lambda: next(records) == 2)
    assert stopped.status.step == 2 * EVERY
    assert np.any(stopped["lazy_escape"] < 0)
    state = dict(stopped.state)
    before = state.pop("watched_W")
    problem, network = lnsim.gaussian_regression(40, 5, test_samples=1), lnsim.ntk_init(60, 5)
    reduction = reduce(problem, network)
    moved = np.linalg.norm(reduction.Q @ (before - reduction.W), axis=2)
    earlier = dataclasses.replace(stopped, state=state | {"watched_moved": moved})
    np.testing.assert_allclose(run(resume=earlier)["lazy_escape"], whole["lazy_escape"], rtol=1e-9)
    np.testing.assert_array_equal(run(resume=stopped)["lazy_escape"], whole["lazy_escape"])


def test_a_replica_whose_neurons_have_all_left_is_looked_at_no_more():
    problem = lnsim.gaussian_regression(40, 5, test_samples=1)
    network = lnsim.ntk_init(60, 5)
    frame = Frame(problem, reduce(problem, network))
    looks = watch.ReducedWatch(frame, 2, 100)
    far = [np.stack([frame.reduction.W, 50 + frame.reduction.W]), np.zeros((2, 6))]
    looks.look(1, far, np.array([True, True]))
    assert looks.inside.tolist() == [60, 0]
    assert looks.any_inside
    escape = looks.escape.copy()
    looks.look(2, [2 * array for array in far], np.array([False, True]))
    np.testing.assert_array_equal(looks.escape, escape)
