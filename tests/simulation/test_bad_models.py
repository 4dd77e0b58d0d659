"""What no model, loss, noise or schedule can take: one line that says what it was."""

import numpy as np
import pytest
from test_models import DIM, SAMPLES, data, deep, diagonal, normal, relu, run, two_layer

import lnsim

pytestmark = pytest.mark.small

X = normal(SAMPLES, DIM)
CLASSES = np.array([0.0, 1.0, 2.0] * 3)
SIGNS = np.where(CLASSES == 0, -1.0, 1.0)


def says(text, kind=ValueError):
    """Raises `kind` with this text in its one line."""
    return pytest.raises(kind, match=f"^(?=[^\n]*{text})[^\n]*$")


@pytest.mark.parametrize(
    ("y", "loss", "text"),
    [
        (CLASSES + 0.5, "cross-entropy", "y must be class numbers 0, 1, 2, ..., got 0.5"),
        (CLASSES - 1, "cross-entropy", "y must be class numbers 0, 1, 2, ..., got -1"),
        (CLASSES * 1e9, "cross-entropy", "y must be classes below 100,000, got 2e[+]09"),
        (CLASSES, "logistic", "y must be of -1 and 1, or of the classes 0 and 1, got 2"),
        (SIGNS * 0.5, "logistic", "y must be of -1 and 1, .* got -0.5"),
        (
            np.eye(3)[CLASSES.astype(int)],
            "cross-entropy",
            r"y must have 1 axes, .* \(9, 3\)",
        ),
        (np.eye(9)[:, :1], "logistic", r"y must have 1 axes, got shape \(9, 1\)"),
        (CLASSES[:5], "cross-entropy", r"y must have shape \(9,\) \(X has 9 rows\), got \(5,\)"),
        (np.full(9, np.nan), "cross-entropy", "y must be finite, got nan"),
        (normal(9, 2, 2), "squared", "y must have 1 axes"),
        (CLASSES, "hinge", "loss must be one of cross-entropy, logistic, squared, got 'hinge'"),
    ],
)
def test_labels_that_the_loss_does_not_take(y, loss, text):
    with says(text):
        lnsim.Problem(X, y, loss=loss)


def test_test_labels_are_checked_as_well():
    with says("y_test must be class numbers 0, 1, 2, ..., got 0.5"):
        lnsim.Problem(X, CLASSES, X_test=X, y_test=CLASSES + 0.5, loss="cross-entropy")
    with says(r"y_test must have 2 columns as y, got \(9, 3\)"):
        lnsim.Problem(X, normal(SAMPLES, 2), X_test=X, y_test=normal(SAMPLES, 3))


def test_a_class_of_the_test_set_alone_is_one_of_the_networks():
    problem = lnsim.Problem(X, CLASSES, X_test=X[:1], y_test=[4.0], loss="cross-entropy")
    assert problem.outputs == 5
    with says("the network must have 5 outputs for these labels, got 3"):
        lnsim.simulate(problem, two_layer(3)[0], lnsim.SGD(0.01), steps=1, record_every=1)


@pytest.mark.parametrize("batch", [1, 3, 0])
@pytest.mark.parametrize(
    ("model", "outputs", "loss"),
    [
        (two_layer(2)[0], 3, "squared"),
        (two_layer(4)[0], 3, "squared"),
        (two_layer(2)[0], 3, "cross-entropy"),
        (two_layer(2)[0], 1, "logistic"),
        (two_layer(2)[0], 1, "squared"),
        (diagonal("product")[0], 2, "squared"),
        (diagonal("product")[0], 2, "cross-entropy"),
        (deep((DIM, 5, 2))[0], 3, "squared"),
        (relu(1, "relu")[0], 3, "squared"),
        (lnsim.Network(normal(5, DIM), normal(5)), 2, "squared"),
        (lnsim.Network(normal(5, DIM), normal(5)), 2, "cross-entropy"),
    ],
    ids=str,
)
def test_outputs_that_do_not_fit(model, outputs, loss, batch):
    with says(f"the network must have {outputs} outputs for these labels, got {model.outputs}"):
        run(data(outputs, loss), model, lnsim.SGD(0.01, batch_size=batch), 2)


