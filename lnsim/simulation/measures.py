"""Curvature, rank and balance of two-layer networks with one output, in reduced coordinates.

The formulas and their proofs are in lnsim/theory/flatness.py; the untrained part of W, s rest, is
orthogonal to all training inputs.  So it adds nothing to the curvature of the loss.  What does not
change if the neurons are rotated is computed from R of the QR decomposition [W | a] = Q R where
that is smaller, however the network is trained.

Every network has its own products, so that its numbers do not depend on the others in a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates
from lnsim.models.curvature import Curvature, centred, multiplicities
from lnsim.models.reduction import Reduction
from lnsim.models.tall import Columns
from lnsim.models.two_layer import Network
from lnsim.theory import flatness


class Constants:
    """What the measures need of a run besides the weights; `batch`: samples in a batch, 0: all."""

    def __init__(self, reduction: Reduction, batch: int) -> None:
        problem = reduction.problem
        self.reduction = reduction
        self.batch = batch
        self.problem = problem
        self.gram = problem.gram
        self.trace = float(np.trace(problem.gram))
        self.root = flatness.square_root(problem.gram)
        self.squares = np.einsum("nr,nr->n", problem.X, problem.X)
        X, y = centred(problem.X), centred(problem.y)
        self.centred_gram = X.T @ X
        self.centred_moment = X.T @ y
        self.centred_square = float(y @ y)

    @cached_property
    def rest_apart(self) -> tuple[FloatArray, FloatArray]:
        """C and K of rest = Q C + Y K, where the columns of Y are orthonormal, Q^T Y = 0."""
        rest, Q = self.reduction.rest, self.reduction.Q
        assert rest is not None and Q is not None
        C = Q.T @ rest
        if not isinstance(Q, Columns):
            return C, flatness.triangle(rest - Q @ C)
        square, turn = np.linalg.eigh(rest.T @ rest - C.T @ C)  # K^T K, without an (m, d) more
        return C, np.sqrt(np.maximum(square, 0.0))[:, None] * turn.T

    @cached_property
    def coordinates(self) -> Coordinates[Network]:
        """The reduction of the hidden side, from the full width."""
        W, a = self.reduction.lift(self.reduction.W, self.reduction.a, 1.0)
        if self.reduction.V is not None:
            W = W @ self.reduction.V
        return Network(W, a).reduced(self.problem.X, hidden=True, inputs=False)

    @property
    def multiplicity(self) -> NDArray[np.int64]:
        """How often the full network has each eigenvalue of its `hessian_spectrum`."""
        return multiplicities(self.coordinates)


class Measured:
    """B networks: reduced weights W : (B, p, r), a : (B, p), `scale` : (B,) of the rest."""

    def __init__(
        self, constants: Constants, W: FloatArray, a: FloatArray, scale: FloatArray
    ) -> None:
        self.constants = constants
        self.trained, self.second, self.scale = W, a, scale
        if W.shape[1] > W.shape[2] + 1:
            R = flatness.triangle(np.concatenate([W, a[:, :, None]], axis=2))
            W, a = R[:, :, :-1], R[:, :, -1]
        self.W, self.a = W, a

    @cached_property
    def N(self) -> FloatArray:
        """W^T W, (B, r, r)."""
        return np.matmul(self.W.transpose(0, 2, 1), self.W)

    @cached_property
    def alpha(self) -> FloatArray:
        """|a|^2, (B,)."""
        return np.einsum("bp,bp->b", self.a, self.a)

    @cached_property
    def A(self) -> FloatArray:
        """W^T W + |a|^2 I, (B, r, r)."""
        A = self.N.copy()
        diagonal = np.einsum("bii->bi", A)
        diagonal += self.alpha[:, None]
        return A

    @cached_property
    def theta(self) -> FloatArray:
        """W^T a, (B, r)."""
        return np.matmul(self.a[:, None, :], self.W)[:, 0]

    @cached_property
    def f(self) -> FloatArray:
        """Predictions, (B, n)."""
        return np.matmul(self.constants.problem.X, self.theta[:, :, None])[:, :, 0]

    @cached_property
    def residuals(self) -> FloatArray:
        """f - y, (B, n)."""
        return self.f - self.constants.problem.y

    @cached_property
    def z(self) -> FloatArray:
        """(1/n) sum r_i x_i, (B, r)."""
        X = self.constants.problem.X
        return np.matmul(self.residuals[:, None, :], X)[:, 0] / len(X)

    @cached_property
    def Az(self) -> FloatArray:
        """A z, (B, r)."""
        return np.matmul(self.A, self.z[:, :, None])[:, :, 0]

    @cached_property
    def XA(self) -> FloatArray:
        """A x_i, (B, n, r)."""
        return np.matmul(self.constants.problem.X, self.A)

    @cached_property
    def k(self) -> FloatArray:
        """|grad f(x_i)|^2, (B, n)."""
        return np.einsum("bnr,nr->bn", self.XA, self.constants.problem.X)

    @cached_property
    def mean_square(self) -> FloatArray:
        """The mean of |g_i|^2 over samples, (B,)."""
        return (np.square(self.residuals) * self.k).mean(axis=1)

    @cached_property
    def square_of_mean(self) -> FloatArray:
        """|mean g_i|^2, (B,)."""
        return _dot(self.z, self.Az)


def _dot(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.asarray((u * v).sum(axis=1))


def sharpness(networks: Measured) -> FloatArray:
    """The largest eigenvalue of the Hessian."""
    root = networks.constants.root
    return flatness.sharpness(networks.N, networks.theta, networks.alpha, networks.z, root)


def hessian_trace(networks: Measured) -> FloatArray:
    """Equation (2) of flatness.py."""
    constants = networks.constants
    first = np.einsum("bij,ij->b", networks.N, constants.gram)
    return np.asarray(first + networks.alpha * constants.trace)


def flatness_gap(networks: Measured) -> FloatArray:
    """tr H over equation (3); infinite where the predictor is 0 on all inputs."""
    constants = networks.constants
    square = np.maximum(
        _dot(networks.theta, np.matmul(constants.gram, networks.theta[:, :, None])[:, :, 0]), 0.0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(hessian_trace(networks) / (2.0 * np.sqrt(constants.trace * square)))


def kernel_alignment(networks: Measured) -> FloatArray:
    """As Curvature.alignment: K_c = X_c A X_c^T with the centred inputs."""
    constants = networks.constants
    along = np.matmul(networks.A, constants.centred_moment[:, None])[:, :, 0]
    product = networks.A @ constants.centred_gram
    size = np.sqrt(np.maximum(np.einsum("bij,bji->b", product, product), 0.0))
    size *= constants.centred_square
    return _dot(along, constants.centred_moment[None]) / np.where(size > 0.0, size, np.nan)


def effective_rank(networks: Measured) -> FloatArray:
    """Of the whole of W."""
    reduction = networks.constants.reduction
    finite = np.isfinite(networks.W).all(axis=(1, 2))
    result = np.full(len(networks.W), np.nan)
    weights = networks.W[finite]
    if reduction.rest is not None:
        weights, a = networks.trained[finite], networks.second[finite]
        of_networks = zip(weights, a, networks.scale[finite], strict=True)
        lifted = (reduction.lift(W, a, float(scale))[0] for W, a, scale in of_networks)
        singular = [np.linalg.svd(W, compute_uv=False) for W in lifted]
    else:
        singular = list(np.linalg.svd(weights, compute_uv=False)) if len(weights) else []
    if singular:
        result[finite] = flatness.effective_rank(np.stack(singular))
    return result


def balancedness(networks: Measured) -> FloatArray:
    """|W W^T - a a^T|_F of the whole of W."""
    reduction = networks.constants.reduction
    if reduction.rest is None:
        return flatness.imbalance(networks.W, networks.a[:, None, :])
    rest = reduction.rest
    weights, a = networks.trained, networks.second
    if reduction.Q is not None:
        C, K = networks.constants.rest_apart  # in the columns of Q and Y
        rest = np.concatenate([C, K])
        more = ((0, 0), (0, len(K)))
        weights, a = np.pad(weights, (*more, (0, 0))), np.pad(a, more)
    scaled = networks.scale[:, None, None] * rest
    whole = np.concatenate([weights, np.broadcast_to(scaled, (len(a), *rest.shape))], axis=2)
    return flatness.imbalance(whole, a[:, None, :])


def gradient_noise(networks: Measured) -> FloatArray:
    """mean |g_i|^2 - |mean g|^2, to the rounding of the first; 0 for one sample."""
    if networks.constants.problem.samples == 1:
        return np.zeros(len(networks.W))
    return np.maximum(networks.mean_square - networks.square_of_mean, 0.0)


def batch_sharpness(networks: Measured) -> FloatArray:
    """Equation (6) of flatness.py, batches with replacement; NaN where all gradients are 0."""
    constants = networks.constants
    X, n, size = constants.problem.X, constants.problem.samples, constants.batch
    z, r, f, k = networks.z, networks.residuals, networks.f, networks.k
    Az, squared = networks.Az, np.square(networks.residuals)
    of_mean = _dot(Az, np.matmul(constants.gram, Az[:, :, None])[:, :, 0])
    of_mean += 2.0 * _dot(z, z) * _dot(networks.theta, z)
    if size == 0:
        return _ratio(of_mean, networks.square_of_mean)
    same = squared * k * k + 2.0 * r * squared * constants.squares * f
    pairs = np.zeros_like(same)
    if size > 1:
        along = np.matmul(X, z[:, :, None])[:, :, 0]
        q = np.matmul(X, Az[:, :, None])[:, :, 0]
        with_mean = r * k * q
        with_mean += squared * (f * along + constants.squares * _dot(networks.theta, z)[:, None])
        XA_gram = np.matmul(networks.XA, constants.gram)
        in_mean = squared * (np.einsum("bnr,bnr->bn", XA_gram, networks.XA) + 2.0 * f * along)
        pairs = n * (2.0 * with_mean + in_mean)
    curved = same.sum(axis=1), pairs.sum(axis=1), n**3 * of_mean
    squares, mean = n * networks.mean_square, n**2 * networks.square_of_mean
    plain = squares, 2.0 * mean + n * squares, n * mean
    above, below = (flatness.batch_moments(sums, n, size, True) for sums in (curved, plain))
    return _ratio(above, below)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return above / np.where(below > 0.0, below, np.nan)


def hessian_spectrum(networks: Measured) -> FloatArray:
    """See Curvature.spectrum."""
    constants = networks.constants
    return np.stack(
        [
            Curvature(Network(W, a), constants.problem).spectrum(constants.coordinates)
            for W, a in zip(networks.W, networks.a, strict=True)
        ]
    )


FORMULAS: dict[str, Callable[[Measured], FloatArray]] = {
    function.__name__: function
    for function in (
        sharpness,
        hessian_trace,
        flatness_gap,
        kernel_alignment,
        effective_rank,
        balancedness,
        gradient_noise,
        batch_sharpness,
        hessian_spectrum,
    )
}
"""One number for each of B networks, (B,); of hessian_spectrum one row."""
