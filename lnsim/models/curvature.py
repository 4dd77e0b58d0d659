"""The curvature of the mean loss over the training samples, at any model.

With J_i = df(x_i)/dtheta, g_i = dl/df and B_i = d^2l/df^2 at (f(x_i), y_i), the Hessian of L is

    H = (1/n) sum_i J_i^T B_i J_i + (1/n) sum_i sum_c g_ic d^2 f_c(x_i)/dtheta^2,

the first part being the Gauss-Newton matrix.

Products.  H v is the derivative of the gradient along v.  With theta + i e v, e = 1e-30, in place
of theta, the imaginary part of the gradient over e is H v up to e^2: exact in floating point, as
no difference is taken (Squire and Trapp 1998).

Sums over samples.  By `Model.layers` the gradient of sample i by an array is delta_i h_i^T.  So
<grad_i, grad_j> = sum over arrays of (delta_i . delta_j)(h_i . h_j), and with B_i = sum_k b_k b_k^T
the Gauss-Newton trace is (1/n) sum_i sum_k |J_i^T b_ik|^2.

Everything is invariant under the model's reductions but for the eigenvalues that `spectrum` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates, Model
from lnsim.models.problem import Problem
from lnsim.theory import flatness

STEP = 1e-30
"""The size of the imaginary step: its square is below the rounding of anything."""

MOST_DENSE = 6_000
"""Parameters up to which a Hessian is formed (288 MB)."""


class Curvature:
    """The mean loss of `problem` over its training samples, clean labels, near a model.

    X : (n, d) are its inputs in the coordinates of a reduced model; left out, those of the problem.
    Raises ValueError for a model of other inputs, or without an output for every label.
    """

    def __init__(self, model: Model, problem: Problem, X: FloatArray | None = None) -> None:
        self.model = model
        self.problem = problem
        self.X = problem.X if X is None else X
        if model.dim != self.X.shape[1]:
            raise ValueError(f"model must have {self.X.shape[1]} inputs, got {model.dim}")
        needed = problem.outputs
        if model.outputs < needed or (model.outputs > needed and problem.loss != "cross-entropy"):
            raise ValueError(f"model must have {needed} outputs, got {model.outputs}")
        self.samples = len(self.X)

    @cached_property
    def f(self) -> FloatArray:
        """Predictions, (n, C)."""
        return self.model.predict(self.X)

    @cached_property
    def slopes(self) -> FloatArray:
        """dl/df of every sample, (n, C)."""
        return np.asarray(self.problem.slopes(self.f))

    @cached_property
    def gradient(self) -> FloatArray:
        """The gradient of the mean loss, (P,)."""
        return self.model.pull_back(self.X, self.slopes) / self.samples

    def product(self, v: FloatArray) -> FloatArray:
        """H v, (P,).  Raises ValueError for v of another shape."""
        v = self._vector("v", v)
        moved = self.model.from_flat(self.model.flat + 1j * (STEP * v))
        slopes = self.problem.slopes(moved.predict(self.X))
        return np.asarray(moved.pull_back(self.X, slopes).imag / (STEP * self.samples))

    def _vector(self, name: str, v: FloatArray) -> FloatArray:
        v = np.asarray(v)
        checks.shape(name, v, (self.model.size,), "the model has as many parameters")
        return v

    def _squares(self, g: FloatArray) -> FloatArray:
        """|J_i^T g_i|^2 of every sample, (..., n), for g : (..., n, C)."""
        pairs = self.model.layers(self.X, g)
        return np.asarray(sum(_squares(delta) * _squares(h) for delta, h in pairs))

    @cached_property
    def gauss_newton_trace(self) -> float:
        """tr (1/n) sum_i J_i^T B_i J_i."""
        return float(self._squares(self.problem.curvature_roots(self.f)).sum() / self.samples)

    @property
    def trace(self) -> float:
        """tr H."""
        residual = self.model.residual_trace(self.X, self.slopes)
        return self.gauss_newton_trace + residual / self.samples

    @property
    def noise(self) -> float:
        """The trace of the covariance of the samples' gradients: mean |g_i|^2 - |mean g_i|^2."""
        if self.samples == 1:
            return 0.0
        square = float(self._squares(self.slopes).mean()) - float(self.gradient @ self.gradient)
        return max(square, 0.0)

    @property
    def kernel(self) -> FloatArray:
        """The tangent kernel summed over outputs, K_ij = sum_c <df_c(x_i), df_c(x_j)>, (n, n)."""
        units = np.repeat(np.eye(self.f.shape[1])[:, None], self.samples, axis=1)
        K = np.zeros((self.samples, self.samples))
        for delta, h in self.model.layers(self.X, units):
            flat = np.moveaxis(delta, 0, 1).reshape(self.samples, -1)
            K += (flat @ flat.T) * (h @ h.T)
        return K

    @property
    def alignment(self) -> float:
        """The centred alignment of the kernel with the labels' Y Y^T; NaN for labels all alike.

        <K_c, Y_c Y_c^T>_F / (|K_c|_F |Y_c Y_c^T|_F), Y : (n, C) what the loss compares with
        (Cortes, Mohri and Rostamizadeh 2012, Definition 4).
        """
        K, Y = self.kernel, self.problem.targets(self.problem.y)
        K = K - K.mean(axis=0)
        K = K - K.mean(axis=1, keepdims=True)
        Y = centred(Y)
        size = np.linalg.norm(K) * np.linalg.norm(Y.T @ Y)
        return float(np.sum(Y * (K @ Y)) / size) if size > 0.0 else float("nan")

    def sharpness(self, start: FloatArray | None = None) -> tuple[float, FloatArray]:
        """The largest eigenvalue of H and its eigenvector, by Lanczos from `start` : (P,).

        Without `start`, or where H takes it to 0, from one fixed random vector; where H takes that
        to 0 too, H is 0.  NaN, and `start` again, for a model that is not finite, and where Lanczos
        does not converge.
        """
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        size = self.model.size
        fixed = np.random.default_rng(0).standard_normal(size)
        start = fixed if start is None else self._vector("start", start)
        if not (np.isfinite(self.f).all() and np.isfinite(self.model.flat).all()):
            return float("nan"), start
        if size < 3:  # too few for Lanczos
            values, vectors = np.linalg.eigh(self.dense())
            return float(values[-1]), vectors[:, -1]
        if not np.any(self.product(start)):
            start = fixed
            if not np.any(self.product(start)):
                return 0.0, start / np.linalg.norm(start)
        operator: Any = LinearOperator((size, size), matvec=self.product, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=1, which="LA", v0=start, ncv=min(size, LANCZOS))
        except ArpackNoConvergence:
            return float("nan"), start
        return float(values[0]), vectors[:, 0]

    def _of_samples(self) -> Iterator[Curvature]:
        for i in range(self.samples):
            yield Curvature(self.model, self.problem.only(i), self.X[i : i + 1])

    def batch_sharpness(self, size: int, replacement: bool) -> float:
        """E[g_B^T H_B g_B] / E[|g_B|^2] over batches B of `size` samples; 0: all of them.

        NaN where all gradients are 0.  Andreyev and Beneventano 2024, "Edge of stochastic
        stability".  Raises ValueError for a negative size.
        """
        size = checks.integer("size", size, 0)
        n, mean = self.samples, self.gradient
        curved_mean, squared_mean = float(mean @ self.product(mean)), float(mean @ mean)
        if size == 0:
            return _ratio(curved_mean, squared_mean)
        same = pairs = squares = 0.0
        for one in self._of_samples():
            g = one.gradient
            H_g = one.product(g)
            same += float(g @ H_g)
            squares += float(g @ g)
            if size > 1:
                pairs += float(n * (2.0 * (H_g @ mean) + g @ self.product(g)))
        curved = same, pairs, n**3 * curved_mean
        plain = squares, n * squares + 2.0 * n**2 * squared_mean, n**3 * squared_mean
        above, below = (
            float(flatness.batch_moments(sums, n, size, replacement)) for sums in (curved, plain)
        )
        return _ratio(above, below)

    def dense(self) -> FloatArray:
        """H, (P, P).  Raises ValueError for more parameters than MOST_DENSE."""
        check_dense(self.model, "dense takes models")
        H = np.stack([self.product(unit) for unit in np.eye(self.model.size)])
        return 0.5 * (H + H.T)

    def spectrum(self, coordinates: Coordinates[Model]) -> FloatArray:
        """The eigenvalues of H, descending, then those that only the full network has.

        `coordinates` are those of the model.  Split the arrays of a reduced hidden layer, W_l with
        the basis Q : (m, p) and W_{l+1}, into a part in the span of Q and a rest F, G.  The
        gradient does not see the rest, and the second derivative only as sum_i b_i^T G F h_i with
        h_i the inputs of W_l and b_i the gradient at the outputs of W_{l+1}.  So each of m - p
        dimensions has the eigenvalues +s_k, -s_k of the singular values s_k of
        Z = (1/n) sum_i h_i b_i^T, which follow here, layer by layer, the s_k before the -s_k.
        Raises ValueError for more parameters than MOST_DENSE.
        """
        check_dense(self.model, "spectrum takes models")
        values = [np.linalg.eigvalsh(self.dense())[::-1]]
        layers = self.model.layers(self.X, self.slopes)
        for number, _ in widened(coordinates):
            Z = layers[number][1].T @ layers[number + 1][0] / self.samples
            singular = np.linalg.svd(Z, compute_uv=False)
            values += [singular, -singular]
        return np.concatenate(values)


