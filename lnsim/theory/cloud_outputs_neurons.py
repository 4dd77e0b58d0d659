"""Quantities of single neurons with C outputs by the law of the cloud.

As cloud_neurons.py.  Neuron i has w_i : (r,) and A_i : (C,), a row of E[M] = M(0) G each, and
fluctuates by z^T A_i and z w_i, z : (C, r) of covariance Z.  With V_i = E[z^T A_i A_i^T z],

    E|w_i| = sqrt(|w_i|^2 + tr V_i - u^T V_i u),   u = w_i/|w_i|,

to second order; |A_i| likewise.  The alignment |Theta* w_i| is the norm of a normal vector x of
mean mu = Theta* w_i and covariance Theta* V_i Theta*^T.  With u along mu the part x.u is folded
normal, and the rest is added to its square:

    E|x| = sqrt((E|x.u|)^2 + tr Cov - u^T Cov u),

which is exact for one output, and to second order where |mu| is large.  Where mu is small beside
the spread it is too large: by 2% if that is isotropic, by at most (pi/2)^1/2 - 1 = 25%.
The cosine is |Q w_i|/|w_i|, Q the projector on the rows of Theta*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.theory.cloud_neurons import FORMULAS, folded
from lnsim.theory.cloud_outputs import Mean


def over_time(mean: Mean) -> dict[str, FloatArray]:
    """FORMULAS, (T,) each."""
    _, singular, right = np.linalg.svd(mean.theta_star, full_matrices=False)
    directions = right[singular > singular.max(initial=0.0) * 1e-12]
    steps = len(mean.course.times)
    result = {name: np.empty(steps) for name in FORMULAS}
    for k in range(steps):
        w, A, rest = _rows(mean, k, slice(None))
        norms = _norms(mean, k, w, A, rest)[0]
        cosines = _along(mean, k, directions, w, A, rest) / np.where(norms > 0, norms, np.inf)
        alignments = _along(mean, k, mean.theta_star, w, A, rest)
        for name, values in zip(FORMULAS, (norms, alignments, cosines), strict=True):
            result[name][k] = values.mean()
    return result


def neurons(
    mean: Mean, k: int, chosen: NDArray[np.int64] | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """E|w_i|, E|Theta* w_i|, E|A_i| at the k-th time, (m,) each, or of the neurons `chosen`."""
    w, A, rest = _rows(mean, k, slice(None) if chosen is None else chosen)
    norms, outward = _norms(mean, k, w, A, rest)
    return norms, _along(mean, k, mean.theta_star, w, A, rest), outward


def _rows(mean: Mean, k: int, rows: Any) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """w_i : (m, r), A_i : (m, C) of E[M], and the part of W off the inputs, (m, d), if any."""
    M = mean.M[rows] @ mean.G[k]
    return M[:, : mean.rank], M[:, mean.rank :], mean.rest[rows] if mean.has_rest else None


def _norms(
    mean: Mean, k: int, w: FloatArray, A: FloatArray, rest: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """E|w_i| and E|A_i|, (m,)."""
    along = _quadratic(mean.course.Z[k], A, w)  # |w_i|^2 u^T V_i u, the same for A_i
    inward, outward = np.sum(w**2, axis=1), np.sum(A**2, axis=1)
    if rest is not None:
        inward = inward + np.sum(rest**2, axis=1)
    spread = np.einsum("mc,cd,md->m", A, mean.outer[k], A)
    of_outward = np.einsum("mi,ij,mj->m", w, mean.inner[k], w)
    return _normal_norm(inward, spread, along), _normal_norm(outward, of_outward, along)


def _normal_norm(square: FloatArray, spread: FloatArray, along: FloatArray) -> FloatArray:
    """E|x|, (m,), of |E x|^2, tr Cov x and E[x]^T Cov E[x], to second order."""
    radial = along / np.where(square > 0, square, np.inf)
    return np.asarray(np.sqrt(square + np.maximum(spread - radial, 0.0)))


def _along(
    mean: Mean, k: int, directions: FloatArray, w: FloatArray, A: FloatArray,
    rest: FloatArray | None,
) -> FloatArray:  # fmt: skip
    """E|F w_i| for the rows F = `directions` : (K, d), (m,)."""
    inside = directions @ mean.data.basis
    mu = w @ inside.T
    if rest is not None:
        mu = mu + rest @ directions.T
    Z = np.einsum("ai,cidj,bj->cadb", inside, mean.course.Z[k], inside, optimize=True)
    return mean_norm(mu, Z, A)


def mean_norm(mu: FloatArray, Z: FloatArray, A: FloatArray) -> FloatArray:
    """E|x|, (m,), of normal x of mean mu : (m, K) and covariance sum_cd A_c A_d Z_cd.

    Z : (C, K, C, K), A : (m, C).
    """
    total = np.einsum("mc,cd,md->m", A, np.einsum("cada->cd", Z), A)
    size = np.linalg.norm(mu, axis=1)
    u = mu / np.where(size > 0, size, 1.0)[:, None]
    u[size == 0, :1] = 1.0
    along = np.maximum(_quadratic(Z, A, u), 0.0)
    across = np.maximum(total - along, 0.0)
    return np.asarray(np.sqrt(folded(size, np.sqrt(along)) ** 2 + across))


def _quadratic(Z: FloatArray, A: FloatArray, v: FloatArray) -> FloatArray:
    """sum A_c v_i Z_cidj A_d v_j of Z : (C, K, C, K), A : (m, C), v : (m, K); (m,)."""
    joint = (A[:, :, None] * v[:, None, :]).reshape(len(A), -1)
    return np.asarray(np.einsum("mx,mx->m", joint @ Z.reshape(len(joint[0]), -1), joint))
