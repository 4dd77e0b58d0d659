"""Exact reduction: the cost of a step depends on neither the width nor the input dimension.

Hidden side.  Stack M = [W | a], (m, d+1).  The gradient of any loss of f = a^T W x is

    grad M = residual * M S(x),     S(x) = [[0, x], [x^T, 0]],

a product from the RIGHT, so M -> O M commutes with a training step for every m-by-m matrix O with
orthonormal columns.  With the thin QR decomposition M(0) = Q R(0), Q : (m, d+1), we have
M(t) = Q R(t), where R follows the same rule with width d+1.  It holds for SGD, GD, mini-batches,
momentum and weight decay (linear in M), and for SAM (the norm it divides by does not change under
a rotation).

Input side.  W moves only inside the span of the training inputs.  With an orthonormal basis
V : (d, r) of that span, r = rank(X) <= min(n, d), the inputs are V^T x, the trained part of W is
W V, and the rest W (I - V V^T) only shrinks by weight decay, if there is any: at step t it is
`dynamics.rest_scale(t)` times what it was at the start.

Together: a state of (r+1)-by-r and r+1 numbers.  Where m <= r+1 the hidden side has nothing to
gain and steps aside; so does the input side where r = d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network


@dataclass(frozen=True)
class Reduction:
    """What stands for (problem, network) while it trains, and the way back.

    problem: the training data in reduced coordinates, X : (n, r); W : (p, r) and a : (p,) the
    reduced network at the start; Q : (m, p) or None (identity); V : (d, r) or None (identity);
    rest : (m, d) or None (zero), the part of W(0) that no training input reaches.
    """

    problem: Problem
    W: FloatArray
    a: FloatArray
    Q: FloatArray | None
    V: FloatArray | None
    rest: FloatArray | None

    def trained(self, W: FloatArray) -> FloatArray:
        """Q W, (..., m, r): the part of the first layer that training moves, of W : (..., p, r)."""
        return W if self.Q is None else np.matmul(self.Q, W)

    def lift(self, W: FloatArray, a: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
        """The full weights W : (m, d), a : (m,) of reduced ones W : (p, r), a : (p,).

        `scale` is the dynamics' `rest_scale` at the step of the reduced weights.
        """
        full_W, full_a = self.trained(W), a if self.Q is None else self.Q @ a
        if self.V is not None and self.rest is not None:
            full_W = full_W @ self.V.T + scale * self.rest
        return full_W, full_a


def reduce(problem: Problem, network: Network, hidden: bool = True) -> Reduction:
    """The reduction, on each side where it makes the state smaller; `hidden` allows that side."""
    coordinates = network.reduced(problem.X, hidden=hidden, inputs=True)
    (Q, V), _ = coordinates.turns
    rest, _ = coordinates.rest
    if V is not None:
        assert problem.theta_star is not None
        problem = Problem(coordinates.X, problem.y, problem.theta_star @ V)
    return Reduction(problem, coordinates.model.W, coordinates.model.a, Q, V, rest)


def dense(problem: Problem, network: Network) -> Reduction:
    """No reduction: the state is the network itself."""
    return Reduction(problem, network.W.copy(), network.a.copy(), None, None, None)
