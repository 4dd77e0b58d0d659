"""Problems drawn by a seed, each with a test set of the same law.

The target Theta* and the means of classes are drawn from the stream "theta_star", the training
inputs and then the noise in their labels from "train", the test inputs from "test" (streams.py).
Test labels have no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.threads import one_blas_thread
from lnsim.models.base import orthonormal_columns
from lnsim.models.problem import LOSSES, Problem

VALUES = ("gaussian", "ones")
"""What the nonzero entries of a sparse target are."""


@one_blas_thread()
def gaussian_regression(
    samples: int,
    dim: int,
    seed: int = 0,
    *,
    outputs: int | None = None,
    theta_norm: float | None = None,
    noise: float = 0.0,
    test_samples: int = 1000,
) -> Problem:
    """The paper's data: x ~ N(0, I_d), y = <theta_star, x>, and a test set of the same law.

    theta_star ~ N(0, I_d), whose norm is about sqrt(d) (the paper leaves it open), rescaled to
    norm `theta_norm` where that is given.  With `outputs` = C theta_star : (C, d), with independent
    entries, and y = theta_star x : (n, C).  `noise` is the standard deviation of the Gaussian noise
    in every training label, drawn once.  Raises ValueError for values out of range.
    """
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    shape: tuple[int, ...] = (dim,)
    if outputs is not None:
        shape = (checks.integer("outputs", outputs, 1, checks.MOST_ENTRIES), dim)
    theta_star = streams.generator(seed, "theta_star").standard_normal(shape)
    theta_star = _of_norm(theta_star, theta_norm)
    return _regression(samples, theta_star, seed, test_samples, noise)


@one_blas_thread()
def low_rank_teacher(
    samples: int,
    dim: int,
    outputs: int,
    singular_values: Sequence[float],
    seed: int = 0,
    *,
    noise: float = 0.0,
    orthonormal: bool = False,
    test_samples: int = 1000,
) -> Problem:
    """y = Theta* x + noise, Theta* : (C, d) of these `singular_values`, x ~ N(0, I_d).

    The singular vectors are drawn uniformly.  `noise` is the standard deviation of the Gaussian
    noise in every training label, drawn once.  With `orthonormal` the training inputs have
    X^T X = n I, which needs n >= d.  Raises ValueError for values out of range, and for more
    singular values than min(C, d).
    """
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    outputs = checks.integer("outputs", outputs, 1, checks.MOST_ENTRIES)
    singular = checks.array("singular_values", singular_values, 1)
    if (singular < 0.0).any():
        raise ValueError(f"singular_values must be at least 0, got {singular.min():g}")
    if singular.size > min(outputs, dim):
        raise ValueError(
            f"singular_values must be at most {min(outputs, dim)} for {outputs} outputs and"
            f" {dim} inputs, got {singular.size}"
        )
    rng = streams.generator(seed, "theta_star")
    left, right = (orthonormal_columns(rng, size, singular.size) for size in (outputs, dim))
    theta_star = (left * singular) @ right.T
    return _regression(
        samples, theta_star, seed, test_samples, noise, orthonormal, "singular_values"
    )


@one_blas_thread()
def sparse_regression(
    samples: int,
    dim: int,
    nonzeros: int,
    seed: int = 0,
    *,
    values: str = "ones",
    theta_norm: float | None = None,
    noise: float = 0.0,
    test_samples: int = 1000,
) -> Problem:
    """y = <theta_star, x> + noise, x ~ N(0, I_d), the first `nonzeros` entries of theta_star not 0.

    `values`: "ones" (HaoChen et al. 2021), or "gaussian" for absolute values of N(0, 1)
    (Andriushchenko et al. 2022 with `theta_norm` = 1).  theta_star is rescaled to norm `theta_norm`
    where that is given.  `noise` is the standard deviation of the Gaussian noise in every training
    label, drawn once.  Raises ValueError for values out of range.
    """
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    nonzeros = checks.integer("nonzeros", nonzeros, 1, dim)
    checks.choice("values", values, VALUES)
    theta_star = np.zeros(dim)
    theta_star[:nonzeros] = 1.0
    if values == "gaussian":
        drawn = streams.generator(seed, "theta_star").standard_normal(nonzeros)
        theta_star[:nonzeros] = np.abs(drawn)
    return _regression(samples, _of_norm(theta_star, theta_norm), seed, test_samples, noise)


@one_blas_thread()
def gaussian_classes(
    samples: int,
    dim: int,
    classes: int,
    seed: int = 0,
    separation: float = 3.0,
    *,
    loss: str = "cross-entropy",
    test_samples: int = 1000,
) -> Problem:
    """Classes x ~ N(mu_k, I_d), sample i of class i mod `classes`, for the loss of this name.

    The means have norm `separation` / sqrt(2).  Where there are at most d classes they are
    orthogonal, so that any two are `separation` apart; else their directions are independent.  As
    they are equally long, the best classifier is linear without bias: the largest <mu_k, x>.

    Labels are class numbers under "cross-entropy", rows of an identity under "squared", and -1 and
    1 under "logistic", which is for two classes.  Raises ValueError for values out of range.
    """
    samples, test_samples = _counts(samples, test_samples)
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    classes = checks.integer("classes", classes, 2)
    checks.choice("loss", loss, LOSSES)
    if loss == "logistic" and classes != 2:
        raise ValueError(f"classes must be 2 under the logistic loss, got {classes}")
    distance = checks.real("separation", separation, least=0.0)
    rng = streams.generator(seed, "theta_star")
    if classes <= dim:
        directions = orthonormal_columns(rng, dim, classes).T
    else:
        directions = rng.standard_normal((classes, dim))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    means = directions * (distance / np.sqrt(2.0))
    labels_of = {
        "cross-entropy": np.arange(classes, dtype=np.float64),
        "squared": np.eye(classes),
        "logistic": np.array([-1.0, 1.0]),
    }[loss]
    arrays = []
    for purpose, count in (("train", samples), ("test", test_samples)):
        labels = np.arange(count) % classes
        noise = streams.generator(seed, purpose).standard_normal((count, dim))
        arrays += [means[labels] + noise, labels_of[labels]]
    X, y, X_test, y_test = arrays
    return Problem(X, y, X_test=X_test, y_test=y_test, loss=loss)


def _counts(samples: int, test_samples: int) -> tuple[int, int]:
    """The numbers of samples, after checking them."""
    return (
        checks.integer("samples", samples, 1, checks.MOST_ENTRIES),
        checks.integer("test_samples", test_samples, 1, checks.MOST_ENTRIES),
    )


def _of_norm(theta_star: FloatArray, theta_norm: float | None) -> FloatArray:
    """theta_star rescaled to norm `theta_norm`, or as it is for None."""
    if theta_norm is None:
        return theta_star
    norm = checks.real("theta_norm", theta_norm, above=0.0)
    return np.asarray(theta_star * (norm / np.linalg.norm(theta_star)))


def _regression(
    samples: int,
    theta_star: FloatArray,
    seed: int,
    test_samples: int,
    noise: float = 0.0,
    orthonormal: bool = False,
    sized_by: str = "theta_norm",
) -> Problem:
    """y = theta_star x + noise for theta_star : (d,) or (C, d), x ~ N(0, I_d).

    `sized_by`: the argument that a message names where the labels are too large.
    """
    samples, test_samples = _counts(samples, test_samples)
    dim = theta_star.shape[-1]
    deviation = checks.real("noise", noise, least=0.0)
    if orthonormal and samples < dim:
        raise ValueError(f"samples must be at least d = {dim} for X^T X = n I, got {samples}")
    rng = streams.generator(seed, "train")
    X = rng.standard_normal((samples, dim))
    if orthonormal:
        X = np.linalg.qr(X)[0] * np.sqrt(samples)
    X_test = streams.generator(seed, "test").standard_normal((test_samples, dim))
    with np.errstate(over="ignore", invalid="ignore"):
        y, y_test = X @ theta_star.T, X_test @ theta_star.T
        squares = np.array([np.vdot(y, y), np.vdot(y_test, y_test)])
    if not np.isfinite(squares).all():
        norm = math.hypot(*theta_star.ravel())
        raise ValueError(
            f"{sized_by} must be so small that squared labels are finite, got {norm:g}"
        )
    if deviation:
        y += deviation * rng.standard_normal(y.shape)
    return Problem(X, y, theta_star, X_test, y_test)
