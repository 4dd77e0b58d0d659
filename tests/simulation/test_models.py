"""Every model, loss, noise and form of SAM against the plain loops of naive_models.py."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import lnsim
import naive_models as naive

SAMPLES, DIM = 9, 4


def normal(*shape):
    return 0.6 * np.random.default_rng([7, *shape]).standard_normal(shape)


def two_layer(outputs, width=5, dim=DIM):
    return lnsim.Network(normal(width, dim), normal(outputs, width)), naive.TwoLayer()


def relu(outputs, activation, width=5, dim=DIM):
    W, A = normal(width, dim), normal(outputs, width)
    return lnsim.ReLUNetwork(W, A, activation), naive.TwoLayer(activation)


def diagonal(form, power=2):
    u = None if form == "square" else 0.5 + normal(DIM)
    return lnsim.Diagonal(u, 0.4 - normal(DIM, 1)[:, 0], form, power), naive.Diagonal(form, power)


def deep(sizes, residual=False):
    scale = 0.5 if residual else 1.0
    weights = tuple(scale * normal(after, before) for before, after in itertools.pairwise(sizes))
    return lnsim.DeepLinear(weights, residual), naive.Deep(residual)


MODELS = {
    "two-layer, C = 3": lambda: two_layer(3),
    "two-layer, C = 1": lambda: two_layer(1),
    "two-layer, m = 1": lambda: two_layer(2, width=1),
    "product": lambda: diagonal("product"),
    "difference": lambda: diagonal("difference"),
    "difference, D = 3": lambda: diagonal("difference", 3),
    "difference, D = 1": lambda: diagonal("difference", 1),
    "square": lambda: diagonal("square"),
    "deep": lambda: deep((DIM, 5, 3, 6, 3)),
    "deep, C = 1": lambda: deep((DIM, 3, 3, 1)),
    "residual": lambda: deep((DIM, 5, 5, 5, 3), residual=True),
    "residual, square first": lambda: deep((DIM, DIM, DIM, 2), residual=True),
    "depth 1": lambda: deep((DIM, 3)),
    "residual, depth 1": lambda: deep((DIM, DIM), residual=True),
    "relu": lambda: relu(3, "relu"),
    "relu, C = 1": lambda: relu(1, "relu"),
    "erf": lambda: relu(3, "erf"),
    "erf, C = 1": lambda: relu(1, "erf"),
}
LOSSES = ("squared", "logistic", "cross-entropy")
PAIRS = [
    (name, loss)
    for name, make in MODELS.items()
    for loss in LOSSES
    if loss == "squared" or (loss == "logistic") == (make()[0].outputs == 1)
]


def data(outputs, loss="squared", samples=SAMPLES, dim=DIM, classes=False):
    """A problem, and what the oracle takes: targets, classes of samples, targets of classes."""
    rng = np.random.default_rng([outputs, samples, dim])
    X = rng.standard_normal((samples, dim))
    Y = rng.standard_normal((samples, outputs))
    if loss == "squared" and not classes:
        y = Y[:, 0] if outputs == 1 else Y
        return SimpleNamespace(problem=lnsim.Problem(X, y, loss=loss), X=X, Y=Y)
    number = np.append(np.arange(max(2, outputs)), rng.integers(0, max(2, outputs), samples))
    number = number[:samples]
    rows = np.array([[-1.0], [1.0]]) if outputs == 1 else np.eye(outputs)
    Y = rows[number]
    y = number.astype(float) if loss == "cross-entropy" else Y[:, 0] if outputs == 1 else Y
    problem = lnsim.Problem(X, y, loss=loss)
    return SimpleNamespace(problem=problem, X=X, Y=Y, number=number, rows=rows)


def theta_of(model):
    """The oracle's parameters; a second layer (m,) as (1, m)."""
    return [
        np.atleast_2d(array) if name == "a" else array.copy()
        for name, array in model.parameters.items()
    ]


def final(run):
    return theta_of(run.final)


def run(given, model, dynamics, steps=40, **options):
    options = {"record_every": steps or 1} | options
    return lnsim.simulate(given.problem, model, dynamics, steps=steps, **options)


def far(found, expected):
    """The largest difference over the largest entry."""
    largest = max(np.abs(array).max() for array in expected)
    differences = [np.abs(f - e).max() for f, e in zip(found, expected, strict=True)]
    return max(differences) / largest


def agrees(given, made, dynamics, steps=40, tolerance=1e-12, reduce=None, seed=3, **oracle):
    """Whether simulate and the oracle end at the same weights, and move at all."""
    model, witness = made
    trajectory = run(given, model, dynamics, steps, seed=seed, reduce=reduce)
    theta = theta_of(model)
    expected = naive.train(
        witness, theta, given.X, given.Y, steps=steps, loss=given.problem.loss, seed=seed, **oracle
    )
    assert trajectory.status.code == "OK", trajectory.status
    assert far(theta, expected) > 1e-3
    assert far(final(trajectory), expected) < tolerance


