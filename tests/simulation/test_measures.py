"""Every measure at every record, against the loops of naive_measures.py on the whole network."""

import itertools

import numpy as np
import pytest

import lnsim
import naive_measures
import naive_models as naive

NAMES = {
    "sharpness", "hessian_trace", "flatness_gap", "kernel_alignment", "effective_rank",
    "predictor_rank", "balancedness", "gradient_noise", "batch_sharpness", "support", "l1_norm",
    "hessian_spectrum",
}  # fmt: skip


def normal(*shape):
    return 0.6 * np.random.default_rng([11, *shape]).standard_normal(shape)


def two_layer(outputs, width, dim):
    return lnsim.Network(normal(width, dim), normal(outputs, width)), naive.TwoLayer()


def one_output(width, dim):
    return lnsim.Network(normal(width, dim), normal(width)), naive.TwoLayer()


def relu(outputs, width, dim, activation="relu"):
    model = lnsim.ReLUNetwork(normal(width, dim), normal(outputs, width), activation)
    return model, naive.TwoLayer(activation)


def diagonal(form, dim, power=2):
    u = None if form == "square" else 0.5 + normal(dim)
    return lnsim.Diagonal(u, normal(dim, 1)[:, 0], form, power), naive.Diagonal(form, power)


def deep(*sizes, residual=False):
    weights = tuple(normal(after, before) for before, after in itertools.pairwise(sizes))
    return lnsim.DeepLinear(weights, residual), naive.Deep(residual)


# Samples and the network: where d > n the inputs are reduced, where m > n + C the hidden layer is.
CASES = {
    "one output": (6, one_output(3, 4)),
    "one output, d > n": (4, one_output(3, 7)),
    "one output, wide": (5, one_output(12, 3)),
    "one output, d > n, wide": (3, one_output(13, 6)),
    "one output, m = 1": (5, one_output(1, 3)),
    "one output, m = 1, d > n": (3, one_output(1, 6)),
    "one row of A, d > n, wide": (3, two_layer(1, 13, 6)),
    "C = 3": (6, two_layer(3, 4, 4)),
    "C = 3, d > n": (4, two_layer(3, 3, 7)),
    "C = 3, wide": (5, two_layer(3, 12, 3)),
    "C = 3, d > n, wide": (3, two_layer(3, 13, 6)),
    "C = 3, m = 1, d > n": (4, two_layer(3, 1, 6)),
    "C = 3, m = 2": (5, two_layer(3, 2, 3)),
    "deep": (6, deep(4, 3, 2, 1)),
    "deep, d > n, wide": (3, deep(6, 12, 9, 1)),
    "deep, C = 3": (5, deep(3, 4, 5, 3)),
    "deep, C = 3, d > n, wide": (3, deep(5, 10, 13, 3)),
    "deep, m = 1": (4, deep(5, 1, 1, 1)),
    "depth 1": (5, deep(3, 1)),
    "depth 2": (3, deep(5, 9, 1)),
    "residual": (5, deep(3, 3, 3, 1, residual=True)),
    "residual, C = 2": (3, deep(5, 4, 4, 2, residual=True)),
    "product": (5, diagonal("product", 4)),
    "product, d > n": (3, diagonal("product", 6)),
    "difference": (5, diagonal("difference", 4)),
    "difference, D = 1": (5, diagonal("difference", 4, 1)),
    "difference, D = 3, d > n": (3, diagonal("difference", 6, 3)),
    "difference, D = 4": (5, diagonal("difference", 4, 4)),
    "square": (5, diagonal("square", 4)),
    "relu": (6, relu(1, 4, 3)),
    "relu, d > n": (4, relu(1, 5, 7)),
    "relu, m = 1": (6, relu(1, 1, 3)),
    "relu, C = 3": (5, relu(3, 4, 3)),
    "relu, C = 3, d > n": (3, relu(3, 5, 6)),
    "erf": (5, relu(1, 4, 3, "erf")),
    "erf, C = 3, d > n": (3, relu(3, 4, 6, "erf")),
}
PAIRS = [
    (name, loss)
    for name, (_, (model, _)) in CASES.items()
    for loss in ("squared", "logistic", "cross-entropy")
    if loss == "squared" or (loss == "logistic") == (model.outputs == 1)
]


