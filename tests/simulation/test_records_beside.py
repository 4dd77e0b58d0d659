"""Records that are computed beside training, and sharpness by the compiled loop, by both ways."""

import numpy as np
import pytest

import lnsim
from lnsim.base import threads
from lnsim.simulation import recorder
from lnsim.theory import flatness


def run(monkeypatch, cores, **options):
    # number() as the recorder and the pool see it, whatever this machine has.
    monkeypatch.setattr(recorder, "number", lambda: cores)
    monkeypatch.setattr(threads, "number", lambda: cores)
    monkeypatch.setattr(recorder, "WAITING_BESIDE", 64)
    dynamics = lnsim.SGD(0.01, lnsim.LabelNoise(1.0))
    problem, network = lnsim.gaussian_regression(12, 3), lnsim.ntk_init(30, 3)
    return lnsim.simulate(problem, network, dynamics, steps=400, record_every=3, **options)


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("replicas", [1, 2])
def test_records_do_not_depend_on_where_they_are_computed(monkeypatch, cores, replicas):
    here = run(monkeypatch, 1, replicas=replicas)
    beside = run(monkeypatch, cores, replicas=replicas)
    assert here.arrays.keys() == beside.arrays.keys()
    for name, array in here.arrays.items():
        assert np.array_equal(array, beside.arrays[name], equal_nan=array.dtype.kind == "f"), name


def test_an_error_beside_training_ends_the_run(monkeypatch):
    def fail(*_):
        raise RuntimeError("of a formula")

    monkeypatch.setattr(recorder.Recorder, "_measure", fail)
    with pytest.raises(RuntimeError, match="of a formula"):
        run(monkeypatch, 2)


@pytest.mark.parametrize("samples", [2, 30])
@pytest.mark.parametrize("weight", [0.0, 1e-9, 0.1, 1.0, 30.0])
def test_the_compiled_sharpness_is_that_by_eigenvalues(samples, weight):
    rng = np.random.default_rng(3)
    B, d = 20, 5
    X, W = rng.standard_normal((samples, d)), rng.standard_normal((B, d + 1, d))
    a, z = rng.standard_normal((B, d + 1)), weight * rng.standard_normal((B, d))
    parts = W.transpose(0, 2, 1) @ W, np.einsum("bp,bpd->bd", a, W), (a * a).sum(1), z
    pencil = flatness._Pencil.of(parts, flatness.square_root(X.T @ X / samples))
    by_eigenvalues = np.empty(B)
    pencil.solve(by_eigenvalues, np.arange(B))
    assert np.allclose(pencil.largest(), by_eigenvalues, rtol=3e-12, atol=0.0)
    alone = [
        flatness._Pencil(*(array[b : b + 1] for array in vars(pencil).values())).largest()[0]
        for b in range(B)
    ]
    assert np.array_equal(pencil.largest(), alone)
