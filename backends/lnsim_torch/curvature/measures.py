r"""What is measured of a curvature matrix A : (P, P), by products with vectors alone.

Top eigenvalues.  Implicitly restarted Lanczos (scipy.sparse.linalg.eigsh, by ARPACK: Lehoucq,
Sorensen, Yang 1998).  It stops when |A u - l u| <= tolerance |l|, which puts an eigenvalue within
tolerance |l| of l; where the next eigenvalue is at a distance g, within (tolerance l)^2 / g.

Trace.  Hutch++ (Meyer, Musco, Musco, Woodruff 2021): with signs S : (P, s), Q an orthonormal basis
of A S, and signs g_j orthogonalised to it, h_j = (I - Q Q^T) g_j, j = 1 ... k,

    tr A ~ tr Q^T A Q + (1 / k) sum_j h_j^T A h_j,

which is unbiased; the deviation of the k numbers gives its standard error.  `hutchpp_trace` of
curvlinops draws from torch's global generator, holds all columns' activations at once, and gives no
error, so these lines are here.

Density.  Stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019):
from a random unit vector v, m steps of Lanczos give a tridiagonal T whose eigenvalues l_i and
squared first components w_i are the Gauss quadrature of v's spectral measure: v^T p(A) v =
sum_i w_i p(l_i) for polynomials p of degree below 2 m.  The average over probes estimates
tr p(A) / P.  Every new vector is orthogonalised to all before, twice, so that no eigenvalue appears
as a ghost and an invariant subspace is noticed; `fast_lanczos` of curvlinops does neither.

Random vectors come from numpy.random.default_rng([seed, purpose]): the same seed gives the same
vectors on every device, in every thread, and on the CPU the same bits for the same number of
torch's threads.  On CUDA some of torch's operations add in no fixed order.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal, eigvalsh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.streams import check_seed
from lnsim_torch.curvature.operator import Curvature, CurvatureError

# Purposes of numpy.random.default_rng([seed, purpose]); training/randomness.py has 9.
_START, _SIGNS = 10, 11

EXTRA_VECTORS = 8
"""Lanczos vectors that are kept besides two for each eigenvalue."""

MOST_RESTARTS = 1000

_TAKES_RNG = "rng" in inspect.signature(eigsh).parameters


class Trace(NamedTuple):
    """An estimate of a trace, and its standard error: 0 where it is exact."""

    value: float
    error: float


@dataclass(frozen=True)
class Density:
    """A spectral density, sum_k weights_k delta(l - nodes_k); nodes and weights : (K,), sum 1.

    The mean of a function p over the P eigenvalues is near sum_k weights_k p(nodes_k).
    """

    nodes: FloatArray
    weights: FloatArray

    def smoothed(self, points: int = 512, width: float = 0.01) -> tuple[FloatArray, FloatArray]:
        """A grid : (points,) and the density on it : (points,), every node a normal distribution.

        `width` is its standard deviation as a share of the range of the nodes.
        """
        checks.integer("points", points, 2)
        share = checks.real("width", width, above=0.0)
        low, high = self.nodes.min(), self.nodes.max()
        # A single eigenvalue has no range: its own size stands for it.
        deviation = share * ((high - low) or abs(high) or 1.0)
        grid = np.linspace(low - 4 * deviation, high + 4 * deviation, points)
        distance = (grid[:, None] - self.nodes) / deviation
        bumps = np.exp(-0.5 * distance**2) / (deviation * math.sqrt(2 * math.pi))
        return grid, bumps @ self.weights


def top_eigenvalues(
    curvature: Curvature, count: int = 1, *, seed: int = 0, tolerance: float | None = None
) -> FloatArray:
    """The `count` largest eigenvalues, descending, (count,); the first is the sharpness.

    tolerance: relative residual at which Lanczos stops (module docstring); if not given, the square
        root of the rounding of the network's dtype, 3e-4 or 1e-8.

    Raises ValueError or TypeError for arguments out of range, and CurvatureError where a product is
    not finite or Lanczos does not converge.
    """
    checks.integer("count", count, 1)
    if count > curvature.size:
        raise ValueError(f"count must be at most the {curvature.size} parameters, got {count}")
    if tolerance is None:
        tolerance = math.sqrt(torch.finfo(curvature.dtype).eps)
    rng = np.random.default_rng([check_seed(seed), _START])
    vectors = 2 * count + EXTRA_VECTORS
    if vectors >= curvature.size:
        return eigvalsh(_dense(curvature))[::-1][:count].copy()
    operator = LinearOperator(
        (curvature.size, curvature.size),
        matvec=lambda v: _times(curvature, v.ravel()),
        dtype=np.float64,
    )
    # Only if Lanczos meets an invariant subspace does eigsh draw numbers of its own.
    own: dict[str, Any] = {"rng": rng} if _TAKES_RNG else {}
    start = rng.standard_normal(curvature.size)
    try:
        with curvature.at_one_point():
            values = eigsh(
                operator, count, which="LA", v0=start, ncv=vectors, maxiter=MOST_RESTARTS,
                tol=checks.real("tolerance", tolerance, least=0.0), return_eigenvectors=False,
                **own,
            )  # fmt: skip
    except ArpackError as error:
        raise CurvatureError(f"eigenvalues did not converge to tolerance {tolerance:g}") from error
    return np.sort(values)[::-1]


def trace(curvature: Curvature, products: int = 30, *, seed: int = 0) -> Trace:
    """The trace by Hutch++ from `products` products, at least 6; exact if they are P or more.

    Raises as `top_eigenvalues` does.
    """
    rng = np.random.default_rng([check_seed(seed), _SIGNS])
    if checks.integer("products", products, 6) >= curvature.size:
        return Trace(float(np.trace(_dense(curvature))), 0.0)
    in_sketch = products // 3
    Q = torch.linalg.qr(_columns(curvature, _signs(curvature, rng, in_sketch)))[0]
    inside = float((Q * _columns(curvature, Q)).sum())
    G = _signs(curvature, rng, products - 2 * in_sketch)
    G -= Q @ (Q.T @ G)
    outside = (G * _columns(curvature, G)).sum(dim=0)
    error = float(outside.std()) / math.sqrt(len(outside))
    return Trace(inside + float(outside.mean()), error)


def density(curvature: Curvature, steps: int = 50, *, probes: int = 4, seed: int = 0) -> Density:
    """The spectral density from `steps` of Lanczos (at most P) for each of `probes` vectors.

    Raises as `top_eigenvalues` does.
    """
    steps = min(checks.integer("steps", steps, 1), curvature.size)
    checks.integer("probes", probes, 1)
    rng = np.random.default_rng([check_seed(seed), _SIGNS])
    with curvature.at_one_point():
        parts = [
            _quadrature(curvature, _signs(curvature, rng, 1)[:, 0], steps) for _ in range(probes)
        ]
    nodes, weights = (np.concatenate(of_all) for of_all in zip(*parts, strict=True))
    return Density(nodes, weights / probes)


def _quadrature(curvature: Curvature, v: Tensor, steps: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights, (m,) each, m <= steps, of the spectral measure of v : (P,) / |v|."""
    basis = v.new_empty(steps, len(v))
    basis[0] = v / v.norm()
    diagonal, beside = [], [0.0]
    rounding = 100 * torch.finfo(curvature.dtype).eps
    for i in range(steps):
        w = curvature.product(basis[i])
        diagonal.append(float(basis[i] @ w))
        before = basis[: i + 1]
        for _ in range(2):
            w -= before.T @ (before @ w)
        length = float(w.norm())
        scale = max(map(abs, [*diagonal, *beside]))
        if i + 1 == steps or length <= rounding * scale:
            break
        beside.append(length)
        basis[i + 1] = w / length
    nodes, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[1:]))
    return nodes, vectors[0] ** 2


def _signs(curvature: Curvature, rng: np.random.Generator, count: int) -> Tensor:
    """Columns of random signs, (P, count) float64 on the device of the network."""
    signs = rng.integers(0, 2, (count, curvature.size), dtype=np.int8)
    return torch.from_numpy(signs).to(curvature.device).double().T * 2.0 - 1.0


def _columns(curvature: Curvature, vectors: Tensor) -> Tensor:
    """The matrix times vectors : (P, k)."""
    with curvature.at_one_point():
        return torch.stack([curvature.product(v) for v in vectors.T], dim=1)


def _times(curvature: Curvature, v: NDArray[np.float64]) -> FloatArray:
    return curvature.product(torch.from_numpy(v)).numpy()


def _dense(curvature: Curvature) -> FloatArray:
    """The matrix, (P, P): for a few parameters."""
    with curvature.at_one_point():
        rows = [_times(curvature, row) for row in np.eye(curvature.size)]
    return np.array(rows)
