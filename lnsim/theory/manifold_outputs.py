"""The drift along the interpolators with C outputs, label noise SGD, at one state.

It is that of modes.py and manifold.py, which have one output.  Theta = A W : (C, r) is the
predictor, P = W^T W : (r, r), q = A A^T : (C, C), M = [W | A^T], D = Theta - Theta*, in the
principal axes of the data.  A step has g = (1/B) sum_k e_k x_k^T : (C, r), e = D x - epsilon, with
an independent epsilon of variance sigma^2 on every output, and S(g) = [[0, g^T], [g, 0]]:

    M <- M (I - lr S(g)),   Theta <- Theta - lr (q g + g P) + lr^2 g Theta^T g.

The tangent operator T[V] = q V + V P takes the place of A.  In the basis of q's eigenvectors, q =
Q diag(q_c) Q^T, it acts on row c of Q^T V as A_c = P + q_c I.

Fast
    At frozen weights the covariance C of D solves T Sigma C + C Sigma T = lr T N T, N = E[g g].
    Independent noise looks the same in every orthonormal basis of the outputs.  In that of q the
    equation splits into one for each pair of outputs.  The block C_cc' is linear in itself and has
    the source sigma^2 delta_cc': blocks of two different outputs are 0, and C_cc solves equation
    (1) of one output with A_c in place of A.  This is exact, with the fourth moments of the
    samples.  With s_c = E|x|^2 e_c^2 / tr Sigma, c_c = lr s_c/2, and x.C_cc x by its mean,
    C_cc = c_c A_c.  So z, of D = T[z], has independent rows of covariance Z_c = c_c A_c^-1.

Slow
    M = Mbar exp(S(z)) with Theta = Theta* for Mbar.  A step contracts M by lr^2/2 times

        E[S(g)^2] = diag(N_W, N_A),   N_W = E[g^T g],   N_A = E[g g^T],

    of equal traces, and Mbar by lr^2/2 times K = E[exp(S(z)) diag(N_W, N_A) exp(-S(z))].  To
    second order in z, with w = N_A zbar - zbar N_W,

        K = [[K_W, w^T], [-w, K_A]],
        K_W = N_W + (E[z^T z] N_W + N_W E[z^T z])/2 - E[z^T N_A z],
        K_A = N_A + (E[z z^T] N_A + N_A E[z z^T])/2 - E[z N_W z^T].

    The boost l with T[l] = (Theta* K_W + K_A Theta* + w P - q w)/2 keeps Theta = Theta*.

    Boosts do not commute: exp(S(z)) exp(-lr S(g)) is a boost times a rotation, of the inputs by
    lr (z^T g - g^T z)/2 and of the outputs by lr (z g^T - g z^T)/2.  Their means vanish: with
    E[g | z] = T[z] Sigma, E[z^T g] = sum_c c_c Sigma and E[z g^T] = tr Sigma diag(c_c) are
    symmetric.

    The mean of D must not drift.  To second order Theta = Theta* + T[z] + z Theta*^T z +
    (z z^T Theta* + Theta* z^T z)/2, while P changes by z^T Theta* + Theta*^T z and q by
    Theta* z^T + z Theta*^T.  In the basis of q this gives for row c of E[D]

        A_c Sigma E[D]_c = -(c_c tr Sigma + (sum_a c_a) Sigma) Theta*_c,

    and T[zbar] is E[D] less the mean of the terms of second order.

At C = 1 all this is modes.py.  The small parameter is (4) there, averaged over the outputs too.

Conserved
    Boosts conserve W W^T - A^T A for every C.  Theta, P and q determine M up to a rotation of
    hidden space, M <- O M, which training, a product from the right, does not make: one G, with
    M = M(0) G, carries every neuron.

Rest
    At leading order K = sigma^2 diag(C Sigma, tr Sigma I).  With Theta* Sigma^1/2 = U s V^T the
    flattest interpolator, (3) of flatness.py, has q = (C/tr Sigma)^1/2 U s U^T and P = (tr Sigma/
    C)^1/2 Sigma^-1/2 V s V^T Sigma^-1/2.  There l = (sigma^2/2) (C tr Sigma)^1/2 U V^T Sigma^1/2
    undoes the contraction of P, of q and of Theta: the drift is at rest.  Where the rank of Theta*
    is below both C and r, P and q are both singular there, T is not invertible, and the small
    parameter grows without bound: the law is refused from some step on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.theory.axes import Data, scaled
from lnsim.theory.kicks import Descent
from lnsim.theory.manifold import descent_covariance


@dataclass(frozen=True)
class Tangent:
    """T[V] = q V + V P of V : (C, r), with its inverse in the eigenbasis of q."""

    P: FloatArray  # (r, r)
    q: FloatArray  # (C, C)
    frame: FloatArray  # Q, (C, C): column c an eigenvector of q
    alpha: FloatArray  # eigenvalues of root A_c root, ascending, (C, r)
    vectors: FloatArray  # (C, r, r)
    inverse: FloatArray  # A_c^-1, (C, r, r)

    @classmethod
    def of(cls, data: Data, P: FloatArray, q: FloatArray) -> Tangent:
        """At P = W^T W, q = A A^T in the principal axes of the data."""
        gains, frame = np.linalg.eigh(q)
        blocks = P + gains[:, None, None] * np.eye(len(P))
        weights = data.root[:, None] * data.root
        alpha, vectors = np.linalg.eigh(blocks * weights)
        alpha = np.maximum(alpha, 1e-12 * alpha.max())  # a trial step may overshoot
        inverse = (vectors / alpha[:, None]) @ np.swapaxes(vectors, 1, 2) * weights
        return cls(P, q, frame, alpha, vectors, inverse)

    def solve(self, V: FloatArray) -> FloatArray:
        """The U with T[U] = V : (C, r)."""
        return self.frame @ self.on_rows(self.inverse, self.frame.T @ V)

    @staticmethod
    def on_rows(blocks: FloatArray, V: FloatArray) -> FloatArray:
        """blocks[c] V[c] of every row, (C, r)."""
        return np.asarray(np.einsum("cij,cj->ci", blocks, V))

    def whole(self, blocks: FloatArray) -> FloatArray:
        """The covariance (C, r, C, r) of rows that are independent in the eigenbasis of q."""
        return np.asarray(np.einsum("ac,bc,cij->aibj", self.frame, self.frame, blocks))


@dataclass(frozen=True)
class Drift:
    """The fast fluctuations and the drift they cause, at one state; in the principal axes.

    K contracts M by (lr^2/2) K a step, S(hold) lr^2 keeps Theta.
    """

    K: FloatArray  # (r + C, r + C)
    hold: FloatArray  # l, (C, r)
    Z: FloatArray  # E[z z], (C, r, C, r)
    zbar: FloatArray  # E[z], (C, r)
    C: FloatArray  # covariance of Theta, (C, r, C, r)
    expansion: float  # the small parameter
    slowest: float  # the least rate per step at which D relaxes
    stiffness: float  # a bound of the largest rate of the drift, per step


def drift(
    data: Data, target: FloatArray, dynamics: Descent, P: FloatArray, q: FloatArray,
    tolerance: float = 1e-5,
) -> Drift:  # fmt: skip
    """The drift at P = W^T W : (r, r), q = A A^T : (C, C), Theta = `target` : (C, r).

    Raises ValueError if there is no quasi-stationary state.
    """
    lr, total = dynamics.lr, float(data.spectrum.sum())
    tangent = Tangent.of(data, P, q)
    frame, inverse = tangent.frame, tangent.inverse
    eigen = zip(tangent.alpha, tangent.vectors, strict=True)
    fast = [descent_covariance(data, each, dynamics, tolerance) for each in eigen]
    N = np.stack([scaled(noise, data.root) for noise, _ in fast])  # of each output, (C, r, r)
    C = np.stack([scaled(whitened, 1 / data.root) for _, whitened in fast])
    nu = np.einsum("cii->c", N)

    c = lr * nu / (2 * total)
    Z = c[:, None, None] * inverse
    along = frame.T @ target
    inner = Z.sum(axis=0)  # E[z^T z]
    outer = np.einsum("cii->c", Z)  # E[z z^T] in the eigenbasis of q, where it is diagonal
    mean = (
        -Tangent.on_rows(inverse, (total * c[:, None] + c.sum() * data.spectrum) * along)
        / data.spectrum
    )
    second = Tangent.on_rows(Z, along) + (outer[:, None] * along + along @ inner) / 2
    zbar = Tangent.on_rows(inverse, mean - second)

    N_W = N.sum(axis=0)
    w = nu[:, None] * zbar - zbar @ N_W
    K_W = N_W + (inner @ N_W + N_W @ inner) / 2 - np.einsum("c,cij->ij", nu, Z)
    K_A = nu * (1 + outer) - np.einsum("cij,ji->c", Z, N_W)
    gains = np.einsum("ac,ab,bc->c", frame, q, frame)
    hold = (
        Tangent.on_rows(inverse, along @ K_W + K_A[:, None] * along + w @ P - gains[:, None] * w)
        / 2
    )

    rank = len(P)
    K = np.zeros((rank + len(q), rank + len(q)))
    K[:rank, :rank], K[rank:, rank:] = K_W, (frame * K_A) @ frame.T
    K[rank:, :rank] = -(frame @ w)
    K[:rank, rank:] = -K[rank:, :rank].T
    rates = lr * tangent.alpha
    return Drift(
        K=K,
        hold=frame @ hold,
        Z=tangent.whole(Z),
        zbar=frame @ zbar,
        C=tangent.whole(C),
        expansion=lr / 2 * float(np.mean(nu[:, None] / tangent.alpha)),
        slowest=float(max(rates.min(), 1e-3 * rates.max())),
        stiffness=1.3 * lr**2 * float(nu.max() + np.linalg.norm(N_W, 2)),
    )