@pytest.mark.small
@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_the_oracles_gradient_is_the_derivative_of_its_loss(name, loss):
    """By the complex step, which has no rounding of its own."""
    model, witness = MODELS[name]()
    given = data(model.outputs, loss)
    keep = 0.5 + np.abs(normal(witness.hidden(theta_of(model)))) if model.hidden else None
    theta, x, y = theta_of(model), given.X[0], given.Y[0]
    slope = naive.slope_of(loss, witness.forward(theta, x, keep), y)
    grads = witness.pull_back(theta, x, slope, keep)
    for p, array in enumerate(theta):
        for entry in np.ndindex(array.shape):
            moved = [each.astype(complex) for each in theta]
            moved[p][entry] += 1e-30j
            loss_there = naive.loss_of(loss, witness.forward(moved, x, keep), y)
            assert loss_there.imag / 1e-30 == pytest.approx(grads[p][entry], rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("batch", [1, 4, 0, 13])
@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_every_model_under_every_loss(name, loss, batch):
    made = MODELS[name]()
    given = data(made[0].outputs, loss)
    sgd = lnsim.SGD(lr=0.03, batch_size=batch)
    agrees(given, made, sgd, lr=0.03, batch=batch)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_recorded_is_the_models_own_loss(name):
    model, witness = MODELS[name]()
    given = data(model.outputs)
    trajectory = run(given, model, lnsim.GD(lr=0.02), steps=5)
    for theta, loss in zip(
        (theta_of(model), final(trajectory)), trajectory["train_loss"][[0, -1]], strict=True
    ):
        losses = [
            naive.loss_of("squared", witness.forward(theta, x), y)
            for x, y in zip(given.X, given.Y, strict=True)
        ]
        assert loss == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("name", ["two-layer, C = 3", "product", "residual", "relu"])
@pytest.mark.parametrize("batch", [1, 4])
def test_momentum_and_weight_decay(name, batch):
    made = MODELS[name]()
    sgd = lnsim.SGD(lr=0.01, batch_size=batch, momentum=0.8, weight_decay=0.1)
    agrees(data(made[0].outputs), made, sgd, lr=0.01, batch=batch, momentum=0.8, decay=0.1)


FEW = ["two-layer, C = 3", "two-layer, C = 1", "difference, D = 3", "deep", "relu"]


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "uniform"])
@pytest.mark.parametrize("batch", [1, 4, 0])
@pytest.mark.parametrize("name", FEW)
def test_label_noise(name, batch, law):
    made = MODELS[name]()
    sgd = lnsim.SGD(lr=0.02, noise=lnsim.LabelNoise(0.7, law), batch_size=batch)
    agrees(data(made[0].outputs), made, sgd, lr=0.02, batch=batch, label=(0.7, law, None))


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize("batch", [2, 0])
def test_label_noise_on_more_outputs_than_a_word_has_bits(batch, law):
    made = two_layer(70, width=6)
    sgd = lnsim.SGD(lr=0.01, noise=lnsim.LabelNoise(0.7, law), batch_size=batch)
    agrees(data(70), made, sgd, 10, lr=0.01, batch=batch, label=(0.7, law, None))


@pytest.mark.parametrize("law", ["rademacher", "gaussian", "uniform"])
@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("name", FEW)
def test_label_noise_on_some_labels_of_the_full_batch(name, labels, law):
    made = MODELS[name]()
    gd = lnsim.GD(lr=0.02, noise=lnsim.LabelNoise(0.7, law, labels))
    agrees(data(made[0].outputs), made, gd, lr=0.02, batch=0, label=(0.7, law, labels))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("to", ["other", "any"])
@pytest.mark.parametrize("batch", [1, 4, 0])
def test_flips(loss, to, batch):
    made = two_layer(1 if loss == "logistic" else 3)
    given = data(made[0].outputs, loss, classes=True)
    sgd = lnsim.SGD(lr=0.05, noise=lnsim.LabelFlips(0.4, to), batch_size=batch)
    flips = (0.4, to, given.number, given.rows)
    agrees(given, made, sgd, lr=0.05, batch=batch, flips=flips)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("to", ["other", "any"])
def test_flips_of_none_and_of_all(tau, to):
    made, given = MODELS["relu"](), data(3, "cross-entropy")
    sgd = lnsim.SGD(lr=0.05, noise=lnsim.LabelFlips(tau, to), batch_size=2)
    flips = (tau, to, given.number, given.rows)
    agrees(given, made, sgd, lr=0.05, batch=2, flips=flips)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 0])
def test_a_network_of_more_outputs_than_classes(batch, flip):
    """The target of an output that no label has is 0, and no label flips to it."""
    made, given = two_layer(6), data(3, "cross-entropy")
    given.Y = np.pad(given.Y, ((0, 0), (0, 3)))
    noise = lnsim.LabelFlips(0.5) if flip else None
    rows = np.pad(given.rows, ((0, 0), (0, 3)))
    oracle = {"flips": (0.5, "other", given.number, rows)} if flip else {}
    sgd = lnsim.SGD(lr=0.05, noise=noise, batch_size=batch)
    agrees(given, made, sgd, lr=0.05, batch=batch, **oracle)


