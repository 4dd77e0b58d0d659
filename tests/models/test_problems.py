"""Problems drawn by a seed: their laws, their streams, and what they refuse."""

import numpy as np
import pytest

import lnsim
from lnsim import streams

pytestmark = pytest.mark.small


def test_one_output_has_the_numbers_that_it_always_had():
    problem = lnsim.gaussian_regression(30, 5, seed=3, test_samples=7)
    theta_star = streams.generator(3, "theta_star").standard_normal(5)
    X = streams.generator(3, "train").standard_normal((30, 5))
    X_test = streams.generator(3, "test").standard_normal((7, 5))
    np.testing.assert_array_equal(problem.theta_star, theta_star)
    np.testing.assert_array_equal(problem.X, X)
    np.testing.assert_array_equal(problem.y, X @ theta_star)
    np.testing.assert_array_equal(problem.X_test, X_test)
    np.testing.assert_array_equal(problem.y_test, X_test @ theta_star)


def test_several_outputs_are_independent_targets_on_the_same_inputs():
    one, several = (lnsim.gaussian_regression(30, 5, seed=3, outputs=C) for C in (None, 4))
    assert several.theta_star.shape == (4, 5) and several.y.shape == (30, 4)
    np.testing.assert_array_equal(several.X, one.X)
    np.testing.assert_array_equal(several.theta_star[0], one.theta_star)
    np.testing.assert_allclose(several.y, several.X @ several.theta_star.T, rtol=1e-12)
    scaled = lnsim.gaussian_regression(30, 5, outputs=4, theta_norm=2.0)
    assert np.linalg.norm(scaled.theta_star) == pytest.approx(2.0, rel=1e-14)


def test_noise_in_the_data_is_in_the_training_labels_alone():
    clean, noisy = (lnsim.sparse_regression(4000, 6, 2, noise=s) for s in (0.0, 0.5))
    np.testing.assert_array_equal(noisy.X, clean.X)
    np.testing.assert_array_equal(noisy.y_test, clean.y_test)
    added = noisy.y - clean.y
    assert added.std() == pytest.approx(0.5, rel=0.05) and abs(added.mean()) < 0.03
    several = lnsim.gaussian_regression(2000, 3, outputs=2, noise=0.5)
    residual = several.y - several.X @ several.theta_star.T
    np.testing.assert_allclose(np.cov(residual.T), 0.25 * np.eye(2), atol=0.03)


def test_a_low_rank_teacher_has_its_singular_values_and_whitened_inputs():
    problem = lnsim.low_rank_teacher(64, 12, 8, [1.0, 0.7, 0.5], seed=1, orthonormal=True)
    assert problem.theta_star.shape == (8, 12)
    found = np.linalg.svd(problem.theta_star, compute_uv=False)
    np.testing.assert_allclose(found, [1.0, 0.7, 0.5, *[0.0] * 5], atol=1e-14)
    np.testing.assert_allclose(problem.X.T @ problem.X, 64 * np.eye(12), atol=1e-11)
    np.testing.assert_allclose(problem.y, problem.X @ problem.theta_star.T, rtol=1e-12)
    plain = lnsim.low_rank_teacher(64, 12, 8, [1.0])
    assert np.abs(plain.X.T @ plain.X - 64 * np.eye(12)).max() > 1.0


def test_a_sparse_target():
    ones = lnsim.sparse_regression(20, 9, 3)
    np.testing.assert_array_equal(ones.theta_star, [1.0] * 3 + [0.0] * 6)
    drawn = lnsim.sparse_regression(20, 9, 3, values="gaussian", theta_norm=1.0).theta_star
    assert (drawn[:3] > 0.0).all() and not drawn[3:].any()
    assert np.linalg.norm(drawn) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize(
    ("loss", "classes"), [("cross-entropy", 4), ("squared", 4), ("logistic", 2)]
)
def test_classes_are_so_far_apart_and_the_longest_projection_is_the_best_guess(loss, classes):
    problem = lnsim.gaussian_classes(8000, 6, classes, 2, 3.0, loss=loss, test_samples=500)
    assert problem.classes == classes and problem.loss == loss
    assert (problem.theta_star is None) == (loss != "squared")
    labels = problem.labels(problem.y)
    np.testing.assert_array_equal(np.bincount(labels), [8000 // classes] * classes)
    means = np.stack([problem.X[labels == c].mean(axis=0) for c in range(classes)])
    gaps = np.linalg.norm(means[:, None] - means, axis=2)[np.triu_indices(classes, 1)]
    np.testing.assert_allclose(gaps, 3.0, atol=0.15)
    f = problem.X @ (means.T if classes > 2 or loss != "logistic" else (means[1:] - means[:1]).T)
    # Two classes 3 apart are told apart with probability Phi(3/2) = 0.933; four less often.
    share = problem.correct(f, problem.y).mean()
    assert share == pytest.approx(0.933, abs=0.01) if classes == 2 else 0.8 < share < 0.933


def test_more_classes_than_inputs():
    problem = lnsim.gaussian_classes(3000, 2, 3, separation=50.0)
    means = np.stack([problem.X[problem.y == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 50.0 / np.sqrt(2.0), rtol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lnsim.gaussian_regression(5, 3, outputs=0), "outputs must be at least 1, got 0"),
        (lambda: lnsim.low_rank_teacher(5, 3, 2, [1.0] * 3), "at most 2 for 2 outputs"),
        (lambda: lnsim.low_rank_teacher(5, 3, 2, [-1.0]), "singular_values must be at least 0"),
        (lambda: lnsim.low_rank_teacher(2, 3, 2, [1.0], orthonormal=True), "samples must be at"),
        (lambda: lnsim.sparse_regression(5, 3, 4), "nonzeros must be at most 3, got 4"),
        (lambda: lnsim.sparse_regression(5, 3, 1, values="all"), "values must be one of gaussian"),
        (lambda: lnsim.sparse_regression(5, 3, 1, noise=-1.0), "noise must be finite"),
        (lambda: lnsim.gaussian_classes(5, 3, 1), "classes must be at least 2, got 1"),
        (lambda: lnsim.gaussian_classes(5, 3, 3, loss="logistic"), "classes must be 2 under"),
        (lambda: lnsim.gaussian_classes(5, 3, 3, separation=-1.0), "separation must be finite"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