@pytest.mark.parametrize("model", [two_layer(1)[0], diagonal("square")[0], deep((DIM, 1))[0]])
def test_inputs_that_do_not_fit(model):
    with says(r"has 4 columns but X has 5: they must be the same"):
        run(data(1, dim=DIM + 1), model, lnsim.SGD(0.01), 2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lnsim.LabelFlips(-0.1), "tau must be finite and at least 0, got -0.1"),
        (lambda: lnsim.LabelFlips(1.1), "tau must be a probability, at most 1, got 1.1"),
        (lambda: lnsim.LabelFlips(np.array([0.5, 1.5])), "tau must be .* at most 1, got 1.5"),
        (lambda: lnsim.LabelFlips(float("nan")), "tau must be finite"),
        (lambda: lnsim.LabelFlips(0.5, "some"), "to must be one of any, other, got 'some'"),
        (lambda: lnsim.Dropout(1.0), "rate must be below 1, got 1"),
        (lambda: lnsim.Dropout(-0.5), "rate must be finite and at least 0, got -0.5"),
        (lambda: lnsim.GradientNoise(-1), "sigma must be finite and at least 0, got -1"),
        (lambda: lnsim.ParameterNoise(np.inf), "sigma must be finite"),
        (lambda: lnsim.LabelNoise(1.0, "cauchy"), "law must be one of gaussian, .* got 'cauchy'"),
        (lambda: lnsim.LabelNoise(1.0, labels=0), "labels must be at least 1, got 0"),
        (
            lambda: lnsim.SGD(0.1, lnsim.LabelNoise(1.0, labels=2), 4),
            "batch_size must be 0 for noise on 2 labels of the full batch, got 4",
        ),
        (
            lambda: lnsim.SGD(0.1, (lnsim.LabelNoise(1.0), lnsim.LabelFlips(0.1))),
            "noise must have a noise on labels only once",
        ),
        (
            lambda: lnsim.SGD(0.1, (lnsim.Dropout(0.1), lnsim.Dropout(0.2))),
            "noise must have Dropout only once",
        ),
        (lambda: lnsim.SGD(-0.1), "lr must be finite and above 0, got -0.1"),
        (lambda: lnsim.SGD(0.1, batch_size=-1), "batch_size must be at least 0, got -1"),
        (lambda: lnsim.SAM(0.1, -1.0), "rho must be finite and at least 0, got -1"),
        (lambda: lnsim.SAM(0.1, 0.1, micro_batch=0), "micro_batch must be at least 1, got 0"),
        (
            lambda: lnsim.SAM(0.1, 0.1, batch_size=6, micro_batch=4),
            "micro_batch must divide the batch of 6 samples, got 4",
        ),
        (lambda: lnsim.SAM(0.1, 0.1, layers="third"), "layers must be one of both, first, second"),
        (lambda: lnsim.SAM(0.1, 0.1, through="f"), "through must be one of both, jacobian, loss"),
        (lambda: lnsim.WarmUp(0), "steps must be finite and at least 1, got 0"),
        (lambda: lnsim.Decay(5, 1.5), "end must be at most 1, got 1.5"),
        (lambda: lnsim.Decay(5, 0.0, "exponential"), "end must be above 0 for an exponential"),
        (lambda: lnsim.Decay(5, curve="step"), "curve must be one of cosine, exponential, linear"),
        (lambda: lnsim.Piecewise((5, 5), (1.0, 1.0, 1.0)), r"boundaries must ascend, got \(5, 5\)"),
        (lambda: lnsim.Piecewise((5,), (1.0,)), "values must be 2 for 1 boundaries, got 1"),
        (
            lambda: lnsim.Piecewise((5,), (1.0, -1.0)),
            "values must be .* at least 0, got -1",
        ),
        (
            lambda: lnsim.Scheduled(lnsim.CustomDynamics(print), lr=lnsim.WarmUp(5)),
            "lr must be left out for a CustomDynamics, which has no learning rate",
        ),
        (
            lambda: lnsim.Piecewise((5,), (np.ones(2), np.ones(3))),
            r"values must be of as many replicas each, got \[2, 3\]",
        ),
        (
            lambda: lnsim.Scheduled(lnsim.SGD(0.1), lr=lnsim.Piecewise((5,), (1.0, 0.0))),
            "lr must be finite and above 0, got 0",
        ),
        (
            lambda: lnsim.Scheduled(
                lnsim.SGD(0.1, lnsim.LabelFlips(0.5)), noise=lnsim.Piecewise((5,), (1.0, 3.0))
            ),
            "tau must be a probability, at most 1, got 1.5",
        ),
    ],
)
def test_noise_and_steps_out_of_range(make, text):
    with says(text):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: lnsim.SGD(0.1, 4.0),
            "noise must be a LabelNoise or another noise .* got 4",
        ),
        (lambda: lnsim.SGD(0.1, [lnsim.Dropout(0.1)]), "noise must be a LabelNoise or another"),
        (lambda: lnsim.LabelFlips("half"), "tau must be a number, got 'half'"),
        (lambda: lnsim.Scheduled(lnsim.SGD(0.1), lr=0.5), "lr must be Factors such as WarmUp"),
        (lambda: lnsim.DeepLinear(normal(3, DIM)), "weights must be a sequence of matrices"),
        (lambda: lnsim.SAM(0.1, 0.1, micro_batch=1.5), "micro_batch must be an integer, got 1.5"),
    ],
)
def test_things_of_another_type(make, text):
    with says(text, TypeError):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lnsim.DeepLinear(()), r"weights must have at least one layer \(depth >= 1\)"),
        (
            lambda: lnsim.DeepLinear((normal(3, DIM), normal(2, 4))),
            r"weights\[1\] must have shape \(2, 3\) \(weights\[0\] has 3 rows\), got \(2, 4\)",
        ),
        (
            lambda: lnsim.DeepLinear((normal(3, DIM), normal(2, 3), normal(1, 2)), residual=True),
            r"weights\[1\] must be square for a skip, got \(2, 3\)",
        ),
        (lambda: lnsim.Network(normal(5, DIM), normal(3, 4)), r"a must have shape \(3, 5\)"),
        (lambda: lnsim.ReLUNetwork(normal(5, DIM), normal(3, 4)), r"A must have shape \(3, 5\)"),
        (
            lambda: lnsim.ReLUNetwork(normal(5, DIM), normal(3, 5), "tanh"),
            "activation must be one of erf, relu, got 'tanh'",
        ),
        (lambda: lnsim.Diagonal(normal(4), normal(3)), r"u must have shape \(3,\)"),
        (lambda: lnsim.Diagonal(None, normal(3)), "u must be None for the form 'square' and an"),
        (lambda: lnsim.Diagonal(normal(3), normal(3), "square"), "u must be None for the form"),
        (lambda: lnsim.Diagonal(normal(3), normal(3), "sum"), "form must be one of difference"),
        (
            lambda: lnsim.Diagonal(normal(3), normal(3), "difference", 0),
            "power must be at least 1, got 0",
        ),
        (lambda: lnsim.ntk_init(5, 4, start="lazy"), "start must be one of .*, got 'lazy'"),
        (
            lambda: lnsim.relu_init(5, 4, start="identity"),
            "start must be one of .*, got 'identity'",
        ),
        (lambda: lnsim.deep_init(4, (5,), start="small"), "start must be one of .*, got 'small'"),
        (lambda: lnsim.deep_init(4, (0,)), "width must be at least 1, got 0"),
        (lambda: lnsim.deep_init(4, (5,), 0), "outputs must be at least 1, got 0"),
        (
            lambda: lnsim.deep_init(4, (3, 5, 2), residual=True),
            r"weights\[1\] must be square for a skip, got \(5, 3\)",
        ),
        (
            lambda: lnsim.ntk_init(9, 4, start="balanced", balance=1.0),
            "balance must be 0 for m = 9 neurons, d = 4 inputs and C = 1",
        ),
        (
            lambda: lnsim.ntk_init(2, 4, outputs=2, start="balanced", balance=-2.0),
            "balance must be at least -1, got -2",
        ),
        (
            lambda: lnsim.ntk_init(5, 4, start="unbalanced", balance=-100.0),
            "balance must be at least .*, got -100",
        ),
        (lambda: lnsim.diagonal_init(4, form="cube"), "form must be one of difference, .* 'cube'"),
    ],
)
def test_models_and_starts_that_there_are_not(make, text):
    with says(text):
        make()