def check_dense(model: Model, takes: str = "hessian_spectrum takes reduced models") -> None:
    """Raises ValueError for a model, in the coordinates it is trained in, that is too large.

    `takes` begins the message: what was asked for, and of which models.
    """
    if model.size > MOST_DENSE:
        raise ValueError(
            f"{takes} of at most {MOST_DENSE:,} parameters; this one has {model.size:,}"
        )


def multiplicities(coordinates: Coordinates[Model]) -> NDArray[np.int64]:
    """How often the full network has each eigenvalue of `Curvature.spectrum`.

    The eigenvalues of the full network that are none of these are 0.
    """
    counts = [np.ones(coordinates.model.size, dtype=np.int64)]
    arrays = list(coordinates.model.parameters.values())
    for number, more in widened(coordinates):
        outputs = 1 if arrays[number + 1].ndim == 1 else len(arrays[number + 1])
        counts.append(np.full(2 * min(arrays[number].shape[1], outputs), more, dtype=np.int64))
    return np.concatenate(counts)


def widened(coordinates: Coordinates[Model]) -> list[tuple[int, int]]:
    """The arrays whose rows the reduction replaced by fewer, by number, and how many fewer."""
    bases = [left for left, _ in coordinates.bases]
    return [(k, Q.shape[0] - Q.shape[1]) for k, Q in enumerate(bases) if Q is not None]


def centred(Y: FloatArray) -> FloatArray:
    """Y : (n, ...) less its mean over samples; exactly 0 where all are alike."""
    return (
        np.zeros_like(Y)
        if np.array_equal(Y, np.broadcast_to(Y[:1], Y.shape))
        else Y - Y.mean(axis=0)
    )


LANCZOS = 20
"""Lanczos vectors before a restart."""


def _squares(v: FloatArray) -> FloatArray:
    """|v|^2 of v : (..., n, k), (..., n)."""
    return np.asarray(np.einsum("...k,...k->...", v, v))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0.0 else float("nan")
