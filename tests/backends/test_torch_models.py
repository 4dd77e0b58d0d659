"""Every model, loss, dynamics and noise: the hand-derived kernels against autograd.

A run has a replica for each noise of a set alone, one with all of them and one with none; learning
rates, momentum and the radius of SAM differ among the replicas too.
"""

import itertools
from functools import cache

import numpy as np
import pytest

import lnsim
from lnsim.backend import Segment, load

torch = pytest.importorskip("torch")

from lnsim_torch import general, linear

SAMPLES, DIM, WIDTH, CLASSES, REPLICAS = 6, 4, 5, 3, 6
EACH = np.array([1.0, 0.5, 2.0, 1.0, 1.5, 0.7])
LR, RHO = 2e-3 * EACH, 0.1 * np.array([1.0, 2.0, 1.0, 0.5, 0.0, 1.0])


def matrix(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(shape[-1])


def network(outputs):
    return lnsim.Network(matrix(WIDTH, DIM), matrix(outputs, WIDTH))


def deep(outputs, widths=(WIDTH, WIDTH), *, residual=False):
    return lnsim.deep_init(DIM, widths, outputs, residual=residual)


def relu(outputs, activation="relu"):
    return lnsim.ReLUNetwork(matrix(WIDTH, DIM), matrix(outputs, WIDTH), activation)


def diagonal(form, power=2):
    u, v = 1.0 + matrix(2, DIM)
    return lnsim.Diagonal(None if form == "square" else u, v, form, power)


MODELS = {
    "two-layer": network,
    "deep": deep,
    "deep with skips": lambda outputs: deep(outputs, (DIM, DIM, DIM), residual=True),
    "relu": relu,
    "erf": lambda outputs: relu(outputs, "erf"),
    "diagonal": lambda outputs: diagonal("product"),
    "diagonal, difference": lambda outputs: diagonal("difference", 3),
    "diagonal, square": lambda outputs: diagonal("square"),
}
LOSSES = {
    "squared": (1, "squared"),
    "squared, outputs": (CLASSES, "squared"),
    "logistic": (1, "logistic"),
    "cross-entropy": (CLASSES, "cross-entropy"),
}
FITTING = [
    (model, loss)
    for model, loss in itertools.product(MODELS, LOSSES)
    if LOSSES[loss][0] == 1 or not model.startswith("diagonal")
]


def sam(noise, batch_size=2, **form):
    # A gradient that is not normalised is larger than 1 here.
    rho = RHO if form.get("normalized", True) else 0.1 * RHO
    return lnsim.SAM(LR, rho, noise, batch_size, **form)


DYNAMICS = {
    "gd": lambda noise: lnsim.GD(LR, noise),
    "sgd": lambda noise: lnsim.SGD(LR, noise),
    "heavy": lambda noise: lnsim.SGD(
        LR, noise, 4, momentum=np.array([0.0, 0.5, 0.0, 0.9, 0.5, 0.5]),
        weight_decay=np.array([0.0, 0.0, 0.1, 0.1, 0.0, 0.1]), replacement=False,
    ),
    "sam": lambda noise: sam(noise, 1),
    "sam, full batch": lambda noise: sam(noise, 0, normalized=False),
    "1-sam": lambda noise: sam(noise, 0, normalized=False, micro_batch=1),
    "micro-batches": lambda noise: sam(noise, 4, micro_batch=2, replacement=False),
    "first layer": lambda noise: sam(noise, layers="first"),
    "second layer": lambda noise: sam(noise, layers="second", normalized=False),
    "through the loss": lambda noise: sam(noise, through="loss"),
    "through the jacobian": lambda noise: sam(noise, 4, through="jacobian", micro_batch=2),
    "scheduled": lambda noise: lnsim.Scheduled(
        lnsim.SGD(LR, noise, 2, momentum=0.5, weight_decay=0.1),
        lr=(lnsim.WarmUp(300), lnsim.Piecewise((3, 600), (EACH, 1.0, 0.5 * EACH))),
        noise=lnsim.Decay(800, 0.3, "linear"),
    ),
    "alternating": lambda noise: lnsim.Alternating(sam(noise), 2),
}  # fmt: skip
NOISES = ("none", "independent", "anticorrelated")


def only(replica, strength):
    """The strength of a noise that this replica has, and the last one."""
    return strength * np.isin(np.arange(REPLICAS), (replica, REPLICAS - 1))


def noises(model, loss, name):
    """The noises of a set that fit: none for replica 0, all for the last one."""
    if name == "none":
        return ()
    dropout = (lnsim.Dropout(only(3, 0.3)),) if model.hidden else ()
    if name == "anticorrelated":
        on_labels = lnsim.LabelFlips(only(1, 0.3), "any")
        return (on_labels, lnsim.ParameterNoise(only(2, 1e-3), anticorrelated=True), *dropout)
    flips = lnsim.LabelFlips(only(1, 0.3))
    on_labels = lnsim.LabelNoise(only(1, 0.5), "gaussian") if loss == "squared" else flips
    on_weights = lnsim.GradientNoise(only(2, 0.1)), lnsim.ParameterNoise(only(4, 1e-3))
    return (on_labels, *on_weights, *dropout)


@cache
def problem(outputs, loss):
    labels = np.arange(SAMPLES) % CLASSES
    y = 2.0 * (labels % 2) - 1.0
    if outputs > 1:
        y = labels if loss == "cross-entropy" else np.eye(CLASSES)[labels]
    return lnsim.Problem(matrix(SAMPLES, DIM), y, loss=loss)


def state(case, steps, backend, **more):
    """The arrays that `backend` has trained at the end."""
    model, loss, dynamics, noise = case
    outputs, loss = LOSSES[loss]
    model = MODELS[model](outputs)
    run = lnsim.simulate(
        problem(outputs, loss), model, DYNAMICS[dynamics](noises(model, loss, noise)), steps=steps,
        record_every=steps, replicas=REPLICAS, backend=backend, **more,
    )  # fmt: skip
    return run.state


def difference(one, other):
    """The largest over replicas and arrays, relative to an array's norm in a replica."""
    np.testing.assert_array_equal(one["diverged_at"], other["diverged_at"])
    np.testing.assert_array_equal(one["order"], other["order"])
    return max(
        np.max(
            np.linalg.norm(one[name] - other[name], axis=1)
            / np.maximum(np.linalg.norm(one[name], axis=1), 1e-12)
        )
        for name in ("theta", "velocity", "last")
    )


def agree(case, steps, tolerance, backends=("numba", "torch")):
    one, other = (state(case, steps, backend) for backend in backends)
    assert (one["diverged_at"] < 0).all()
    assert difference(one, other) < tolerance, case


EVERYTHING = [
    pytest.mark.parametrize("dynamics", DYNAMICS),
    pytest.mark.parametrize(("model", "loss"), FITTING),
]


def every(test):
    """Runs `test` for every model, loss that fits and dynamics."""
    for mark in EVERYTHING:
        test = mark(test)
    return test


@every
def test_the_first_steps_agree(model, loss, dynamics):
    for noise in NOISES if dynamics in ("gd", "sgd", "sam, full batch") else NOISES[1:]:
        agree((model, loss, dynamics, noise), 4, 1e-13)


@pytest.mark.slow
@every
def test_everything_agrees_for_1_000_steps(model, loss, dynamics):
    for noise in NOISES:
        agree((model, loss, dynamics, noise), 1_000, 1e-11)


def some():
    """Every fitting pair with one of the dynamics and one of the noises, each of them in turn."""
    for k, pair in enumerate(FITTING):
        yield *pair, list(DYNAMICS)[k % len(DYNAMICS)], NOISES[k % len(NOISES)]


SOME = list(some())


@pytest.mark.parametrize("case", SOME, ids=", ".join)
def test_1_000_steps_agree(case):
    agree(case, 1_000, 1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SOME, ids=", ".join)
def test_cuda_agrees(case):
    agree(case, 1_000, 1e-11, ("torch", "torch:cuda"))


@pytest.mark.parametrize("case", SOME[::4], ids=", ".join)
def test_float32_agrees_to_its_precision(case):
    one, other = (state(case, 100, backend) for backend in ("numba", "torch:cpu:float32"))
    assert 1e-9 < difference(one, other) < 1e-4


def test_one_output_may_be_a_vector():
    signs = problem(1, "logistic")
    model = lnsim.Network(matrix(WIDTH, DIM), matrix(WIDTH))
    runs = [
        lnsim.simulate(signs, model, sam(None), steps=50, record_every=50, replicas=REPLICAS,
                       backend=backend).state
        for backend in ("numba", "torch")
    ]  # fmt: skip
    assert difference(*runs) < 1e-13


def test_label_noise_on_some_labels_agrees():
    noise = lnsim.LabelNoise(0.5 * EACH, labels=3)
    runs = [
        lnsim.simulate(problem(CLASSES, "squared"), relu(CLASSES), lnsim.GD(LR, noise), steps=100,
                       record_every=100, replicas=REPLICAS, backend=backend).state
        for backend in ("numba", "torch")
    ]  # fmt: skip
    assert difference(*runs) < 1e-13


@pytest.mark.parametrize("make", [lnsim.SGD, lnsim.SAM])
@pytest.mark.parametrize("model", MODELS)
def test_a_replica_that_diverges_stays_where_it_was(model, make):
    """Among others that go on, over several calls."""
    rates = np.array([1e-3, 1e2, 1e-3, 1e4, 1e-3, 1e6])
    form = {"batch_size": 4, "noise": lnsim.ParameterNoise(1e-3, anticorrelated=True)}
    form |= {"momentum": 0.5} if make is lnsim.SGD else {"rho": 0.1, "micro_batch": 2}
    runs = [
        lnsim.simulate(
            problem(1, "squared"), MODELS[model](1), make(rates, **form), steps=60,
            record_every=20, replicas=REPLICAS, backend=backend,
        ).state
        for backend in ("numba", "torch")
    ]  # fmt: skip
    assert (runs[0]["diverged_at"] >= 0).tolist() == [False, True] * 3
    assert difference(*runs) < 1e-9


def test_no_step_waits_for_the_device(monkeypatch):
    """Tensors without numbers: on them, whatever a step would have to know of a number fails."""
    monkeypatch.setattr(
        linear.TorchEngine, "tensor", lambda self, array: torch.tensor(array, device="meta")
    )
    monkeypatch.setattr(general._Descent, "store", lambda *_: None)
    for case in SOME[::2]:
        state(case, 1, "torch")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("case", SOME, ids=", ".join)
def test_no_step_waits_for_cuda(case, monkeypatch):
    step = general._Descent.step

    def watched(self, t, number):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, t, number)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    state(case, 2, "torch:cuda")  # libraries start
    monkeypatch.setattr(general._Descent, "step", watched)
    state(case, 2, "torch:cuda")


class _Unknown(lnsim.DeepLinear):
    kernel = "unknown"


def test_what_the_engine_does_not_have_is_named():
    engine = load("torch")
    with pytest.raises(ValueError, match="'torch' has no kernel 'oscillation' for Oscillation"):
        engine.train(None, Segment(deep(1), None, "squared", lnsim.Oscillation(1e-2), None, 1, 0))
    with pytest.raises(ValueError, match="'unknown' for _Unknown: it has deep, diagonal, relu"):
        unknown = _Unknown([matrix(1, 2)])
        engine.train(None, Segment(unknown, None, "squared", lnsim.GD(1e-2), None, 1, 0))