@pytest.mark.parametrize(
    ("model", "dynamics"),
    [
        (diagonal("product")[0], lnsim.SGD(0.01)),
        (deep((DIM, 5, 5, 1), residual=True)[0], lnsim.SGD(0.01)),
        (deep((DIM, 3, 1))[0], lnsim.SGD(0.01)),
        (relu(1, "relu", width=40)[0], lnsim.SGD(0.01)),
        (two_layer(1, width=3)[0], lnsim.SGD(0.01)),
        (two_layer(1, width=40)[0], lnsim.SGD(0.01, lnsim.GradientNoise(0.1))),
        (two_layer(1, width=40)[0], lnsim.SGD(0.01, lnsim.ParameterNoise(0.1))),
        (two_layer(1, width=40)[0], lnsim.SGD(0.01, lnsim.Dropout(0.1))),
    ],
    ids=str,
)
def test_a_reduction_where_there_is_none(model, dynamics):
    with says("reduce must be False or None: a .* has no reduction"):
        run(data(1), model, dynamics, 1, reduce=True)


ONE = lnsim.SGD(0.01)


@pytest.mark.parametrize(
    ("model", "given", "dynamics", "text"),
    [
        (two_layer(3), data(3, "cross-entropy"), lnsim.SGD(0.01, lnsim.LabelNoise(1.0)),
         "LabelNoise is for the squared loss, got 'cross-entropy': use LabelFlips"),
        (two_layer(1), data(1, "logistic"), lnsim.SGD(0.01, lnsim.LabelNoise(1.0)),
         "LabelNoise is for the squared loss, got 'logistic': use LabelFlips"),
        (two_layer(3), data(3), lnsim.SGD(0.01, lnsim.LabelFlips(0.1)),
         "LabelFlips needs labels that are classes"),
        (two_layer(1), data(1), lnsim.SGD(0.01, lnsim.LabelFlips(0.1)),
         "LabelFlips needs labels that are classes"),
        (diagonal("square"), data(1), lnsim.SGD(0.01, lnsim.Dropout(0.1)),
         "Dropout needs hidden units, and a Diagonal has none"),
        (diagonal("difference"), data(1), lnsim.SGD(0.01, lnsim.Dropout(0.1)),
         "Dropout needs hidden units, and a Diagonal has none"),
        (deep((DIM, 2)), data(2), lnsim.SGD(0.01, lnsim.Dropout(0.1)),
         "Dropout needs hidden units, and a DeepLinear has none"),
        (two_layer(3), data(3), lnsim.SAM(0.01, 0.1, batch_size=0, micro_batch=4),
         "micro_batch must divide the batch of 9 samples, got 4"),
        (diagonal("square"), data(1), lnsim.Oscillation(0.01),
         "Oscillation trains the two-layer network with one output"),
        (two_layer(3), data(3), lnsim.Oscillation(0.01),
         "Oscillation trains the two-layer network with one output"),
        (diagonal("square"), data(1), lnsim.CustomDynamics(lambda v, X, y, t: v, memory=1),
         "memory must be 0 for a rule that does not train the two-layer network"),
        (relu(1, "relu"), data(1),
         lnsim.CustomDynamics(lambda W, A, X, y, t: (W, A), lnsim.GradientNoise(0.1)),
         "a CustomDynamics takes noise on labels alone, got GradientNoise"),
        (two_layer(3), data(3), lnsim.SGD(np.array([0.1, 0.2])), "lr has 2 values for 1 replicas"),
        (two_layer(3), data(3), lnsim.SGD(0.1, lnsim.GradientNoise(np.ones(3))),
         "sigma has 3 values for 1 replicas"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(model, given, dynamics, text):
    with says(text):
        run(given, model[0], dynamics, 1)


@pytest.mark.parametrize(
    "model", [two_layer(1), diagonal("square"), relu(1, "erf"), deep((DIM, 1))]
)
def test_a_ledger_is_for_the_scalar_network(model):
    with says("ledger is for the two-layer network with one output, squared loss"):
        run(data(1), model[0], ONE, 1, ledger=True)


def test_what_is_no_model():
    with says("network must be a Model, got ndarray", TypeError):
        run(data(1), normal(5, DIM), ONE, 1)
    with says("dynamics must be SGD, GD, SAM, ... of lnsim, got 3", TypeError):
        run(data(1), two_layer(1)[0], 3, 1)
