"""Exact reduction: the cost of a step depends on neither the width nor the input dimension.

Hidden side.  Stack M = [W | a], (m, d+1).  The gradient of any loss of f = a^T W x is

    grad M = residual * M S(x),     S(x) = [[0, x], [x^T, 0]],

a product from the RIGHT, so M -> O M commutes with a training step for every m-by-m matrix O with
orthonormal columns.  With the thin QR decomposition M(0) = Q R(0), Q : (m, d+1), we have
M(t) = Q R(t), where R follows the same rule with width d+1.  This holds for SGD, GD, mini-batches,
momentum and weight decay (linear in M), and for SAM (the norm it divides by is invariant under
rotations).

Input side.  W moves only inside the span of the training inputs.  With an orthonormal basis
V : (d, r) of that span, r = rank(X) <= min(n, d), the inputs are V^T x, the trained part of W is
W V, and the rest W (I - V V^T) changes by weight decay alone: at step t it is
`dynamics.rest_scale(t)` times its initial value.

Together they leave a state of (r+1)-by-r and r+1 numbers.  The hidden side is not reduced if
m <= r+1, nor the input side if r = d, as the state would not become smaller.  Of a wide network Q
is not formed (tall.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from lnsim.base.checks import FloatArray
from lnsim.models.base import Basis
from lnsim.models.problem import Problem
from lnsim.models.tall import Columns
from lnsim.models.two_layer import Network


@dataclass(frozen=True)
class Reduction:
    """The reduced problem and network that are trained, and the map back to the full network.

    problem: the training data in reduced coordinates, X : (n, r); W : (p, r) and a : (p,) the
    reduced network at the start; Q : (m, p) or None (identity); V : (d, r) or None (identity);
    rest : (m, d) or None (zero), the part of W(0) orthogonal to all training inputs.
    """

    problem: Problem
    W: FloatArray
    a: FloatArray
    Q: Basis
    V: FloatArray | None
    rest: FloatArray | None

    def trained(self, W: FloatArray) -> FloatArray:
        """Q W, (..., m, r), the part of the first layer that is trained, from W : (..., p, r)."""
        return W if self.Q is None else self.Q @ W

    @property
    def trained_start(self) -> FloatArray:
        """`trained` of the start, (m, r).  It is not to be written to."""
        return self.Q.W if isinstance(self.Q, Columns) else self.trained(self.W)

    def lift(self, W: FloatArray, a: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
        """The full weights W : (m, d), a : (m,) from the reduced W : (p, r), a : (p,).

        `scale` is the dynamics' `rest_scale` at the step of the reduced weights.
        """
        full_W, full_a = self.trained(W), a if self.Q is None else self.Q @ a
        if self.V is not None and self.rest is not None:
            full_W = full_W @ self.V.T
            full_W += self.rest if scale == 1.0 else scale * self.rest
        return full_W, full_a


def reduce(
    problem: Problem, network: Network, hidden: bool = True, inputs: bool = True
) -> Reduction:
    """The reduction on each side where it makes the state smaller; hidden side if `hidden`."""
    coordinates = network.reduced(problem.X, hidden=hidden, inputs=inputs)
    if not coordinates.sides:
        return dense(problem, network)
    (Q, V), _ = coordinates.bases
    assert not isinstance(V, Columns)
    rest, _ = coordinates.rest
    if V is not None:
        assert problem.theta_star is not None
        problem = Problem(coordinates.X, problem.y, problem.theta_star @ V)
    return Reduction(problem, coordinates.model.W, coordinates.model.a, Q, V, rest)


def dense(problem: Problem, network: Network) -> Reduction:
    """No reduction: the state is the network itself."""
    return Reduction(problem, network.W.copy(), network.a.copy(), None, None, None)
