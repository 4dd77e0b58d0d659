r"""Sharpness and trace of the Hessian of the two-layer erf network, by hand.

Network, loss and reduction are those of erf_network.py.  With D = (f - y) / (nC), s = erf'(H) and
erf'' = -2 H s, a change (dH, dW2, db2) of preactivations and second layer changes the gradient by

    df = (s o dH) W2^T + Phi dW2^T + 1 db2^T,                        dD = df / (nC),
    d(dL/dH)   = (dD W2 + D dW2) o s + (D W2) o (-2 H s) o dH,
    d(dL/dW2)  = dD^T Phi + D^T (s o dH),
    d(dL/db2)  = dD^T 1.

The first layer acts through H = X W1^T + 1 b1^T alone.  With X X^T + 1 1^T = U diag(l) U^T, a
change of the first layer is, up to directions in which the loss is constant, R V with |R V| = |V|,
dH = B V, B = U diag(sqrt(l)), V : (n, m); so the Hessian has, besides zeros, the eigenvalues of
that in the coordinates (V, W2, b2), n m + C m + C of them, and the same trace.

The trace is exact.  Samples share no preactivation, so that for a neuron d^2 L / dH^2 is diagonal:

    tr = sum_i (X X^T + 1)_ii sum_j [ s_ij^2 sum_c W2_cj^2 / (nC) - 2 H_ij s_ij (D W2)_ij ]
         + |Phi|^2 / n + 1,

the last two terms being those of the second layer.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from scipy.special import erf

from lnsim import streams
from lnsim.base.checks import FloatArray
from lnsim.base.threads import one_blas_thread
from lnsim.images.erf_network import Start, State, Task, outputs, product, slope

# A purpose of numpy.random.default_rng([seed, purpose]); curvature/measures.py of lnsim_torch has
# those up to 11.
_START = 12

TOLERANCE = 1e-6
"""Relative residual at which Lanczos stops; the relative error of a sharpness is below it."""

VECTORS = 10
"""Lanczos vectors that are kept."""

_TAKES_RNG = "rng" in inspect.signature(eigsh).parameters


class Curvature:
    """The Hessian of the loss on clean labels, of networks that begin with `start`."""

    def __init__(self, start: Start, task: Task, seed: int) -> None:
        with one_blas_thread():
            eigenvalues, U = eigh(start.gram)
        self._root = U * np.sqrt(np.maximum(eigenvalues, 0.0))
        self._gram, self._y = np.diag(start.gram), task.y
        self._seed = streams.check_seed(seed)

    def sharpness(self, state: State, H: FloatArray) -> FloatArray:
        """The largest eigenvalue of the Hessian of each run, (S,); NaN where it overflows.

        H : (S, n, m) are the preactivations of the training inputs.
        """
        with one_blas_thread():
            return np.array([self._largest(*parts) for parts in self._runs(state, H)])

    def trace(self, state: State, H: FloatArray) -> FloatArray:
        """The trace of the Hessian of each run, (S,).  H : (S, n, m)."""
        return np.array([self._trace(*parts) for parts in self._runs(state, H)])

    def _runs(self, state: State, H: FloatArray) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """H : (n, m), W2 : (C, m) and D : (n, C) of each run."""
        D = (outputs(H, state) - self._y) / self._y.size
        return list(zip(H, state.W2, D, strict=True))

    def _trace(self, H: FloatArray, W2: FloatArray, D: FloatArray) -> float:
        s = slope(H)
        diagonal = s**2 * (W2**2).sum(axis=0) / D.size - 2.0 * H * s * product(D, W2)
        return float(self._gram @ diagonal.sum(axis=1) + (erf(H) ** 2).sum() / len(D) + 1.0)

    def _largest(self, H: FloatArray, W2: FloatArray, D: FloatArray) -> float:
        if not all(np.isfinite(part).all() for part in (H, W2, D)):
            return np.nan
        hessian = _Hessian(self._root, H, W2, D)
        rng = np.random.default_rng([self._seed, _START])
        operator = LinearOperator((hessian.size,) * 2, matvec=hessian.times, dtype=np.float64)
        if hessian.size <= VECTORS:
            columns = [hessian.times(column) for column in np.eye(hessian.size)]
            return float(eigh(np.array(columns), eigvals_only=True)[-1])
        own: dict[str, Any] = {"rng": rng} if _TAKES_RNG else {}
        start = rng.standard_normal(hessian.size)
        try:
            values = eigsh(
                operator, 1, which="LA", v0=start, ncv=VECTORS, tol=TOLERANCE,
                return_eigenvectors=False, **own,
            )  # fmt: skip
        except ArpackError:  # a product overflows
            return np.nan
        return float(values[0])


class _Hessian:
    """Products in the coordinates V : (n, m), W2 : (C, m), b2 : (C,), one after another."""

    def __init__(self, root: FloatArray, H: FloatArray, W2: FloatArray, D: FloatArray) -> None:
        self._root, self._W2, self._D = root, W2, D
        self._s, self._features = slope(H), erf(H)
        self._bend = -2.0 * H * self._s * product(D, W2)
        self._ends = np.cumsum([H.size, W2.size])
        self.size = H.size + W2.size + len(W2)

    def times(self, vector: FloatArray) -> FloatArray:
        """The Hessian times `vector` : (size,)."""
        V, dW2, db2 = np.split(vector.ravel(), self._ends)
        dH = product(self._root, V.reshape(self._s.shape))
        dW2 = dW2.reshape(self._W2.shape)
        d_features = self._s * dH
        dD = product(d_features, self._W2.T) + product(self._features, dW2.T) + db2
        dD /= self._D.size
        of_H = (product(dD, self._W2) + product(self._D, dW2)) * self._s + self._bend * dH
        of_W2 = product(dD.T, self._features) + product(self._D.T, d_features)
        return np.concatenate([product(self._root.T, of_H).ravel(), of_W2.ravel(), dD.sum(axis=0)])
