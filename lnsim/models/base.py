"""What every model says of itself: its parameters, what it predicts, its symmetry.

A model is a frozen description of a network's weights.  While it trains, its parameters lie one
after another in a flat vector theta : (P,), in the order of `parameters`, the first layer first.
An engine has, by the name `kernel`, the two functions of a model that every dynamics is written on:
the prediction f : (C,) of a sample, and the pull-back J^T g of a derivative g = dl/df : (C,) of the
loss through J = df/dtheta.  Where gradients are autograd's, as in lnsim_torch, it has the first
alone.

`reduced` gives coordinates in which the same training is smaller, where the model has a symmetry.

`layers` gives the gradient of every sample as outer products, from which measures of the loss's
curvature are made (curvature.py).  It and `predict` take complex weights theta + i e v too, whose
results have e times the derivative along v as their imaginary part: they conjugate nothing.

To add a model, write a file here, a row in saved.py, its name in run/quantities.py, and its
functions in every engine that is to run it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.models.tall import Columns

M = TypeVar("M", bound="Model", covariant=True)


class Model(ABC):
    """A network's weights.  A subclass is a frozen dataclass with float64 arrays as fields."""

    kernel: ClassVar[str]
    """The name of its functions in the tables of the engines."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, FloatArray]:
        """The weights by name, in the order in which they lie in theta."""

    @abstractmethod
    def with_parameters(self, arrays: Sequence[FloatArray]) -> Self:
        """The same model with these weights, in the order of `parameters`, of any width.

        They are taken as they are, not checked: a network that diverges has them too.
        """

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The sizes that an engine's functions need to read theta."""

    @abstractmethod
    def predict(self, X: FloatArray) -> FloatArray:
        """f of every row of X : (n, d), shape (n, C)."""

    @abstractmethod
    def layers(self, X: FloatArray, g: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """The pull-back of g : (..., n, C) at the rows of X : (n, d), sample by sample.

        For every array of `parameters` a pair delta : (..., n, k), h : (n, l): the gradient of
        <g_i, f(x_i)> by it is delta_i h_i^T, in the shape of the array.
        """

    @property
    @abstractmethod
    def dim(self) -> int:
        """d, the input dimension."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """C, the number of outputs."""

    def residual_trace(self, X: FloatArray, g: FloatArray) -> float:
        """The trace of the second derivative of sum_i <g_i, f(x_i)>; 0 where f is linear in every
        array of parameters."""
        return 0.0

    def least_trace(self, gram: FloatArray) -> float:
        """The least Gauss-Newton trace of the squared loss among such models with this predictor.

        gram = X^T X / n : (d, d); NaN where no formula is known.  See lnsim/theory/flatness.py.
        """
        return float("nan")

    @property
    def balancedness(self) -> float:
        """The least delta for which the model is delta-balanced; NaN where that has no meaning.

        The largest |W_{l+1}^T W_{l+1} - W_l W_l^T|_F over the hidden layers l (Arora, Cohen,
        Golowich, Hu 2019, Definition 1).
        """
        return float("nan")

    @property
    def scalar(self) -> bool:
        """Whether it is the two-layer network whose second layer has no axis for outputs."""
        return False

    @property
    def hidden(self) -> int:
        """The number of hidden units of all layers, which dropout drops."""
        return 0

    @property
    def predictor(self) -> FloatArray | None:
        """Theta : (C, d) with f(x) = Theta x, or None for a model that is not linear in x."""
        return None

    @property
    def neurons(self) -> FloatArray | None:
        """The input weights of the first layer's neurons, (m, d); None for a model without any."""
        return None

    def _with(self, **changes: object) -> Self:
        """A copy with other fields, which are not checked."""
        copy = object.__new__(type(self))
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(copy, field.name, changes.get(field.name, getattr(self, field.name)))
        return copy

    def about(self) -> dict[str, object]:
        """What a file must say of the model besides its weights."""
        return {"model": self.kernel}

    def reduced(self, X: FloatArray, *, hidden: bool, inputs: bool) -> Coordinates[Self]:
        """Coordinates for training on the inputs X : (n, d).

        `hidden`, `inputs`: whether the dynamics commutes with rotations of the hidden layers and
        with those of the inputs.
        """
        return Coordinates(self, X)

    @property
    def flat(self) -> FloatArray:
        """The parameters one after another, theta : (P,)."""
        return np.concatenate([array.ravel() for array in self.parameters.values()])

    def pull_back(self, X: FloatArray, g: FloatArray) -> FloatArray:
        """The gradient of sum_i <g_i, f(x_i)> by the parameters, (P,), for g : (n, C)."""
        return np.concatenate([(delta.T @ h).ravel() for delta, h in self.layers(X, g)])

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(array.size for array in self.parameters.values())

    @property
    def first_layer_size(self) -> int:
        """The number of leading parameters that are the first layer's."""
        return next(iter(self.parameters.values())).size

    def from_flat(self, theta: FloatArray) -> Self:
        """The same model with the parameters theta : (P,)."""
        arrays = self.parameters.values()
        ends = np.cumsum([array.size for array in arrays])
        parts = np.split(theta, ends[:-1])
        return self.with_parameters(
            [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
        )


class HiddenLayer(Model):
    """A model whose first layer W : (m, d) has m neurons, and whose second goes out of them."""

    W: FloatArray

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.W.shape[1]

    @property
    def hidden(self) -> int:
        """m, the number of hidden neurons."""
        return len(self.W)

    @property
    def neurons(self) -> FloatArray:
        """W, shape (m, d)."""
        return self.W


Basis = FloatArray | Columns | None
"""A matrix with orthonormal columns; None is the identity."""


@dataclass(frozen=True)
class Coordinates(Generic[M]):
    """What stands for a model while it trains, and the way back.

    model: the (reduced) model at the start.  X : (n, r) its training inputs.
    bases: for every parameter of the model the pair of matrices (L, R), either of them None, with
    full = L reduced R^T for what training moves; empty where nothing is reduced.
    rest: for every parameter what no training input reaches, or None; it only shrinks.
    sides: the sides that are reduced, "hidden" and "inputs".
    """

    model: M
    X: FloatArray
    bases: tuple[tuple[Basis, Basis], ...] = ()
    rest: tuple[FloatArray | None, ...] = ()
    sides: tuple[str, ...] = ()

    def lift(self, theta: FloatArray, scale: float = 1.0) -> M:
        """The full model of the reduced parameters theta : (P,); `scale` multiplies the rest."""
        model = self.model.from_flat(theta)
        if not self.bases:
            return model
        arrays = []
        for array, (left, right), rest in zip(
            model.parameters.values(), self.bases, self.rest, strict=True
        ):
            full = array if left is None else left @ array
            full = full if right is None else full @ right.T
            arrays.append(full if rest is None else full + scale * rest)
        return self.model.with_parameters(arrays)


def span(X: FloatArray) -> FloatArray | None:
    """Orthonormal basis (d, r) of the rows of X : (n, d), or None where they span everything."""
    _, singular, Vt = np.linalg.svd(X, full_matrices=False)
    threshold = singular[0] * max(X.shape) * np.finfo(np.float64).eps
    rank = max(1, int(np.count_nonzero(singular > threshold)))
    return None if rank == X.shape[1] else np.ascontiguousarray(Vt[:rank].T)


def orthonormal_columns(rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
    """A uniformly drawn matrix (rows, columns) with orthonormal columns."""
    Q, R = np.linalg.qr(rng.standard_normal((rows, columns)))
    return np.asarray(Q * np.sign(np.diagonal(R)))
