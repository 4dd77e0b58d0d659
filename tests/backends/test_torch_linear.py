"""The torch engine, by autograd, against the hand-derived kernels on the same draws."""

import numpy as np
import pytest

import lnsim
from lnsim.backend import State, load

torch = pytest.importorskip("torch")

from lnsim_torch import linear

NOISE = lnsim.LabelNoise(1.0)
CASES = {
    "sgd": (lnsim.SGD(1e-2, NOISE), {}),
    "sgd, gaussian": (lnsim.SGD(1e-2, lnsim.LabelNoise(1.0, "gaussian")), {}),
    "sgd, ledger": (lnsim.SGD(1e-2, NOISE), {"ledger": True}),
    "mini-batch, heavy": (lnsim.SGD(1e-2, NOISE, 3, 0.5, 0.1), {}),
    "sam": (lnsim.SAM(1e-2, 0.3, NOISE), {}),
    "sam, full batch": (lnsim.SAM(1e-3, 0.3, batch_size=0), {}),
    "gd": (lnsim.GD(1e-2), {}),
    "gd, noisy": (lnsim.GD(1e-2, NOISE), {"ledger": True}),
    "oscillation": (lnsim.Oscillation(1e-2, 0.3), {}),
    "alternating": (lnsim.Alternating(lnsim.SGD(1e-2, NOISE), 7), {}),
    "oscillation, alternating": (lnsim.Alternating(lnsim.Oscillation(1e-2, 0.3), 7), {}),
    "diverging": (lnsim.SGD(5.0, NOISE), {}),
}


def both(dynamics, other, *, steps=60, record_every=10, n=12, d=6, m=20, **more):
    problem, network = lnsim.gaussian_regression(n, d), lnsim.ntk_init(m, d)
    more |= {"steps": steps, "record_every": record_every}
    return [
        lnsim.simulate(problem, network, dynamics, backend=name, **more)
        for name in ("numba", other)
    ]


def largest_difference(runs):
    """Over all recorded arrays, relative to the largest finite entry of each."""
    assert set(runs[0].arrays) == set(runs[1].arrays)
    differences = []
    for name, value in runs[0].arrays.items():
        other, finite = runs[1][name], np.isfinite(value)
        if value.dtype.kind == "f":
            np.testing.assert_array_equal(
                np.where(finite, 0.0, value), np.where(finite, 0.0, other)
            )
        # Of two numbers that may go to 0 together, digits are lost.
        if name in ("flatness_gap", "batch_sharpness"):
            np.testing.assert_allclose(other[finite], value[finite], rtol=1e-6)
            continue
        largest = max(float(np.max(np.abs(value[finite]), initial=0.0)), 1e-12)
        differences.append(np.max(np.abs(value[finite] - other[finite]), initial=0.0) / largest)
    return max(differences)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [{}, {"n": 3}, {"m": 3}, {"m": 1, "n": 1, "d": 1}])
def test_every_dynamics_agrees_in_float64(case, sizes):
    dynamics, more = CASES[case]
    runs = both(dynamics, "torch", replicas=2, **sizes, **more)
    assert runs[0].status == runs[1].status
    # SAM divides by the gradient's norm, which nears 0 where three samples are interpolated.
    assert largest_difference(runs) < (1e-10 if "sam" in case else 1e-12)


@pytest.mark.parametrize("dynamics", [lnsim.SGD(1e-4, NOISE), lnsim.SAM(1e-4, 0.1)])
def test_threads_change_no_bit(dynamics):
    problem, network = lnsim.gaussian_regression(300, 200), lnsim.ntk_init(250, 200)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run = lnsim.simulate(
                problem, network, dynamics, steps=20, record_every=10, backend="torch"
            )
            runs.append({name: value.tobytes() for name, value in run.arrays.items()})
    finally:
        torch.set_num_threads(before)
    assert runs[0] == runs[1] == runs[2]


def test_replicas_of_different_rates_agree():
    dynamics = lnsim.SGD(np.array([1e-3, 5.0]), lnsim.LabelNoise(np.array([0.0, 1.0])))
    runs = both(dynamics, "torch", replicas=2)
    np.testing.assert_array_equal(runs[0]["diverged_at"], runs[1]["diverged_at"])
    assert largest_difference(runs) < 1e-12


@pytest.mark.parametrize("case", ["sgd", "sam", "gd", "oscillation"])
def test_float32_agrees_to_its_precision(case):
    dynamics, more = CASES[case]
    runs = both(dynamics, "torch:cpu:float32", **more)
    assert 1e-9 < largest_difference(runs) < 1e-4


def test_the_gradient_of_autograd_is_the_hand_derived_one():
    problem = lnsim.gaussian_regression(30, 8)
    rng = np.random.default_rng(0)
    W, a = rng.standard_normal((3, 9, 8)), rng.standard_normal((3, 9))
    state = State(W, a, None, None, np.full(3, -1))
    by_hand, by_autograd = (load(name).gradient(state, problem) for name in ("numba", "torch"))
    np.testing.assert_allclose(by_autograd.W, by_hand.W, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_autograd.a, by_hand.a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torch:abacus", "device must be cpu, cuda or cuda:N, got 'abacus'"),
        ("torch:mps", "device must be cpu, cuda or cuda:N, got 'mps'"),
        ("torch:cpu:float8", "dtype must be one of"),
        ("torch:cpu:float64:more", "takes no options"),
        ("numba:cuda", "takes no options"),
    ],
)
def test_bad_backends_are_named(name, says):
    with pytest.raises(ValueError, match=says):
        load(name)


def test_cuda_devices_that_are_not_there(monkeypatch):
    for count, name in ((0, "cuda"), (1, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(
            ValueError, match=f"'{name}' is not available: torch finds {count} CUDA"
        ):
            load(f"torch:{name}")


def agreement_over_blocks(case, backend):
    """Checks 300 steps on `backend` against the kernels: four blocks and a rest."""
    dynamics, more = CASES[case]
    runs = both(dynamics, backend, steps=300, record_every=300, replicas=2, **more)
    assert runs[0].status == runs[1].status
    assert largest_difference(runs) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_blocks_take_the_draws_of_their_steps(case, monkeypatch):
    """What CUDA captures and replays, without CUDA: the block of steps itself in its place."""

    def captured(step, device):
        step(0)  # to warm up
        return lambda: [step(t) for t in range(linear.BLOCK)]

    monkeypatch.setattr(linear, "_captured", captured)
    monkeypatch.setattr(linear, "CAPTURING", ("cpu",))
    agreement_over_blocks(case, "torch")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_agrees_captured_blocks_included(case):
    agreement_over_blocks(case, "torch:cuda")
