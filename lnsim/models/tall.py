"""The thin QR decomposition M = Q R of a tall M = [W | A^T], (m, p), the start of a reduction.

Where M is small it is NumPy's, by Householder reflections.  Of a wide network that would take most
of the time and memory of a run, and Q is not needed: its rows are those of M R^-1.  There

    G = M^T M = R^T R (Cholesky),     Q B = M (R^-1 B) for every B : (p, k),

so that the weights are held once, and a product with Q costs one with W.  G is a sum over blocks of
rows, which threads share.  The error of Q^T Q = I is about eps kappa^2, kappa the condition of M
with columns of norm 1; for independent weights kappa = (1 + sqrt(p/m)) / (1 - sqrt(p/m)) or so.
Where kappa exceeds WORST, or G cannot be decomposed, Householder's way is taken.

Signs.  R is unique up to the signs of its rows, and the state of a run is relative to them.  They
are chosen as Householder's reflections choose them, so that a state means the same whichever way Q
was found: the diagonal entry of row j is minus the sign of the entry that the reflections before
have left at (j, j).  On the columns of Q those are the pivots of the elimination without exchange
of rows of the top p rows of Q less the matrix of signs (Ballard et al., "Reconstructing Householder
vectors from Tall-Skinny QR", 2014).  Where a sign would hang on rounding, Householder decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lnsim.base import threads
from lnsim.base.checks import FloatArray

TALL = 1 << 20
"""Entries of M from which it is taken as tall (8 MiB), if it has TIMES as many rows as columns."""

TIMES = 16

WORST = 8.0
"""The largest kappa with which R is Cholesky's: Q is then orthonormal to about 64 eps."""

CLEAR = 1e-12
"""The least distance of a pivot from those at which Householder's sign is another: 0, 1 and -1."""

IN_CACHE = 1 << 16
"""Entries of M taken at a time (512 KiB)."""

AT_ONCE = 1 << 14
"""Rows of M whose products are one term of G."""


