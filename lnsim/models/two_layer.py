"""The two-layer linear network f(x) = A W x, A = a^T for one output, and its initialisations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates, HiddenLayer, orthonormal_columns, span
from lnsim.models.tall import thin_qr
from lnsim.theory import flatness


@dataclass(frozen=True, init=False)
class Network(HiddenLayer):
    """First layer W : (m, d), neuron i is row i; second layer a : (m,), or (C, m) for C outputs.

    The second layer may be called `A`.  Raises TypeError or ValueError for wrong types, shapes that
    do not fit, NaN or infinity.
    """

    W: FloatArray
    a: FloatArray

    kernel: ClassVar = "two-layer"

    def __init__(
        self, W: FloatArray, a: FloatArray | None = None, *, A: FloatArray | None = None
    ) -> None:
        if (a is None) == (A is None):
            raise TypeError("a Network takes its second layer once, as a or as A")
        W = checks.array("W", W, 2)
        second = a if A is None else A
        a = checks.array("a", second, 2 if np.ndim(second) == 2 else 1)  # type: ignore[arg-type]
        checks.shape("a", a, (*a.shape[:-1], len(W)), f"W has {len(W)} rows")
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "a", a)

    @property
    def A(self) -> FloatArray:
        """The second layer with its outputs in front, shape (C, m)."""
        return np.atleast_2d(self.a)

    @property
    def width(self) -> int:
        """m, the number of hidden neurons."""
        return self.W.shape[0]

    @property
    def scalar(self) -> bool:
        """Whether a : (m,)."""
        return self.a.ndim == 1

    @property
    def outputs(self) -> int:
        """C, the number of outputs."""
        return len(self.A)

    @property
    def theta(self) -> FloatArray:
        """The effective predictor W^T a, shape (d,); A W, shape (C, d), for an A : (C, m)."""
        return self.W.T @ self.a if self.a.ndim == 1 else self.a @ self.W

    @property
    def predictor(self) -> FloatArray:
        """A W, shape (C, d)."""
        return self.A @ self.W

    @property
    def parameters(self) -> dict[str, FloatArray]:
        """W and a."""
        return {"W": self.W, "a": self.a}

    def with_parameters(self, arrays: Sequence[FloatArray]) -> Network:
        """See Model."""
        W, a = arrays
        return self._with(W=W, a=a)

    def shape(self) -> tuple[int, ...]:
        """d, m, C."""
        return (self.dim, self.width, self.outputs)

    def predict(self, X: FloatArray) -> FloatArray:
        """See Model."""
        return X @ self.predictor.T

    def layers(self, X: FloatArray, g: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """See Model."""
        return [(g @ self.A, X), (g, X @ self.W.T)]

    def least_trace(self, gram: FloatArray) -> float:
        """See Model."""
        return float(flatness.least_trace(self.predictor, gram))

    @property
    def balancedness(self) -> float:
        """|A^T A - W W^T|_F."""
        return float(flatness.imbalance(self.W, self.A))

    def reduced(self, X: FloatArray, *, hidden: bool, inputs: bool) -> Coordinates[Network]:
        """See Model and reduction.py: M = [W | A^T] = Q R, and W in the span of the inputs."""
        W, A = self.W, self.A
        V, rest, Q = span(X) if inputs else None, None, None
        if V is not None:
            trained = W @ V
            rest = trained @ V.T
            np.subtract(W, rest, out=rest)
            W, X = trained, X @ V
        width, rank = W.shape
        if hidden and width > rank + len(A):
            Q, R = thin_qr(W, A)
            W, A = R[:, :rank], R[:, rank:].T
        sides = {"hidden": Q, "inputs": V}
        return Coordinates(
            Network(W, A if self.a.ndim == 2 else A[0]), X, ((Q, V), (None, Q)), (rest, None),
            tuple(side for side, basis in sides.items() if basis is not None),
        )  # fmt: skip


def ntk_init(
    width: int,
    dim: int,
    seed: int = 0,
    *,
    outputs: int | None = None,
    start: str = "ntk",
    scale: float = 1.0,
    balance: float = 0.0,
) -> Network:
    """A network at its start: W_ij ~ N(0, 1/d), a_i ~ N(0, 1/m), independent (NTK).

    Without `outputs` a : (m,); with it (C, m).  All weights are multiplied by `scale`.  `start`:

    "ntk": as above, lazy as m grows.
    "mean-field": a_i ~ N(0, 1/m^2), so that f = (1/m) sum_i ... (learning rates grow with m).
    "small": NTK times 0.01, rich.
    "balanced": W W^T + `balance` I = A^T A, singular values of W of 1 (Braun et al. 2022; needs
    balance >= -1, and m <= d and m <= C where balance is not 0).
    "unbalanced": every neuron has |A_i|^2 - |w_i|^2 = `balance` (Kunin et al. 2024).

    These hold before the weights are multiplied: with `scale` = s the balance is s^2 `balance`.

    Raises ValueError for sizes out of range, and a start that the sizes do not have.
    """
    width = checks.integer("width", width, 1, checks.MOST_ENTRIES)
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    checks.choice("start", start, STARTS)
    C = 1 if outputs is None else checks.integer("outputs", outputs, 1, checks.MOST_ENTRIES)
    balance = checks.number("balance", balance)
    if balance != 0.0 and start not in ("balanced", "unbalanced"):
        raise ValueError(f"balance must be 0 for the start {start!r}, got {balance:g}")
    scale = checks.number("scale", scale)
    rng = streams.generator(seed, "init")
    W, A = rng.standard_normal((width, dim)), rng.standard_normal((C, width))
    W /= np.sqrt(dim)  # in place: they are most of the memory
    A /= np.sqrt(width)
    if start == "mean-field":
        A /= np.sqrt(width)
    elif start == "small":
        W *= 0.01
        A *= 0.01
    elif start == "balanced":
        W, A = _balanced(rng, width, dim, C, balance)
    elif start == "unbalanced":
        squares = np.einsum("md,md->m", W, W) + balance
        if (squares < 0.0).any():
            raise ValueError(
                f"balance must be at least {-np.min(squares - balance):g}, minus the least |w_i|^2,"
                f" got {balance:g}"
            )
        A *= np.sqrt(squares) / np.linalg.norm(A, axis=0)
    W *= scale
    A *= scale
    return Network(W, A[0] if outputs is None else A)


STARTS = ("ntk", "mean-field", "small", "balanced", "unbalanced")
"""The starts of `ntk_init`."""


def _balanced(
    rng: np.random.Generator, width: int, dim: int, outputs: int, balance: float
) -> tuple[FloatArray, FloatArray]:
    """W = O U^T and A = sqrt(1 + balance) V O^T with independent, uniformly drawn factors.

    O : (m, k), U : (d, k), V : (C, k), k = min(m, d, C); A^T A - W W^T = balance O O^T.
    """
    rank = min(width, dim, outputs)
    if balance != 0.0 and rank < width:
        raise ValueError(
            f"balance must be 0 for m = {width} neurons, d = {dim} inputs and"
            f" C = {outputs} outputs: A^T A - W W^T = balance I needs m <= d and m <= C"
        )
    if balance < -1.0:
        raise ValueError(f"balance must be at least -1, got {balance:g}")
    O, U, V = (orthonormal_columns(rng, rows, rank) for rows in (width, dim, outputs))
    return O @ U.T, np.sqrt(1.0 + balance) * V @ O.T
