"""Problems: losses against SciPy, labels and classes, the interpolator, and what is refused."""

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

import lnsim

pytestmark = pytest.mark.small

X = np.random.default_rng(5).standard_normal((7, 3))
CLASSES = np.array([0, 2, 1, 1, 0, 3, 2])
SIGNS = np.array([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
LARGE = 1e4
"""A logit whose exponential is no float64."""


@pytest.fixture
def rng():
    return np.random.default_rng(6)


def with_loss(loss):
    y = {"squared": X @ np.ones((3, 2)), "logistic": SIGNS, "cross-entropy": CLASSES}[loss]
    return lnsim.Problem(X, y, loss=loss)


def test_squared_loss(rng):
    problem = with_loss("squared")
    f = rng.standard_normal((7, 2))
    expected = [
        sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 2
        for rows in zip(f, problem.y, strict=True)
    ]
    np.testing.assert_allclose(problem.losses(f, problem.y), expected, rtol=1e-14)
    scalar = lnsim.Problem(X, SIGNS)
    np.testing.assert_allclose(scalar.losses(f[:, :1], SIGNS), (f[:, 0] - SIGNS) ** 2 / 2)


@pytest.mark.parametrize("scale", [1.0, 30.0, LARGE])
def test_logistic_loss_is_stable(scale, rng):
    problem = with_loss("logistic")
    f = scale * rng.standard_normal((7, 1))
    z = -SIGNS * f[:, 0]
    expected = np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))
    np.testing.assert_allclose(problem.losses(f, SIGNS), expected, rtol=1e-14)
    # Where exp(-y f) is far below 1, log(1 + exp(-y f)) is exp(-y f), not 0.
    assert problem.losses(np.full((1, 1), 40.0), np.ones(1)) == pytest.approx(np.exp(-40.0))


@pytest.mark.parametrize("scale", [1.0, 30.0, LARGE])
def test_cross_entropy_is_stable(scale, rng):
    problem = with_loss("cross-entropy")
    f = scale * rng.standard_normal((7, 4)) + LARGE
    losses = problem.losses(f, problem.y)
    expected = -log_softmax(f, axis=1)[np.arange(7), CLASSES]
    np.testing.assert_allclose(losses, expected, rtol=1e-13, atol=1e-11)
    np.testing.assert_allclose(
        losses, logsumexp(f, axis=1) - f[np.arange(7), CLASSES], rtol=1e-13, atol=1e-11
    )


def test_cross_entropy_of_two_classes_is_the_logistic_loss_of_the_difference(rng):
    f = rng.standard_normal((7, 2))
    classes = (SIGNS > 0).astype(int)
    softmax = lnsim.Problem(X, classes, loss="cross-entropy").losses(f, classes.astype(float))
    logistic = with_loss("logistic").losses(f[:, 1:] - f[:, :1], SIGNS)
    np.testing.assert_allclose(softmax, logistic, rtol=1e-13)


@pytest.mark.parametrize("loss", ["squared", "logistic", "cross-entropy"])
def test_leading_axes_of_predictions_are_kept(loss, rng):
    problem = with_loss(loss)
    f = rng.standard_normal((2, 5, 7, problem.outputs))
    losses = problem.losses(f, problem.y)
    assert losses.shape == (2, 5, 7)
    np.testing.assert_array_equal(losses[1, 3], problem.losses(f[1, 3], problem.y))
    if problem.classes:
        correct = problem.correct(f, problem.y)
        assert correct.shape == (2, 5, 7)
        np.testing.assert_array_equal(correct[1, 3], problem.correct(f[1, 3], problem.y))


ONE_HOT = np.eye(4)[CLASSES]


@pytest.mark.parametrize(
    ("y", "loss", "classes", "outputs", "labels"),
    [
        (CLASSES, "cross-entropy", 4, 4, CLASSES),
        (np.zeros(7), "cross-entropy", 2, 2, np.zeros(7)),
        (SIGNS, "logistic", 2, 1, SIGNS > 0),
        ((SIGNS > 0).astype(float), "logistic", 2, 1, SIGNS > 0),
        (np.ones(7), "logistic", 2, 1, np.ones(7)),
        (SIGNS, "squared", 2, 1, SIGNS > 0),
        (ONE_HOT, "squared", 4, 4, CLASSES),
        (2 * SIGNS, "squared", None, 1, None),
        (2 * ONE_HOT, "squared", None, 4, None),
        (ONE_HOT + np.eye(4)[0], "squared", None, 4, None),
        (0 * ONE_HOT, "squared", None, 4, None),
        # One column is what it is without its axis.
        (SIGNS[:, None], "squared", 2, 1, (SIGNS > 0).astype(int)),
        (np.ones((7, 1)), "squared", 2, 1, np.ones(7, dtype=int)),
        (np.zeros((7, 1)), "squared", None, 1, None),
    ],
)
def test_classes_outputs_and_labels(y, loss, classes, outputs, labels):
    problem = lnsim.Problem(X, y, loss=loss)
    assert (problem.classes, problem.outputs) == (classes, outputs)
    if labels is not None:
        np.testing.assert_array_equal(problem.labels(problem.y), labels)
    else:
        with pytest.raises(ValueError, match="y must be class labels, got squared labels"):
            problem.class_targets  # noqa: B018