class Columns:
    """Q = M R^-1 : (m, p) of M = [W | A^T], W : (m, r) and A : (C, m), which are not copied.

    inverse : (p, p) is R^-1.  Products with arrays are written as those of an array Q.
    """

    __array_ufunc__ = None  # array @ Columns is not NumPy's

    def __init__(self, W: FloatArray, A: FloatArray, inverse: FloatArray) -> None:
        self.W, self.A, self.inverse = W, A, inverse
        self.shape = (len(W), len(inverse))

    def __len__(self) -> int:
        return len(self.W)

    def __matmul__(self, B: FloatArray) -> FloatArray:
        """Q B, (m,) of B : (p,), or (..., m, k) of B : (..., p, k)."""
        if B.ndim == 1:
            return (self @ B[:, None])[:, 0]
        factors, rank = np.matmul(self.inverse, B), self.W.shape[1]
        result = np.empty((*B.shape[:-2], len(self), B.shape[-1]))

        def some(rows: slice) -> None:
            for index in np.ndindex(B.shape[:-2]):
                part = result[index][rows]
                np.matmul(self.W[rows], factors[index][:rank], out=part)
                part += self.A[:, rows].T @ factors[index][rank:]

        self.by_blocks(some)
        return result

    @property
    def T(self) -> Rows:
        """Q^T, for products with arrays."""
        return Rows(self)

    def rows(self, rows: slice) -> FloatArray:
        """Rows of Q, formed."""
        rank = self.W.shape[1]
        return self.W[rows] @ self.inverse[:rank] + self.A[:, rows].T @ self.inverse[rank:]

    def by_blocks(self, work: Callable[[slice], object]) -> None:
        """Calls `work` with slices that cover the rows, the same for any number of threads."""
        by_blocks(work, len(self), max(1, IN_CACHE // self.shape[1]))


class Rows:
    """The transpose of Columns."""

    __array_ufunc__ = None

    def __init__(self, of: Columns) -> None:
        self.of = of

    def __matmul__(self, X: FloatArray) -> FloatArray:
        """Q^T X, (p, k), of X : (m, k)."""
        return self.of.inverse.T @ np.concatenate([self.of.W.T @ X, self.of.A @ X])

    def __rmatmul__(self, X: FloatArray) -> FloatArray:
        """X Q^T, (..., k, m), of X : (..., k, p)."""
        return np.swapaxes(self.of @ np.swapaxes(X, -1, -2), -1, -2)


def thin_qr(W: FloatArray, A: FloatArray) -> tuple[FloatArray | Columns, FloatArray]:
    """Q and R of M = [W | A^T] = Q R, for W : (m, r) and A : (C, m), m >= r + C."""
    columns = W.shape[1] + len(A)
    if len(W) * columns >= TALL and len(W) >= TIMES * columns:
        R = _cholesky(W, A)
        if R is not None:
            inverse: Any = np.linalg.inv(R)
            return Columns(W, A, inverse), R
    Q, R = np.linalg.qr(np.column_stack([W, A.T]))
    return Q, R


def forms(Q: FloatArray | Columns, F: FloatArray) -> FloatArray:
    """q_i^T F q_i of every row of Q : (m, p), (m,), for F : (p, p)."""
    if not isinstance(Q, Columns):
        return np.einsum("mp,mp->m", Q @ F, Q)
    result = np.empty(len(Q))

    def some(rows: slice) -> None:
        of_rows = Q.rows(rows)
        np.einsum("mp,mp->m", of_rows @ F, of_rows, out=result[rows])

    Q.by_blocks(some)
    return result


def by_blocks(work: Callable[[slice], object], count: int, size: int) -> None:
    """Calls `work` on all threads with slices of `size` that cover range(count).

    It may overflow without a warning: every thread has NumPy's settings of its own.
    """

    def some(blocks: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(blocks.start * size, min(blocks.stop * size, count), size):
                work(slice(first, min(first + size, count)))

    threads.in_blocks(some, -(-count // size))


def _cholesky(W: FloatArray, A: FloatArray) -> FloatArray | None:
    """R with Householder's signs, or None where it would not be accurate, or they are not clear."""
    rank, columns = W.shape[1], W.shape[1] + len(A)
    terms = np.empty((-(-len(W) // AT_ONCE), columns, columns))

    def term(rows: slice) -> None:
        G, of_W, of_A = terms[rows.start // AT_ONCE], W[rows], A[:, rows]
        G[:rank, :rank] = of_W.T @ of_W
        G[rank:, :rank] = of_A @ of_W
        G[rank:, rank:] = of_A @ of_A.T

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # it is refused below
        by_blocks(term, len(W), AT_ONCE)
        terms[:, :rank, rank:] = np.swapaxes(terms[:, rank:, :rank], 1, 2)
        G = terms.sum(axis=0)
        norms = np.sqrt(np.diagonal(G))
        if not (np.isfinite(G).all() and norms.min() > 1e-100):
            return None
        try:
            R = np.linalg.cholesky(G / norms / norms[:, None]).T
        except np.linalg.LinAlgError:
            return None
        if not np.linalg.cond(R) <= WORST:
            return None
        R = np.ascontiguousarray(R * norms)
    top = np.column_stack([W[:columns], A[:, :columns].T])
    signs = _signs(top @ np.linalg.inv(R))
    return None if signs is None else signs[:, None] * R


def _signs(top: FloatArray) -> FloatArray | None:
    """The signs of R's diagonal, from the top p rows of the Q whose R has none; None: unclear."""
    rest, signs = top.copy(), np.empty(len(top))
    for j in range(len(top)):
        pivot = rest[j, j]
        if min(abs(pivot), abs(1.0 - abs(pivot))) < CLEAR:
            return None
        signs[j] = -np.sign(pivot)
        rest[j, j] -= signs[j]
        rest[j + 1 :, j] /= rest[j, j]
        rest[j + 1 :, j + 1 :] -= np.outer(rest[j + 1 :, j], rest[j, j + 1 :])
    return signs
