"""Regression problems: what the network is to learn (paper.md, "Model and training")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.threads import one_blas_thread

MOST_CLASSES = 100_000

LOSSES = ("squared", "logistic", "cross-entropy")


@dataclass(frozen=True)
class Problem:
    """Training data, test data and the interpolator that alignment is measured against.

    X : (n, d) float64; X_test : (n_test, d), y_test as y.  Labels are clean: noise belongs to the
    dynamics.  `loss`, of a prediction f : (C,), means over samples:

    "squared": 1/2 |f - y|^2, y : (n,), or (n, C) for C outputs.
    "logistic": log(1 + exp(-y f)), y : (n,) of -1 and 1, or of the class numbers 0 and 1.
    "cross-entropy": minus the log of the softmax of f at y, y : (n,) of class numbers 0 ... C - 1.

    theta_star : (d,), or (C, d) for a y : (n, C).  Left out, it is the least-squares solution of
    smallest norm under the squared loss; under the others there is none, and no alignment.
    Without test data there is no test loss.

    Raises TypeError or ValueError for wrong types, shapes that do not fit, NaN or infinity, labels
    that are no class.
    """

    X: FloatArray
    y: FloatArray
    theta_star: FloatArray | None = None
    X_test: FloatArray | None = None
    y_test: FloatArray | None = None
    loss: str = "squared"

    def __post_init__(self) -> None:
        checks.choice("loss", self.loss, LOSSES)
        X = checks.array("X", self.X, 2)
        y = self._checked("y", self.y, X, "X")
        dim = X.shape[1]
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", y)
        theta_star = self.theta_star
        if theta_star is not None:
            theta_star = checks.array(
                "theta_star", theta_star, 2 if np.ndim(theta_star) == 2 else 1
            )
            expected: tuple[int, ...] = (dim,)
            because = f"X has {dim} columns"
            if y.ndim == 2 or theta_star.ndim == 2:
                expected = (self.outputs, dim)
                because += f" and there are {self.outputs} outputs"
            checks.shape("theta_star", theta_star, expected, because)
        elif self.loss == "squared":
            with one_blas_thread():
                theta_star = np.ascontiguousarray(np.linalg.lstsq(X, y, rcond=None)[0].T)
        object.__setattr__(self, "theta_star", theta_star)
        if (self.X_test is None) != (self.y_test is None):
            raise ValueError("X_test and y_test must be given together, or neither")
        if self.X_test is not None:
            X_test = checks.array("X_test", self.X_test, 2)
            checks.shape("X_test", X_test, (len(X_test), dim), f"X has {dim} columns")
            y_test = self._checked("y_test", self.y_test, X_test, "X_test")
            if y_test.shape[1:] != y.shape[1:]:
                raise ValueError(
                    f"y_test must have {self.outputs} columns as y, got {y_test.shape}"
                )
            object.__setattr__(self, "X_test", X_test)
            object.__setattr__(self, "y_test", y_test)

    def _checked(self, name: str, values: Any, X: FloatArray, of: str) -> FloatArray:
        """Labels as float64, after checking that the loss can take them."""
        several = self.loss == "squared" and np.ndim(values) == 2
        y = checks.array(name, values, 2 if several else 1)
        checks.shape(name, y, (len(X), *y.shape[1:]), f"{of} has {len(X)} rows")
        if self.loss == "logistic":
            allowed = (0.0, 1.0) if np.any(y == 0.0) else (-1.0, 1.0)
            if not np.isin(y, allowed).all():
                wrong = y[~np.isin(y, allowed)][0]
                raise ValueError(
                    f"{name} must be of -1 and 1, or of the classes 0 and 1, got {wrong:g}"
                )
            if allowed[0] == 0.0:
                y = 2.0 * y - 1.0
        if self.loss == "cross-entropy":
            wrong = y[(y != np.floor(y)) | (y < 0.0)]
            if wrong.size:
                raise ValueError(f"{name} must be class numbers 0, 1, 2, ..., got {wrong[0]:g}")
            if y.max() >= MOST_CLASSES:
                raise ValueError(f"{name} must be classes below {MOST_CLASSES:,}, got {y.max():g}")
        return y

    def only(self, i: int) -> Problem:
        """The problem of training sample i alone, without test data."""
        X, y = self.X[i : i + 1], self.y[i : i + 1]
        return Problem(X, y, self.theta_star, loss=self.loss)

    @cached_property
    def classes(self) -> int | None:
        """The number of classes, or None where labels are no classes.

        Under the squared loss labels of one output are classes if all are -1 or 1, those of more if
        they are rows of an identity.
        """
        if self.loss == "cross-entropy":
            last = self.y if self.y_test is None else np.append(self.y, self.y_test)
            return max(2, int(last.max()) + 1)
        if self.outputs == 1:
            return 2 if np.isin(self.y, (-1.0, 1.0)).all() else None
        one_hot = np.isin(self.y, (0.0, 1.0)).all() and (self.y.sum(axis=1) == 1.0).all()
        return self.y.shape[1] if one_hot else None

    def labels(self, y: FloatArray) -> NDArray[np.int64]:
        """The class numbers, (n,), of labels `y` as this problem has them."""
        if self.loss == "cross-entropy":
            return y.astype(np.int64)
        return (y.ravel() > 0.0).astype(np.int64) if self.outputs == 1 else y.argmax(axis=1)

    @cached_property
    def class_targets(self) -> FloatArray:
        """What the loss compares with for every class, shape (classes, C)."""
        classes = self.classes
        if classes is None:
            raise ValueError(f"y must be class labels, got {self.loss} labels such as {self.y[0]}")
        return np.array([[-1.0], [1.0]]) if self.outputs == 1 else np.eye(classes)

    def targets(self, y: FloatArray) -> FloatArray:
        """What the loss compares f with, (n, C), of labels `y` as this problem has them."""
        if self.loss == "cross-entropy":
            return self.class_targets[self.labels(y)]
        return y.reshape(len(y), -1)

    def losses(self, f: FloatArray, y: FloatArray) -> FloatArray:
        """The loss of every prediction, f : (..., n, C) for the labels `y`, shape (..., n)."""
        if self.loss == "logistic":
            return np.logaddexp(0.0, -y * f[..., 0])
        if self.loss == "squared":
            return 0.5 * np.square(f - self.targets(y)).sum(axis=-1)
        top = f.max(axis=-1, keepdims=True)
        logs = top[..., 0] + np.log(np.exp(f - top).sum(axis=-1))
        return logs - np.take_along_axis(
            f, np.broadcast_to(self.labels(y)[:, None], (*f.shape[:-1], 1)), axis=-1
        )[..., 0]  # fmt: skip

    def slopes(self, f: Any) -> Any:
        """The derivative of the loss by every prediction f : (n, C) of the training inputs, (n, C).

        f may be complex, f + i e df: the imaginary part is then e times the derivative along df.
        Under cross-entropy outputs without a class count as those of classes that never occur.
        """
        if self.loss == "squared":
            return f - self.targets(self.y)
        if self.loss == "logistic":
            return -self.y[:, None] * _sigmoid(-self.y[:, None] * f)
        shares = np.exp(f - f.real.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(f)), self.labels(self.y)] -= 1.0
        return shares

    def curvature_roots(self, f: FloatArray) -> FloatArray:
        """Vectors b_k with sum_k b_k b_k^T the second derivative of the loss by f, (C, n, C).

        f : (n, C), on the training inputs.  For softmax shares p it is diag(p) - p p^T =
        sum_k p_k (e_k - p)(e_k - p)^T.
        """
        outputs = f.shape[1]
        units = np.repeat(np.eye(outputs)[:, None], len(f), axis=1)
        if self.loss == "squared":
            return units
        if self.loss == "logistic":
            return np.sqrt(_sigmoid(f) * _sigmoid(-f))[None]
        shares = np.exp(f - f.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.asarray(np.sqrt(shares.T)[:, :, None] * (units - shares))

    def correct(self, f: FloatArray, y: FloatArray) -> NDArray[np.bool_]:
        """Whether every prediction, f : (..., n, C), has the class of its label, shape (..., n)."""
        predicted = (f[..., 0] > 0.0).astype(np.int64) if self.outputs == 1 else f.argmax(axis=-1)
        return np.asarray(predicted == self.labels(y))

    @property
    def outputs(self) -> int:
        """C, the number of outputs that the loss compares."""
        if self.loss == "cross-entropy":
            classes = self.classes
            assert classes is not None
            return classes
        return 1 if self.y.ndim == 1 else self.y.shape[1]

    @cached_property
    def gram(self) -> FloatArray:
        """X^T X / n, shape (d, d)."""
        return np.ascontiguousarray(self.X.T @ self.X) / self.samples

    @cached_property
    def moment(self) -> FloatArray:
        """X^T y / n, shape (d,)."""
        return self.X.T @ self.y / self.samples

    @cached_property
    def square(self) -> float:
        """y^T y / n."""
        return float(self.y @ self.y) / self.samples

    @property
    def samples(self) -> int:
        """n, the number of training samples."""
        return self.X.shape[0]

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.X.shape[1]


def _sigmoid(t: Any) -> Any:
    """1 / (1 + exp(-t)), of complex t too, without overflow."""
    small = np.exp(np.where(t.real > 0.0, -t, t))
    return np.where(t.real > 0.0, 1.0, small) / (1.0 + small)