def data(samples, model, loss):
    """A problem that the network is far from, and the targets Y : (n, C) of its loss."""
    X, C = normal(samples, model.dim, 1)[..., 0] / 0.6, model.outputs
    if loss == "squared":
        Y = 2.0 + normal(samples, C)
        return lnsim.Problem(X, Y if C > 1 else Y[:, 0]), Y
    number = np.arange(samples) % max(2, C)
    if loss == "logistic":
        return lnsim.Problem(X, number.astype(float), loss=loss), 2.0 * number[:, None] - 1.0
    if samples < C:
        number[-1] = C - 1
    return lnsim.Problem(X, number.astype(float), loss=loss), np.eye(C)[number]


def theta_of(model):
    """The oracle's parameters; a second layer (m,) as (1, m)."""
    return [
        np.atleast_2d(array) if name == "a" else np.array(array)
        for name, array in model.parameters.items()
    ]


def run(problem, model, dynamics, steps=4, record_every=2, measures="all", **options):
    """The trajectory, and the network at every record."""
    networks = []

    def keep(network):
        networks.append(network)
        return 0.0

    trajectory = lnsim.simulate(
        problem, model, dynamics, steps=steps, record_every=record_every, measures=measures,
        observables={"keep": keep}, **options,
    )  # fmt: skip
    assert trajectory.status.code == "OK", trajectory.status
    return trajectory, networks


def spectrum(trajectory, cloud, size):
    """The eigenvalues of the whole network's Hessian, (P,), descending: what is not kept is 0."""
    kept = np.repeat(trajectory["hessian_spectrum"][cloud], trajectory["hessian_multiplicity"])
    return np.sort(np.append(kept, np.zeros(size - len(kept))))[::-1]


def compare(trajectory, record, expected):
    """That what is recorded is this to 1e-9 and NaN where it has no meaning; spectra at the clouds.

    The rank of a predictor of one row, which is 1 or 0, may be left out.
    """
    expected, recorded = dict(expected), NAMES & set(trajectory.arrays)
    if trajectory.config.get("shape", [1])[-1] == 1 and "predictor_rank" not in recorded:
        expected.pop("predictor_rank", None)
    assert set(expected) <= recorded
    eigenvalues = expected.pop("hessian_spectrum")
    largest = np.abs(eigenvalues).max()
    for cloud in np.flatnonzero(trajectory["cloud_step"] == trajectory.steps[record]):
        found = spectrum(trajectory, cloud, len(eigenvalues))
        assert found == pytest.approx(eigenvalues, abs=1e-10 * largest)
    for name in sorted(recorded - {"hessian_spectrum"}):
        least = 1e-10 * largest if name == "hessian_trace" else 1e-13
        assert trajectory[name][record] == pytest.approx(
            expected.get(name, np.nan), rel=1e-9, abs=least, nan_ok=True
        ), f"{name} at record {record}"


def agrees(name, loss, dynamics, size=0, replacement=True, **options):
    """Whether every measure at every record is the oracle's of the network at that record."""
    samples, (model, witness) = CASES[name]
    problem, Y = data(samples, model, loss)
    trajectory, networks = run(problem, model, dynamics, **options)
    assert len(networks) == len(trajectory.steps)
    for record, network in enumerate(networks):
        theta = theta_of(network)
        expected = naive_measures.measures(
            witness, theta, problem.X, Y, loss, size=size, replacement=replacement
        )
        compare(trajectory, record, expected)
    assert not np.array_equal(networks[0].flat, networks[-1].flat)


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_every_measure_of_every_network(name, loss):
    agrees(name, loss, lnsim.SGD(lr=0.01, batch_size=2), size=2)


FEW = ["one output, d > n, wide", "C = 3, d > n, wide", "deep", "difference, D = 3, d > n", "relu"]


@pytest.mark.parametrize("name", FEW)
def test_dense_training_has_the_same_measures(name):
    agrees(name, "squared", lnsim.SGD(lr=0.01, batch_size=2), size=2, reduce=False)


@pytest.mark.parametrize("name", FEW)
def test_the_rest_of_the_inputs_shrinks_with_weight_decay(name):
    agrees(name, "squared", lnsim.SGD(lr=0.05, batch_size=1, weight_decay=1.0), size=1)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", FEW)
def test_batches_of_every_size(name, size, replacement):
    sgd = lnsim.SGD(lr=0.01, batch_size=size, replacement=replacement)
    agrees(name, "squared", sgd, size, replacement, steps=2)


