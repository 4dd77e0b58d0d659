"""The norm ledger: what changed the norm of every neuron (paper, the exact norm identity).

A step of SGD or GD moves a by -v and W by -a g^T with v = W g (one sample: g = lr r x).  The cross
terms of |w_i|^2 - a_i^2 cancel, so that over T steps, exactly,

    |w_i(T)|^2 = |w_i(0)|^2 - a_i(0)^2 + a_i(T)^2 - removed_i + restored_i,
    removed_i = sum_j v_i(j)^2 = sum_j (a_i(j+1) - a_i(j))^2,   the second layer's oscillation,
    restored_i = sum_j |g_j|^2 a_i(j)^2,                        the weights' own scale.

In reduced coordinates v = Q v', a = Q a', so removed_i = q_i^T (sum_j v'_j v'_j^T) q_i: two p-by-p
matrices suffice for all neurons of any width.  The engine writes v' and |g| a' of every step into
a ring of `LENGTH` rows; when the ring is full, two products add its rows to the sums.  Rings begin
at multiples of their length, so the sums do not depend on how the steps were split.

Momentum, weight decay and SAM change the identity and are refused.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.models.reduction import Reduction
from lnsim.models.tall import forms

LENGTH = 8192
MOST_ROWS = 1 << 20
"""Limit on the rows of a ring times the width, for a wide dense network."""


class Ledger:
    """The two sums of S replicas, in reduced coordinates (per neuron if dense)."""

    def __init__(self, reduction: Reduction, replicas: int) -> None:
        width = reduction.a.size
        self._Q = reduction.Q
        length = max(1, min(LENGTH, MOST_ROWS // width))
        shape = (width,) if reduction.Q is None else (width, width)
        self.sums = np.zeros((replicas, 2, *shape))
        self.rows = np.zeros((replicas, 2, length, width))

    def room(self, step: int) -> int:
        """The number of steps from `step` until the ring is full."""
        length = self.rows.shape[2]
        return length - step % length

    def note(self, step: int) -> None:
        """Empties the ring if it is full after `step` steps."""
        if step % self.rows.shape[2] == 0:
            for s in range(len(self.sums)):
                self.sums[s] += self._sum(self.rows[s])

    def of_neurons(self, s: int, step: int) -> FloatArray:
        """removed and restored of every neuron of replica s after `step` steps, shape (2, m)."""
        sums = self.sums[s] + self._sum(self.rows[s, :, : step % self.rows.shape[2]])
        if self._Q is None:
            return sums
        return np.stack([forms(self._Q, total) for total in sums])

    def _sum(self, rows: FloatArray) -> FloatArray:
        if self._Q is None:
            return np.einsum("ctp,ctp->cp", rows, rows)
        return np.stack([part.T @ part for part in rows])


def lemma_3_shares(
    X: FloatArray, y: FloatArray, W: FloatArray, a: FloatArray, sigma: float
) -> tuple[float, float]:
    """Empirical probabilities of Lemma 3 at one network: P(D <= 0) and P(D <= -(sigma/4)^2).

    D_i = -r^2 ((x.w_i)^2 - a_i^2 |x|^2) over all neurons i, all n samples x and both signs of the
    label noise.  X : (n, r), y : (n,), W : (m, r), a : (m,).
    """
    difference = (X @ W.T) ** 2 - np.einsum("nr,nr->n", X, X)[:, None] * a**2
    residual = X @ (W.T @ a) - y
    noisy = np.concatenate([residual - sigma, residual + sigma])
    decrease = noisy[:, None] ** 2 * np.concatenate([difference, difference])
    return float(np.mean(decrease >= 0.0)), float(np.mean(decrease >= (sigma / 4.0) ** 2))
