"""Curvature of the loss at linear networks: trace, least trace, sharpness, one-sample gradients.

Notation.  Sigma = X^T X / n, Theta : (C, d) the predictor, r_i = f(x_i) - y_i, squared loss
L = (1/2n) sum |r_i|^2.  The network is f(x) = A W x; for one output M = [W | a] : (m, d+1),
N = M^T M = [[N_1, theta], [theta^T, alpha]] with N_1 = W^T W, theta = W^T a, alpha = |a|^2, and
S(x) = [[0, x], [x^T, 0]].  Then f = <M, M S(x)>/2, grad f = M S(x), and the second derivative of f
along D is <D, D S(x)>.  With z = (1/n) sum r_i x_i the Hessian is

    H[D] = (1/n) sum <M S(x_i), D> M S(x_i) + D S(z).                                           (1)

Trace.  The second term of (1) multiplies from the right by a matrix of trace 0, so

    tr H = (1/n) sum |grad f(x_i)|^2 = tr(W Sigma W^T) + |a|^2 tr Sigma                          (2)

at every point.  With C outputs f is linear in W and in A, so that again only the Gauss-Newton part
counts: tr H = C tr(W Sigma W^T) + |A|_F^2 tr Sigma.

Least trace among networks with the predictor Theta = A W.  Let P = W Sigma^(1/2).  By AM-GM
C |P|_F^2 + tr Sigma |A|_F^2 >= 2 sqrt(C tr Sigma) |P|_F |A|_F, and |A|_F |P|_F >= |A P|_* , the
nuclear norm of Theta Sigma^(1/2).  Equality holds for A and P that share the singular vectors and
the square roots of the singular values of A P:

    least trace = 2 sqrt(C tr Sigma) |Theta Sigma^(1/2)|_*.                                      (3)

Deep networks, one output.  With v_L = 1, v_{l-1} = v_l W_l, v_0 = theta^T, B_l = W_l ... W_1, the
trace is sum_l t_l with t_1 = |v_1|^2 tr Sigma and t_l = |v_l|^2 tr(B_{l-1} Sigma B_{l-1}^T), which
by Cauchy-Schwarz is at least |v_l|^2 theta^T Sigma theta / |v_{l-1}|^2.  The product of these lower
bounds telescopes to tr Sigma (theta^T Sigma theta)^(L-1), so by AM-GM

    least trace = L (tr Sigma)^(1/L) (theta^T Sigma theta)^(1 - 1/L),                            (4)

reached by layers of rank one whose gains make all t_l equal.

Diagonal networks.  The Gauss-Newton trace is a sum over coordinates with weights Sigma_jj, and each
is least for itself given beta_j = b: for u v, u^2 + v^2 >= 2 |b|; for v v it is 4 |b|; for
u^D - v^D it is D^2 (u^(2D-2) + v^(2D-2)).  For even D the least is at v = 0 or u = 0:
D^2 |b|^(2-2/D).  For odd D > 1, u^D and -v^D share |b|: as 1 <= 2 - 2/D the power is convex and the
least is at equal shares, 2 D^2 (|b|/2)^(2-2/D).  For D = 1 the model is linear, the trace constant.

Sharpness, one output.  Write J^T s = M S(s) for s in R^d, so that H = J^T Sigma J + I (x) S(z).
S(z) has the eigenvalues |z|, -|z| and 0.  For lambda > |z| the matrix lambda - I (x) S(z) is
positive definite, so by Sylvester's law of inertia H has as many eigenvalues above lambda as

    Sigma^(1/2) T(lambda) Sigma^(1/2),     T(lambda) = J (lambda - I (x) S(z))^(-1) J^T

has above 1.  On the span of z and of the last coordinate the inverse is (lambda + S(z)) /
(lambda^2 - |z|^2), elsewhere 1/lambda; so with A = N_1 + alpha I

    lambda T = A + (|z|^2 N_1 + alpha z z^T + lambda (theta z^T + z theta^T)) / (lambda^2 - |z|^2).
                                                                                                 (5)

The largest eigenvalue of Sigma^(1/2) T Sigma^(1/2) falls with lambda; where it is 1, lambda is the
largest eigenvalue of H.  If it is below 1 for all lambda > |z|, the largest eigenvalue is |z|.
Weyl's inequality gives lambda <= lambda_max(Sigma^(1/2) A Sigma^(1/2)) + |z|.  So the sharpness of
a network of any width costs a few problems of size d, and no eigenvalue is missed.

Spectrum.  Split D = Q E + F with Q : (m, p) the basis of the reduction (reduction.py), Q^T F = 0.
As M = Q R the first term of (1) does not see F, and H[F] = F S(z): the network has the eigenvalues
of the reduced one, and |z|, -|z|, 0 (d - 1 times), m - p times each.  With C outputs |z| becomes
the singular values of Z = (1/n) sum x_i g_i^T for g = dl/df, under any loss.  As the reduced
Hessian is that of (1) on fewer rows, its largest eigenvalue is at least |z|: sharpness and trace
are the reduced network's.

One-sample gradients g_i = r_i M S(x_i), with k_i = |grad f(x_i)|^2 = x_i^T A x_i, q_i = x_i^T A z,
f_i = f(x_i); all from S(x)^3 = |x|^2 S(x), S(x) S(z) S(x) = (x.z) S(x):

    |mean g|^2 = z^T A z,
    g_i^T H_i g_i = r_i^2 k_i^2 + 2 r_i^3 |x_i|^2 f_i,
    g_i^T H_i gbar = r_i k_i q_i + r_i^2 (f_i (z.x_i) + |x_i|^2 theta.z),
    g_i^T H g_i = r_i^2 (x_i^T A Sigma A x_i + 2 f_i (x_i.z)),
    gbar^T H gbar = z^T A Sigma A z + 2 |z|^2 theta.z.                                           (6)

Batches.  For a batch of B samples g_B^T H_B g_B is a sum over triples of positions in the batch:
B times all three alike, B (B-1) times a pair of one sample and another one, the rest three
different ones.  With replacement the samples at different positions are independent; without, they
are different.  A batch of more than n samples has every sample q times and k different ones once
more, B = q n + k; batches across the end of an epoch are counted as if they began with one
(`batch_moments`).

References: Mulayoff and Michaeli 2020 (deep linear networks that are flat by the largest
eigenvalue); Gatmiry et al. 2023 (least trace of deep factorisations); Ding, Drusvyatskiy, Fazel,
Harchaoui 2024 (least trace of two factors).  Stationary state: lnsim/theory/paper.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray

MOST_SOLVES = 100
"""Eigenvalue problems solved for one sharpness, at most; three or four are usual."""


def least_trace(theta: FloatArray, gram: FloatArray, depth: int = 2) -> FloatArray:
    """The least trace of the Hessian among linear networks with the predictors `theta`.

    theta : (..., C, d), gram = Sigma : (d, d); shape (...).  Equation (3), or (4) for a `depth`
    of other than 2 layers; NaN where C > 1 and depth > 2, for which no formula is known to us.
    """
    outputs = theta.shape[-2]
    root = square_root(gram)
    singular = np.linalg.svd(theta @ root.T, compute_uv=False)
    if depth == 1:
        return np.full(theta.shape[:-2], outputs * np.trace(gram))
    if depth == 2:
        return np.asarray(2.0 * np.sqrt(outputs * np.trace(gram)) * singular.sum(axis=-1))
    if outputs > 1:
        return np.full(theta.shape[:-2], np.nan)
    size = np.linalg.norm(singular, axis=-1)
    return np.asarray(depth * np.trace(gram) ** (1.0 / depth) * size ** (2.0 - 2.0 / depth))


def least_trace_diagonal(
    beta: FloatArray, gram: FloatArray, form: str = "product", power: int = 2
) -> FloatArray:
    """The least Gauss-Newton trace of diagonal networks with the predictors beta : (..., d).

    `form` and `power` are those of lnsim.Diagonal; shape (...).
    """
    b, scale = np.abs(beta), np.diagonal(gram)
    if form != "difference":
        return np.asarray((2.0 if form == "product" else 4.0) * (b @ scale))
    exponent = 2.0 - 2.0 / power
    least = b**exponent
    if power % 2:
        least = 2.0 * (0.5 * b) ** exponent if power > 1 else np.full_like(b, 2.0)
    return np.asarray(power**2 * (least @ scale))


def square_root(gram: FloatArray) -> FloatArray:
    """R : (k, d) with R^T R = gram : (d, d), without the directions in which gram is 0."""
    values, vectors = np.linalg.eigh(gram)
    seen = values > values[-1] * len(gram) * np.finfo(np.float64).eps
    return np.asarray(np.sqrt(values[seen])[:, None] * vectors[:, seen].T)


def sharpness(
    N: FloatArray, theta: FloatArray, alpha: FloatArray, z: FloatArray, root: FloatArray
) -> FloatArray:
    """The largest eigenvalue of the Hessian of B networks with one output, squared loss, (B,).

    N = W^T W : (B, d, d), theta = W^T a : (B, d), alpha = |a|^2 : (B,), z = mean r x : (B, d), and
    root : (k, d) a square root of Sigma.  NaN for networks that are not finite.  Equation (5).
    """
    # H is linear in all four: the unit keeps their products within range.
    unit = np.abs(alpha) + np.einsum("bii->b", N) + np.abs(z).sum(axis=1)
    result = np.where(np.isfinite(unit), 0.0, np.nan)
    fine = np.flatnonzero(np.isfinite(unit) & (unit > 0.0))
    parts = [
        array[fine] / unit[fine].reshape((-1,) + (1,) * (array.ndim - 1))
        for array in (N, theta, alpha, z)
    ]
    result[fine] = unit[fine] * _Pencil.of(parts, root).largest()
    return result


@dataclass(frozen=True)
class _Pencil:
    """Equation (5), multiplied by the square root of Sigma from both sides, for B networks.

    plain : (B, k, k) its part without z, first : (B, k, k) that of N_1 alone; b, t : (B, k) are z
    and theta multiplied by the root; alpha : (B,), size = |z| : (B,).
    """

    plain: FloatArray
    first: FloatArray
    b: FloatArray
    t: FloatArray
    alpha: FloatArray
    size: FloatArray

    @classmethod
    def of(cls, parts: Sequence[FloatArray], root: FloatArray) -> _Pencil:
        """The pencil of parts = (N, theta, alpha, z); see `sharpness`."""
        N, theta, alpha, z = parts
        first = root @ N @ root.T
        return cls(
            plain=first + alpha[:, None, None] * (root @ root.T),
            first=first,
            b=np.matmul(root, z[:, :, None])[:, :, 0],
            t=np.matmul(root, theta[:, :, None])[:, :, 0],
            alpha=alpha,
            size=np.linalg.norm(z, axis=1),
        )

    def matrix(self, level: FloatArray, which: NDArray[np.intp]) -> FloatArray:
        """(5) at lambda = `level`, for the networks `which`."""
        b, t, size = self.b[which], self.t[which], self.size[which]
        mixed = 0.5 * self.alpha[which, None] * b + level[:, None] * t
        matrix = mixed[:, :, None] * b[:, None, :]
        matrix = matrix + matrix.transpose(0, 2, 1)
        matrix += np.square(size)[:, None, None] * self.first[which]
        matrix /= ((level - size) * (level + size))[:, None, None]
        matrix += self.plain[which]
        return np.asarray(matrix)

    def largest(self) -> FloatArray:
        """Where the largest eigenvalue of (5) over lambda is 1: the sharpness, (B,)."""
        from lnsim.theory.sharpest_loop import sharpest  # Numba takes most of a second to import

        level, sure = np.empty(len(self.size)), np.zeros(len(self.size), dtype=np.bool_)
        arrays = self.plain, self.first, self.b, self.t, self.alpha, self.size
        with np.errstate(all="ignore"):
            sharpest(*arrays, level, sure)
        self.solve(level, np.flatnonzero(~sure))
        return level

    def solve(self, level: FloatArray, which: NDArray[np.intp]) -> None:
        """Writes the sharpness of the networks `which` to `level` : (B,), by eigenvalues."""
        if which.size == 0:
            return
        top: FloatArray = np.zeros(len(self.size))
        if self.plain.size:
            top[which] = np.linalg.eigvalsh(self.plain[which])[:, -1]
        # Where one of the two is 0, or as good as 0 to the other, there is nothing to solve.
        level[which] = np.maximum(top, self.size)[which]
        both = (self.size > TINY * top) & (top > TINY * self.size)
        active = which[both[which]]
        level[active] = top[active] + self.size[active]
        self.search(level, top, active)

    def search(self, level: FloatArray, top: FloatArray, active: NDArray[np.intp]) -> None:
        """Improves `level` : (B,), for the networks `active`, to the root, from wherever it is.

        By the secant rule on the inverse of the largest eigenvalue.  Every value found shrinks an
        interval that holds the root; a step out of it gives way to bisection.
        """
        low, high = self.size.copy(), top + self.size
        earlier, error = np.full(len(low), np.nan), np.full(len(low), np.nan)
        for _ in range(MOST_SOLVES):
            if active.size == 0:
                break
            now = level[active]
            excess = 1.0 - now / np.linalg.eigvalsh(self.matrix(now, active))[:, -1]
            below = excess > 0.0
            low[active[below]], high[active[~below]] = now[below], now[~below]
            slope = (excess - error[active]) / (now - earlier[active])
            # The first step is that of the fixed point: lambda times the largest eigenvalue.
            step = np.where(np.isfinite(slope), -excess / slope, now * excess / (1.0 - excess))
            following = now + step
            outside = ~((following > low[active]) & (following < high[active]))
            middle = 0.5 * (low[active] + high[active])
            done = (np.abs(step) <= CLOSE * now) | (excess == 0.0) | (middle == low[active])
            following[outside] = np.where(done, now, middle)[outside]
            earlier[active], error[active], level[active] = now, excess, following
            active = active[~done]


TINY = 1e-15
"""The share of the other below which the part with z, or that without it, does not count."""
CLOSE = 1e-12
"""The largest relative error of a sharpness."""


def batch_moments(
    sums: tuple[Any, Any, Any], samples: int, size: int, replacement: bool
) -> FloatArray:
    """The mean over batches of a product of three means over the batch.

    For a trilinear form F of samples: sums = (sum_i F_iii, sum_ij (F_iij + F_iji + F_jii),
    sum_ijk F_ijk), over all n `samples`.  Batches of `size` = B, with or without replacement.
    """
    same, pairs, triples = sums
    n, B = samples, size
    if replacement:
        ways = B * same / n, B * (B - 1) * pairs / n**2, B * (B - 1) * (B - 2) * triples / n**3
        return np.asarray(sum(ways)) / B**3
    q, k = divmod(B, n)
    # E F(qT + S, qT + S, qT + S), T the sum over all samples and S over the k: first what has T.
    share, both = k / n, k * (k - 1) / (n * max(n - 1, 1))
    total = (q**3 + 3 * q**2 * share + 3 * q * both) * triples + q * (share - both) * pairs
    distinct = pairs - 3.0 * same
    total = total + share * same + both * distinct
    if k > 2:
        three = both * (k - 2) / (n - 2)
        total = total + three * (triples - distinct - same)
    return np.asarray(total) / B**3


def triangle(M: FloatArray) -> FloatArray:
    """R of the QR decompositions of M : (..., m, k), (..., min(m, k), k)."""
    R: Any = np.linalg.qr(M, mode="r")
    return np.asarray(R)


def imbalance(W: FloatArray, A: FloatArray) -> FloatArray:
    """|A^T A - W W^T|_F of layers W : (..., m, d) and A : (..., C, m), (...)."""
    columns = np.concatenate([W, np.swapaxes(A, -1, -2)], axis=-1)
    if columns.shape[-2] > columns.shape[-1]:  # rotations of the m neurons change nothing
        columns = triangle(columns)
    ingoing, outgoing = columns[..., : W.shape[-1]], columns[..., W.shape[-1] :]
    difference = outgoing @ np.swapaxes(outgoing, -1, -2) - ingoing @ np.swapaxes(ingoing, -1, -2)
    return np.asarray(np.sqrt(np.square(difference).sum(axis=(-2, -1))))


def effective_rank(singular: NDArray[Any]) -> FloatArray:
    """exp of the entropy of singular values : (..., k) divided by their sum, (...); 0 for all 0.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    total = singular.sum(axis=-1)
    share = singular / np.where(total > 0.0, total, 1.0)[..., None]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0.0)
    return np.where(total > 0.0, np.exp(-np.sum(share * logs, axis=-1)), 0.0 * total)