@pytest.mark.parametrize("name", ["C = 3, d > n, wide", "relu, C = 3, d > n"])
def test_a_batch_above_the_number_of_samples(name):
    """With replacement, its samples repeat."""
    agrees(name, "squared", lnsim.SGD(lr=0.01, batch_size=5), 5, steps=1, record_every=1)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", FEW)
def test_batches_of_whole_epochs(name, epochs):
    """Without replacement every batch holds all samples, each once or twice."""
    sgd = lnsim.SGD(lr=0.01, batch_size=epochs * CASES[name][0], replacement=False)
    agrees(name, "squared", sgd, steps=2)


@pytest.mark.parametrize("name", FEW)
def test_full_batches_and_labels_with_noise(name):
    """Measures are of clean labels, whatever the noise of the dynamics."""
    for dynamics, size in (
        (lnsim.GD(lr=0.01), 0),
        (lnsim.GD(lr=0.01, noise=lnsim.LabelNoise(0.5)), 0),
        (lnsim.SGD(lr=0.01, noise=lnsim.LabelNoise(0.5), batch_size=2), 2),
        (lnsim.SGD(lr=0.01, momentum=0.5, batch_size=0), 0),
        (lnsim.SAM(lr=0.01, rho=0.1, batch_size=2), 2),
    ):
        agrees(name, "squared", dynamics, size, steps=2)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_network_of_more_outputs_than_classes(backend):
    """The targets of an output that no label has are 0."""
    if backend == "torch":
        pytest.importorskip("torch")
    model, witness = two_layer(4, 5, 3)
    problem = lnsim.Problem(normal(5, 3), np.array([0.0, 1.0, 1.0, 0.0, 1.0]), loss="cross-entropy")
    Y = np.eye(4)[[0, 1, 1, 0, 1]]
    sgd = lnsim.SGD(lr=0.1, batch_size=2)
    trajectory, networks = run(problem, model, sgd, backend=backend)
    for record, network in enumerate(networks):
        theta = theta_of(network)
        expected = naive_measures.measures(witness, theta, problem.X, Y, "cross-entropy", size=2)
        compare(trajectory, record, expected)


LARGER = {
    "C = 4": two_layer(4, 60, 15),
    "one output": one_output(40, 24),
    "deep": deep(15, 12, 10, 3),
    "relu": relu(4, 25, 15),
    "erf": relu(1, 25, 15, "erf"),
}


@pytest.mark.parametrize(
    ("name", "loss"),
    [(name, "squared") for name in LARGER]
    + [("C = 4", "cross-entropy"), ("relu", "cross-entropy"), ("deep", "cross-entropy")]
    + [("one output", "logistic"), ("erf", "logistic")],
)
def test_hessians_of_larger_networks_are_those_of_autograd(name, loss):
    """Of the whole network, hundreds of parameters, while it learns."""
    pytest.importorskip("torch")
    from dense_hessians import dense

    model, witness = LARGER[name]
    problem, Y = data(20, model, loss)
    trajectory, networks = run(problem, model, lnsim.GD(lr=0.02), steps=60, record_every=30)
    for record, network in enumerate(networks):
        gradient, H = dense(witness, theta_of(network), problem.X, Y, loss)
        values = np.linalg.eigvalsh(H)[::-1]
        assert trajectory["sharpness"][record] == pytest.approx(values[0], rel=1e-10)
        assert trajectory["hessian_trace"][record] == pytest.approx(np.trace(H), rel=1e-10)
        found = spectrum(trajectory, record, len(values))
        assert found == pytest.approx(values, abs=1e-11 * values[0])
        curved = gradient @ H @ gradient / (gradient @ gradient)
        assert trajectory["batch_sharpness"][record] == pytest.approx(curved, rel=1e-10)


ZERO = ["one output", "one output, d > n, wide", "C = 3", "deep", "product", "relu"]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ZERO)
def test_zero_weights(name, layers):
    """Of the first layer, or of all: ranks are 0, the Hessian is what it is, 0 by 0 is NaN."""
    samples, (model, witness) = CASES[name]
    problem, Y = data(samples, model, "squared")
    arrays = enumerate(model.parameters.values())
    zero = model.with_parameters([array * (k >= layers) for k, array in arrays])
    trajectory, (network, *_) = run(problem, zero, lnsim.GD(lr=0.01), steps=0)
    theta = theta_of(network)
    expected = naive_measures.measures(witness, theta, problem.X, Y, "squared")
    compare(trajectory, 0, expected)


