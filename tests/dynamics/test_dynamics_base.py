"""What every dynamics says of itself, and what it takes to add one."""

import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import lnsim
import lnsim_numba
from lnsim import streams
from lnsim.dynamics import Dynamics, Schedule
from lnsim_numba.call import scalars

pytestmark = pytest.mark.small

NOISE = lnsim.LabelNoise(2.0)
ALL = {
    lnsim.SGD(0.5, NOISE, 4, 0.9, 1e-3): (
        "SGD(lr=0.5, noise=LabelNoise(sigma=2.0, law='rademacher'), batch_size=4, momentum=0.9, "
        "weight_decay=0.001)",
        {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-3, "sigma": 2.0},
    ),
    lnsim.GD(0.5): ("GD(lr=0.5, noise=None)", {"lr": 0.5}),
    lnsim.SAM(0.5, 0.1): (
        "SAM(lr=0.5, rho=0.1, noise=None, batch_size=1)",
        {"lr": 0.5, "rho": 0.1},
    ),
    lnsim.Oscillation(0.0625): (
        "Oscillation(lr=0.0625, amplitude=0.5, oscillating=True)",
        {"lr": 0.0625, "amplitude": 0.5},
    ),
    lnsim.CustomDynamics(max, NOISE): (
        "CustomDynamics(step=max, noise=LabelNoise(sigma=2.0, law='rademacher'), batch_size=1, "
        "memory=0)",
        {"sigma": 2.0},
    ),
}


@pytest.mark.parametrize("dynamics", ALL, ids=lambda dynamics: type(dynamics).__name__)
def test_what_a_run_is_resumed_by_and_computed_with(dynamics):
    name, values = ALL[dynamics]
    assert repr(dynamics) == name
    assert repr(lnsim.Alternating(dynamics, 7)) == f"Alternating(dynamics={name}, period=7)"
    assert dynamics.scalars() == values
    assert pickle.loads(pickle.dumps(dynamics)) == dynamics


def test_an_earlier_pickle_names_the_package():
    earlier = b"clnsim.dynamics\nGD\n)\x81}(X\x02\x00\x00\x00lrG?\xe0\x00\x00\x00\x00\x00\x00ub."
    assert pickle.loads(earlier) == lnsim.GD(0.5)


def test_scalars_are_one_or_one_per_replica():
    problem, network = lnsim.gaussian_regression(6, 4), lnsim.ntk_init(9, 4)
    two = np.array([0.1, 0.2])
    for dynamics, name in (
        (lnsim.SGD(two), "lr"),
        (lnsim.SGD(0.1, momentum=two), "momentum"),
        (lnsim.SGD(0.1, weight_decay=two), "weight_decay"),
        (lnsim.SAM(0.1, two), "rho"),
        (lnsim.GD(0.1, lnsim.LabelNoise(two)), "sigma"),
    ):
        with pytest.raises(ValueError, match=f"^{name} has 2 values for 3 replicas: give one, or"):
            lnsim.simulate(problem, network, dynamics, steps=1, record_every=1, replicas=3)


@dataclass(frozen=True)
class Clipped(Dynamics):
    """SGD along the gradient, shortened to the length `limit` where it is longer."""

    lr: float
    limit: float
    noise: lnsim.LabelNoise | None = None
    batch_size: int = 1

    ranges: ClassVar = {"lr": {"above": 0.0}, "limit": {"above": 0.0}}
    kernel: ClassVar = "clipped"
    equivariant: ClassVar = True


def gradient(W, a, X, y):
    """Of the batch (X, y), not longer than 0.5."""
    z = X.T @ (X @ (W.T @ a) - y) / len(y)
    gradient_W, gradient_a = np.outer(a, z), W @ z
    norm = np.sqrt(np.sum(gradient_W**2) + np.sum(gradient_a**2))
    share = min(1.0, 0.5 / norm)
    return share * gradient_W, share * gradient_a


def clipped(call, going):
    rates = call.rates(scalars("lr", "limit", "sigma"))
    index = streams.sample_index(call.words, call.problem.samples)
    noise = streams.unit_noise(call.words, "rademacher")
    for s in going:
        assert rates[s]["limit"] == 0.5
        W, a = call.state.W[s], call.state.a[s]
        for i, epsilon in zip(index[s], rates[s]["sigma"] * noise[s], strict=True):
            gradients = gradient(W, a, call.problem.X[i], call.problem.y[i] + epsilon)
            for weights, slope in zip((W, a), gradients, strict=True):
                weights -= rates[s]["lr"] * slope


@pytest.mark.parametrize("reduce", [True, False])
def test_a_dynamics_is_one_class_and_one_kernel(reduce, monkeypatch):
    def step(W, a, X, y, t):
        gradient_W, gradient_a = gradient(W, a, X, y)
        return W - 0.1 * gradient_W, a - 0.1 * gradient_a

    problem, network = lnsim.gaussian_regression(12, 4), lnsim.ntk_init(9, 4)
    options = {"steps": 40, "record_every": 10, "replicas": 2, "reduce": reduce}
    rule = lnsim.CustomDynamics(step, NOISE, batch_size=3)
    expected = lnsim.simulate(problem, network, rule, **options)
    monkeypatch.setitem(lnsim_numba.KERNELS, "clipped", clipped)
    run = lnsim.simulate(problem, network, Clipped(0.1, 0.5, NOISE, 3), **options)
    assert "twin_loss" not in run.arrays
    assert run.config["dynamics"].endswith(
        "Clipped(lr=0.1, limit=0.5, noise=LabelNoise(sigma=2.0, law='rademacher'), batch_size=3)"
    )
    np.testing.assert_allclose(run["final_W"], expected["final_W"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run["final_a"], expected["final_a"], rtol=1e-9, atol=1e-12)
    half = lnsim.Alternating(Clipped(0.1, 0.5, NOISE, 3), 10)
    assert half.at(10)[0] == Clipped(0.1, 0.5, lnsim.LabelNoise(0.0), 3)
    with pytest.raises(ValueError, match=r"ledger covers SGD and GD .* got Clipped"):
        lnsim.simulate(problem, network, Clipped(0.1, 0.5), ledger=True, **options)
    with pytest.raises(ValueError, match=r"limit must be finite and above 0, got -1.0"):
        Clipped(0.1, -1.0)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_kernel_that_a_backend_has_not_is_refused(backend):
    if backend == "torch":
        pytest.importorskip("torch")
    problem, network = lnsim.gaussian_regression(6, 4), lnsim.ntk_init(9, 4)
    says = f"^backend '{backend}' has no kernel 'clipped' for Clipped: it has descent, oscillation$"
    with pytest.raises(ValueError, match=says):
        lnsim.simulate(
            problem, network, Clipped(0.1, 0.5), steps=1, record_every=1, backend=backend
        )


def test_what_is_no_dynamics_is_refused():
    problem, network = lnsim.gaussian_regression(6, 4), lnsim.ntk_init(9, 4)
    for what in (lnsim.SGD, "sgd", NOISE):
        with pytest.raises(TypeError, match=r"^dynamics must be SGD, GD, SAM, ... of lnsim, got"):
            lnsim.simulate(problem, network, what, steps=1, record_every=1)
    assert issubclass(lnsim.Alternating, Schedule) and not issubclass(lnsim.Alternating, Dynamics)