def test_a_class_of_the_test_labels_alone_counts():
    problem = lnsim.Problem(X, CLASSES, None, X, CLASSES + 2, loss="cross-entropy")
    assert problem.classes == problem.outputs == 6


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_correct_by_sign(loss):
    problem = lnsim.Problem(X, SIGNS, loss=loss)
    f = (np.array([1, 1, -1, -1, 1, -1, -1]) * 0.01)[:, None]
    expected = [True, False, True, False, True, True, False]
    assert problem.correct(f, SIGNS).tolist() == expected


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_correct_by_the_largest_output(loss):
    problem = lnsim.Problem(X, ONE_HOT if loss == "squared" else CLASSES, loss=loss)
    f = np.eye(4)[[0, 2, 1, 0, 3, 3, 2]] + 5.0
    assert problem.correct(f, problem.y).tolist() == [True, True, True, False, False, True, True]


def test_targets():
    np.testing.assert_array_equal(
        with_loss("cross-entropy").targets(CLASSES.astype(float)), ONE_HOT
    )
    np.testing.assert_array_equal(with_loss("logistic").targets(SIGNS), SIGNS[:, None])
    np.testing.assert_array_equal(with_loss("logistic").class_targets, [[-1.0], [1.0]])


@pytest.mark.parametrize("dim", [3, 12])
def test_theta_star_is_the_least_squares_solution_of_smallest_norm(dim, rng):
    inputs = rng.standard_normal((7, dim))
    y = rng.standard_normal((7, 2))
    problem = lnsim.Problem(inputs, y)
    assert problem.theta_star.shape == (2, dim)
    np.testing.assert_allclose(problem.theta_star, (np.linalg.pinv(inputs) @ y).T, atol=1e-12)
    for column in range(2):
        alone = lnsim.Problem(inputs, y[:, column])
        assert alone.theta_star.shape == (dim,)
        np.testing.assert_allclose(problem.theta_star[column], alone.theta_star, atol=1e-12)


def test_theta_star_is_left_out_of_other_losses_and_kept_where_given(rng):
    assert with_loss("logistic").theta_star is None
    assert with_loss("cross-entropy").theta_star is None
    given = rng.standard_normal((4, 3))
    problem = lnsim.Problem(X, CLASSES, given, loss="cross-entropy")
    np.testing.assert_array_equal(problem.theta_star, given)


@pytest.mark.parametrize(
    ("arguments", "loss", "error", "message"),
    [
        ((X, SIGNS), "hinge", ValueError, "loss must be one of .*, got 'hinge'"),
        ((X[0], SIGNS), "squared", ValueError, "X must have 2 axes"),
        ((X, SIGNS[1:]), "squared", ValueError, r"y must have shape \(7,\) \(X has 7 rows\)"),
        ((X, ONE_HOT[1:]), "squared", ValueError, r"y must have shape \(7, 4\)"),
        ((X, np.full(7, np.nan)), "squared", ValueError, "y must be finite"),
        ((X, 1j * SIGNS), "squared", TypeError, "y must be an array of real numbers"),
        ((X, 2 * SIGNS), "logistic", ValueError, "y must be of -1 and 1, .* got 2"),
        ((X, SIGNS * [0, 1, 1, 1, 1, 1, 1]), "logistic", ValueError, "got -1"),
        ((X, SIGNS[:, None]), "logistic", ValueError, "y must have 1 axes"),
        ((X, ONE_HOT), "cross-entropy", ValueError, "y must have 1 axes"),
        ((X, CLASSES - 1), "cross-entropy", ValueError, "y must be class numbers .*, got -1"),
        ((X, CLASSES / 2), "cross-entropy", ValueError, "y must be class numbers .*, got 0.5"),
        ((X, CLASSES * 10**6), "cross-entropy", ValueError, "y must be classes below 100,000"),
        ((X, SIGNS, np.ones(4)), "squared", ValueError, r"theta_star must have shape \(3,\)"),
        ((X, ONE_HOT, np.ones(3)), "squared", ValueError, r"theta_star .* \(4, 3\)"),
        ((X, CLASSES, np.ones((3, 3))), "cross-entropy", ValueError, "there are 4 outputs"),
        ((X, SIGNS, None, X), "squared", ValueError, "X_test and y_test must be given together"),
        ((X, SIGNS, None, X[:, 1:], SIGNS), "squared", ValueError, "X_test must have shape"),
        ((X, SIGNS, None, X, SIGNS[1:]), "squared", ValueError, "y_test must have shape"),
        ((X, ONE_HOT, None, X, ONE_HOT[:, 1:]), "squared", ValueError, "y_test must have 4 col"),
        ((X, ONE_HOT, None, X, SIGNS), "squared", ValueError, "y_test must have 4 columns as y"),
        ((X, SIGNS, None, X, 3 * SIGNS), "logistic", ValueError, "y_test must be of -1 and 1"),
    ],
)
def test_refused(arguments, loss, error, message):
    with pytest.raises(error, match=message):
        lnsim.Problem(*arguments, loss=loss)