def test_one_sample_has_no_gradient_noise():
    problem = lnsim.Problem(normal(1, 3), np.array([2.0]))
    trajectory, networks = run(problem, one_output(4, 3)[0], lnsim.SGD(lr=0.01, batch_size=1))
    assert np.all(trajectory["gradient_noise"] == 0.0)
    for record, network in enumerate(networks):
        expected = naive_measures.measures(
            naive.TwoLayer(), theta_of(network), problem.X, np.array([[2.0]]), "squared", size=1
        )
        compare(trajectory, record, expected)


@pytest.mark.parametrize(("s", "b"), [(1.0, 1.0), (0.2, 5.0)])
def test_the_stationary_rank_one_state_has_gap_one(s, b):
    """s^2 / b^2 = tr Sigma / q: the first layer s u theta^T / |theta|, the second b u."""
    X, direction = normal(5, 3), np.array([0.6, 0.0, 0.8])
    u = normal(7) / np.linalg.norm(normal(7))
    ratio = (X * X).sum() / np.square(X @ direction).sum()
    network = lnsim.Network(s * ratio**0.5 * np.outer(u, direction), b * u)
    trajectory, _ = run(lnsim.Problem(X, X[:, 0]), network, lnsim.GD(lr=0.01), steps=0)
    expected = ((s / b) + (b / s)) / 2
    assert trajectory["flatness_gap"] == pytest.approx([expected], rel=1e-12)


def test_a_balanced_network_has_balancedness_zero():
    Q, _ = np.linalg.qr(normal(9, 2))
    S = np.diag([2.0, 1.0])
    network = lnsim.Network(Q @ S, S @ Q.T)
    problem = lnsim.Problem(normal(4, 2), normal(4, 2, 1)[..., 0])
    assert run(problem, network, lnsim.GD(lr=0.01), steps=0)[0]["balancedness"][0] < 1e-14


def test_a_kernel_of_the_labels_has_alignment_one():
    """d = 1: centred, the kernel is a multiple of y y^T."""
    y = normal(5)
    for model in (one_output(4, 1)[0], deep(1, 3, 2, 1)[0], diagonal("product", 1)[0]):
        trajectory, _ = run(lnsim.Problem(y[:, None], 3 * y), model, lnsim.GD(lr=0.01))
        assert trajectory["kernel_alignment"] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", FEW)
def test_replicas_have_the_measures_of_single_runs(name):
    samples, (model, _) = CASES[name]
    problem, _ = data(samples, model, "squared")
    sgd = lnsim.SGD(lr=0.01, batch_size=2)
    both, _ = run(problem, model, sgd, seed=[3, 8])
    for replica, seed in enumerate((3, 8)):
        single, _ = run(problem, model, sgd, seed=seed)
        for measure in NAMES & set(single.arrays):
            assert np.array_equal(both[measure][replica], single[measure], equal_nan=True), measure


@pytest.mark.parametrize("name", FEW)
def test_a_resumed_run_has_the_measures_of_one_run(name):
    samples, (model, _) = CASES[name]
    problem, _ = data(samples, model, "squared")
    sgd = lnsim.SGD(lr=0.05, batch_size=2)
    whole, _ = run(problem, model, sgd, steps=12)
    asked = iter([False, False, False, True])
    half = lnsim.simulate(
        problem, model, sgd, steps=12, record_every=2, measures="all",
        observables={"keep": lambda network: 0.0}, stop=lambda: next(asked),
    )  # fmt: skip
    assert 0 < half.status.step < 12
    resumed, _ = run(problem, model, sgd, steps=12, resume=half)
    for measure in NAMES & set(whole.arrays):
        assert np.array_equal(resumed[measure], whole[measure], equal_nan=True), measure


@pytest.mark.parametrize("name", FEW)
def test_measures_that_are_asked_for_by_name(name):
    samples, (model, _) = CASES[name]
    problem, _ = data(samples, model, "squared")
    every, _ = run(problem, model, lnsim.GD(lr=0.01))
    no, _ = run(problem, model, lnsim.GD(lr=0.01), measures="none")
    some, _ = run(problem, model, lnsim.GD(lr=0.01), measures="sharpness,hessian_spectrum")
    assert not NAMES & set(no.arrays)
    assert {"sharpness", "hessian_spectrum"} <= set(some.arrays)
    for measure in NAMES & set(some.arrays):
        assert np.array_equal(some[measure], every[measure], equal_nan=True), measure