@pytest.mark.parametrize("batch", [1, 4, SAMPLES, 2 * SAMPLES + 1])
@pytest.mark.parametrize("noise", ["none", "label", "flips"])
def test_samples_without_replacement_across_epochs(batch, noise):
    made = two_layer(3)
    given = data(3, classes=noise == "flips")
    of, oracle = None, {}
    if noise == "label":
        of, oracle = lnsim.LabelNoise(0.7), {"label": (0.7, "rademacher", None)}
    if noise == "flips":
        of, oracle = lnsim.LabelFlips(0.4), {"flips": (0.4, "other", given.number, given.rows)}
    sgd = lnsim.SGD(lr=0.03, noise=of, batch_size=batch, replacement=False)
    agrees(given, made, sgd, lr=0.03, batch=batch, replacement=False, **oracle)


@pytest.mark.parametrize("batch", [1, 4, 0])
@pytest.mark.parametrize("name", ["two-layer, C = 1", "square", "deep", "relu"])
def test_gaussian_noise_on_gradients(name, batch):
    made = MODELS[name]()
    sgd = lnsim.SGD(lr=0.03, noise=lnsim.GradientNoise(0.5), batch_size=batch)
    agrees(data(made[0].outputs), made, sgd, lr=0.03, batch=batch, on_gradient=0.5)


@pytest.mark.parametrize("anticorrelated", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 0])
@pytest.mark.parametrize("name", ["two-layer, C = 1", "product", "residual", "erf"])
def test_gaussian_noise_on_parameters(name, batch, anticorrelated):
    made = MODELS[name]()
    noise = lnsim.ParameterNoise(0.02, anticorrelated)
    agrees(
        data(made[0].outputs), made, lnsim.SGD(lr=0.03, noise=noise, batch_size=batch),
        lr=0.03, batch=batch, on_parameters=0.02, anticorrelated=anticorrelated,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 0])
@pytest.mark.parametrize(
    "name", ["two-layer, C = 3", "product", "deep", "residual", "relu", "erf, C = 1"]
)
def test_dropout(name, batch):
    made = MODELS[name]()
    sgd = lnsim.SGD(lr=0.02, noise=lnsim.Dropout(0.3), batch_size=batch)
    agrees(data(made[0].outputs), made, sgd, lr=0.02, batch=batch, dropout=0.3)


@pytest.mark.parametrize("batch", [3, 0])
@pytest.mark.parametrize("name", ["two-layer, C = 3", "deep"])
def test_all_noises_at_once(name, batch):
    """Their words lie in the documented order, whatever that of the noises."""
    made = MODELS[name]()
    noises = (
        lnsim.Dropout(0.3), lnsim.ParameterNoise(0.02, anticorrelated=True),
        lnsim.LabelNoise(0.7, "uniform"), lnsim.GradientNoise(0.5),
    )  # fmt: skip
    sgd = lnsim.SGD(lr=0.02, noise=noises, batch_size=batch, momentum=0.5, weight_decay=0.1)
    agrees(
        data(made[0].outputs), made, sgd, lr=0.02, batch=batch, momentum=0.5, decay=0.1,
        label=(0.7, "uniform", None), on_gradient=0.5, on_parameters=0.02, anticorrelated=True,
        dropout=0.3,
    )  # fmt: skip


@pytest.mark.parametrize("through", ["both", "jacobian", "loss"])
@pytest.mark.parametrize("layers", ["both", "first", "second"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("batch", "micro"), [(1, None), (6, None), (6, 2), (0, 1), (0, SAMPLES)])
def test_every_form_of_sam(batch, micro, normalized, layers, through):
    rho = 0.05
    sam = lnsim.SAM(
        lr=0.03, rho=rho, batch_size=batch, normalized=normalized, micro_batch=micro,
        layers=layers, through=through,
    )  # fmt: skip
    form = {"rho": rho, "normalized": normalized, "layers": layers, "through": through}
    for made, loss in ((two_layer(3), "squared"), (deep((DIM, 5, 3, 1)), "logistic")):
        given = data(made[0].outputs, loss)
        agrees(given, made, sam, 20, lr=0.03, batch=batch, micro=micro, sam=form)


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_sam_for_every_model_under_every_loss(name, loss):
    made = MODELS[name]()
    given = data(made[0].outputs, loss)
    sam = lnsim.SAM(lr=0.03, rho=0.1, batch_size=4, micro_batch=2)
    agrees(given, made, sam, lr=0.03, batch=4, micro=2, sam={"rho": 0.1})


@pytest.mark.parametrize("micro", [None, 2])
def test_sam_with_noise_of_every_kind(micro):
    made = MODELS["relu"]()
    noises = (
        lnsim.LabelNoise(0.7), lnsim.GradientNoise(0.5), lnsim.ParameterNoise(0.02),
        lnsim.Dropout(0.3),
    )  # fmt: skip
    sam = lnsim.SAM(lr=0.02, rho=0.1, noise=noises, batch_size=4, micro_batch=micro)
    agrees(
        data(3), made, sam, lr=0.02, batch=4, label=(0.7, "rademacher", None), on_gradient=0.5,
        on_parameters=0.02, dropout=0.3, micro=micro, sam={"rho": 0.1},
    )  # fmt: skip
