"""The formulas of the recorded quantities of a two-layer linear network.

`FORMULAS` maps each name in the table of run/quantities.py to a function of one `View`: a stack of
B networks, any mixture of steps and replicas of one run, which share the cost of a call.

Measures of curvature have their formulas in measures.py, a user's own observables in asked.py.

All are computed in reduced coordinates (reduction.py): the trained part of neuron i is row i of
Q W, (m, r), and its untrained part, s rest_i, is orthogonal to all training inputs, so that

    |w_i|^2 = |(QW)_i|^2 + s^2 |rest_i|^2,
    <w_i, theta_star> = <(QW)_i, V^T theta_star> + s <rest_i, theta_star>,
    |w_i(t) - w_i(0)|^2 = |(QW)_i - (QW(0))_i|^2 + (1 - s)^2 |rest_i|^2.

The tangent kernel of f = a^T W x is K(x, x') = x^T A x' with A = W^T W + |a|^2 I.  With
G = X^T X, |K_t - K_0|_F^2 = tr(D G D G), D = A_t - A_0, so the n-by-n kernel is never formed; A and
G are r-by-r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.models.curvature import check_dense
from lnsim.models.problem import Problem
from lnsim.models.reduction import Reduction
from lnsim.models.tall import Columns
from lnsim.models.two_layer import Network
from lnsim.run import measures as asked_measures
from lnsim.run import quantities
from lnsim.run.quantities import Axis
from lnsim.simulation import measures
from lnsim.simulation.measures import Constants, Measured


class Frame:
    """The constants of a run: the problem, the reduction, the network at the start, its measures.

    `chosen` are the measures that `lnsim.simulate` is asked for, `batch` the number of samples in a
    batch of the dynamics (0: all).  Raises ValueError or TypeError for unknown measures, and for
    the spectrum of a network that is too large.
    """

    memory: ClassVar[dict[str, FloatArray]] = {}
    """What one record's formulas leave for the next, by name: nothing."""

    in_order: ClassVar = False
    """Whether the networks of a replica must be observed in the order of their steps."""

    def __init__(
        self,
        problem: Problem,
        reduction: Reduction,
        chosen: str | Sequence[str] = asked_measures.NONE,
        batch: int = 1,
    ) -> None:
        assert problem.theta_star is not None
        assert reduction.problem.theta_star is not None
        self.problem = problem
        self.reduction = reduction
        self.theta_star = problem.theta_star
        self.theta_star_norm = float(np.linalg.norm(problem.theta_star))
        self.reduced_theta_star = reduction.problem.theta_star
        self.trained_start = reduction.trained_start
        self.width = self.units = len(self.trained_start)
        self.size = self.trained_start.size
        self.sides = [
            side
            for side, basis in (("hidden", reduction.Q), ("inputs", reduction.V))
            if basis is not None
        ]
        self.wide = isinstance(reduction.Q, Columns)
        self.shrinks = reduction.rest is not None
        self.rest_norm_squared = self.rest_alignment = np.zeros(self.width)
        if reduction.rest is not None:
            self.rest_norm_squared = np.einsum("md,md->m", reduction.rest, reduction.rest)
            self.rest_alignment = reduction.rest @ self.theta_star
            a = reduction.a if reduction.Q is None else reduction.Q @ reduction.a
            self.rest_theta = a @ reduction.rest
            if self.wide:
                assert reduction.Q is not None
                self.rest_in_columns = (reduction.Q.T @ reduction.rest).T
            self.twin_start = reduction.a @ reduction.W
            A = _tangent_matrix(reduction.W[None], reduction.a[None])[0]
            self.rest_response = reduction.rest.T @ self.trained_start @ np.linalg.pinv(A)
        self.lazy_radius = 1.0 / np.sqrt(self.width)
        self.gram = reduction.problem.X.T @ reduction.problem.X
        self.tangent_start = _tangent_matrix(reduction.W[None], reduction.a[None])
        self.kernel_norm = _kernel_norm(self.tangent_start, self.gram)[0]
        # With an untrained part the singular values of W are those of an m-by-d matrix.
        costly = () if reduction.rest is None else ("effective_rank",)
        self.chosen = asked_measures.chosen(quantities.TWO_LAYER, chosen, costly)
        self.measured = Constants(reduction, batch)
        if "hessian_spectrum" in self.chosen:
            check_dense(self.measured.coordinates.model)

    def formulas(
        self, axis: Axis = Axis.RECORD, *, of_neurons: bool = False, needs: str = ""
    ) -> dict[str, Callable[[Any], FloatArray]]:
        """The formulas, by name, of the quantities in the table with these properties."""
        names = quantities.names(quantities.TWO_LAYER, axis, of_neurons=of_neurons, needs=needs)
        recorded_formulas = {name: FORMULAS[name] for name in names if self.records(name)}
        if (axis, of_neurons, needs) == (Axis.RECORD, False, "") and self.problem.classes:
            recorded_formulas |= ACCURACIES
        return recorded_formulas

    def records(self, name: str) -> bool:
        """Whether the quantity is none of the measures, or one of those chosen."""
        return quantities.TABLE[name].needs != asked_measures.NEEDS or name in self.chosen

    def path(self, name: str, tracked: int) -> int:
        """The number of values per record of a quantity of single neurons."""
        return tracked

    def cloud(self, name: str) -> int:
        """The number of values per cloud of a quantity."""
        return self.measured.multiplicity.size if name == "hessian_spectrum" else self.units

    def view(
        self,
        weights: list[FloatArray],
        scale: FloatArray,
        twin: FloatArray,
        replica: NDArray[np.int64],
    ) -> View:
        """The View of B networks with these reduced weights, whichever replicas they are of."""
        W, a = weights
        return View(self, W, a, scale, twin)

    def network(self, weights: list[FloatArray], scale: float) -> Network:
        """The full network, read-only, from reduced weights W : (p, r), a : (p,)."""
        reduced_W, reduced_a = weights
        W, a = self.reduction.lift(reduced_W.copy(), reduced_a.copy(), scale)
        W.flags.writeable = a.flags.writeable = False
        return Network(W, a)

    def final(self, weights: list[FloatArray], scale: float) -> dict[str, FloatArray]:
        """The arrays of the final network, as a trajectory holds them."""
        reduced_W, reduced_a = weights
        W, a = self.reduction.lift(reduced_W, reduced_a, scale)
        return {"final_W": W, "final_a": a}

    def constants(self) -> dict[str, Any]:
        """The arrays of the run that do not depend on training."""
        constants: dict[str, Any] = {"theta_star": self.theta_star}
        if "hessian_spectrum" in self.chosen:
            constants["hessian_multiplicity"] = self.measured.multiplicity
        return constants


class View:
    """B networks: reduced weights W : (B, p, r), a : (B, p), and `scale` : (B,) of Reduction.lift.

    twin_theta : (B, r) are the reduced predictors of their linearised twins.
    """

    def __init__(
        self,
        frame: Frame,
        W: FloatArray,
        a: FloatArray,
        scale: FloatArray,
        twin_theta: FloatArray,
    ) -> None:
        self.frame = frame
        self.twin_theta = twin_theta
        self.reduced_W = W
        self.reduced_a = a
        self.scale = scale

    def only(self, numbers: NDArray[np.int64]) -> View:
        """The networks of these numbers alone, with what is known of their neurons."""
        if len(numbers) == len(self.scale):
            return self
        arrays = self.reduced_W, self.reduced_a, self.scale, self.twin_theta
        view = View(self.frame, *(array[numbers] for array in arrays))
        if "_neurons" in vars(self):
            vars(view)["_neurons"] = tuple(array[numbers] for array in self._neurons)
        return view

    @cached_property
    def second_layer(self) -> FloatArray:
        """a of every network, shape (B, m)."""
        Q = self.frame.reduction.Q
        if self.frame.wide:
            return self._neurons[3]
        return self.reduced_a if Q is None else _apply(Q, self.reduced_a)

    @cached_property
    def theta(self) -> FloatArray:
        """W^T a of every network, shape (B, d)."""
        V, rest = self.frame.reduction.V, self.frame.reduction.rest
        theta = np.matmul(self.reduced_a[:, None, :], self.reduced_W)[:, 0]
        if V is None or rest is None:
            return theta
        if self.frame.wide:  # rest^T (Q a), without the full a
            untrained = _apply(self.frame.rest_in_columns, self.reduced_a)
        else:
            untrained = _apply(rest.T, self.second_layer)
        return _apply(V, theta) + self.scale[:, None] * untrained

    @cached_property
    def linearized_theta(self) -> FloatArray:
        """The predictor of every network's linearised twin, shape (B, d)."""
        V, rest = self.frame.reduction.V, self.frame.reduction.rest
        if V is None or rest is None:
            return self.twin_theta
        frame, shrunk = self.frame, 2.0 * self.scale[:, None] - 1.0
        moved = shrunk * frame.twin_start - self.twin_theta
        untrained = shrunk * frame.rest_theta - _apply(frame.rest_response, moved)
        return _apply(V, self.twin_theta) + untrained

    @cached_property
    def _neurons(self) -> tuple[FloatArray, ...]:
        # Imported here, as Numba takes most of a second to import.
        from lnsim.simulation.neuron_loop import measure_neurons
        from lnsim.simulation.wide_loop import measure_wide

        frame = self.frame
        if frame.wide:
            measured = measure_wide(frame.reduction, self.reduced_W, self.reduced_a)
        else:
            measured = measure_neurons(frame.reduction, self.reduced_W, frame.trained_start)
        norm_squared, alignment, moved_squared, *second_layer = measured
        if frame.reduction.rest is not None:
            scale = self.scale[:, None]
            norm_squared += scale**2 * frame.rest_norm_squared
            alignment += scale * frame.rest_alignment
            moved_squared += (1.0 - scale) ** 2 * frame.rest_norm_squared
        np.sqrt(norm_squared, out=norm_squared)
        np.abs(alignment, out=alignment)
        np.sqrt(moved_squared, out=moved_squared)
        return norm_squared, alignment, moved_squared, *second_layer

    @cached_property
    def measured(self) -> Measured:
        """What the measures are computed from."""
        return Measured(self.frame.measured, self.reduced_W, self.reduced_a, self.scale)

    @property
    def norms(self) -> FloatArray:
        """|w_i| of every neuron, shape (B, m)."""
        return self._neurons[0]

    @property
    def alignments(self) -> FloatArray:
        """|<w_i, theta_star>| of every neuron, shape (B, m)."""
        return self._neurons[1]

    @property
    def displacements(self) -> FloatArray:
        """|w_i(t) - w_i(0)| of every neuron, shape (B, m)."""
        return self._neurons[2]


def _apply(matrix: FloatArray | Columns, vectors: FloatArray) -> FloatArray:
    """`matrix` : (k, l) times each of `vectors` : (B, l), shape (B, k).

    Each vector has its own product, so that its last bit does not depend on the others in a view.
    """
    return (matrix @ vectors[:, :, None])[:, :, 0]


def _tangent_matrix(W: FloatArray, a: FloatArray) -> FloatArray:
    """A = W^T W + |a|^2 I, shape (B, r, r): the tangent kernel is x^T A x'."""
    A = np.matmul(W.transpose(0, 2, 1), W)
    diagonal = np.einsum("bii->bi", A)
    diagonal += np.einsum("bp,bp->b", a, a)[:, None]
    return A


def _kernel_norm(A: FloatArray, gram: FloatArray) -> FloatArray:
    """Frobenius norm of X A X^T, from gram = X^T X, shape (B,)."""
    product = A @ gram
    return np.sqrt(np.maximum(np.einsum("bij,bji->b", product, product), 0.0))


def _loss(X: FloatArray | None, y: FloatArray | None, theta: FloatArray) -> FloatArray:
    """(1/2n) sum (<theta, x_i> - y_i)^2, shape (B,); NaN without data."""
    if X is None or y is None:
        return np.full(len(theta), np.nan)
    residuals = _apply(X, theta) - y
    return 0.5 * np.einsum("bn,bn->b", residuals, residuals) / residuals.shape[1]


def train_loss(view: View) -> FloatArray:
    """(1/2n) sum (f(x_i) - y_i)^2 on the clean training labels."""
    return _loss(view.frame.problem.X, view.frame.problem.y, view.theta)


def test_loss(view: View) -> FloatArray:
    """The same on the test set; NaN for a problem without one."""
    return _loss(view.frame.problem.X_test, view.frame.problem.y_test, view.theta)


def linearized_train_loss(view: View) -> FloatArray:
    """train_loss of the linearised twin."""
    return _loss(view.frame.problem.X, view.frame.problem.y, view.linearized_theta)


def linearized_test_loss(view: View) -> FloatArray:
    """test_loss of the linearised twin."""
    return _loss(view.frame.problem.X_test, view.frame.problem.y_test, view.linearized_theta)


def norm_mean(view: View) -> FloatArray:
    """(1/m) sum |w_i|."""
    return view.norms.mean(axis=1)


def norm_squared(view: View) -> FloatArray:
    """|W|_F^2."""
    return np.einsum("bm,bm->b", view.norms, view.norms)


def reduced_norm_squared(view: View) -> FloatArray:
    """The same but for rounding, of the reduced W, as Q has orthonormal columns, and the rest."""
    trained = np.einsum("bpr,bpr->b", view.reduced_W, view.reduced_W)
    return trained + view.scale**2 * view.frame.rest_norm_squared.sum()


def second_layer_norm(view: View) -> FloatArray:
    """|a|."""
    return np.sqrt(np.einsum("bp,bp->b", view.reduced_a, view.reduced_a))


def alignment_mean(view: View) -> FloatArray:
    """(1/m) sum |<w_i, theta_star>|."""
    return view.alignments.mean(axis=1)


def cosine_mean(view: View) -> FloatArray:
    """(1/m) sum |cos(w_i, theta_star)|; a neuron or theta_star of norm 0 counts as 0."""
    scale = view.norms * view.frame.theta_star_norm
    scale[scale == 0.0] = np.inf
    return (view.alignments / scale).mean(axis=1)


def interpolator_distance(view: View) -> FloatArray:
    """|theta - theta_star|."""
    return np.linalg.norm(view.theta - view.frame.theta_star, axis=1)


def lazy_fraction(view: View) -> FloatArray:
    """Share of neurons with |w_i(t) - w_i(0)| <= 1/sqrt(m) (Definition 1)."""
    return (view.displacements <= view.frame.lazy_radius).mean(axis=1)


def ntk_distance(view: View) -> FloatArray:
    """|K_t - K_0|_F / |K_0|_F on the training inputs."""
    frame = view.frame
    change = _tangent_matrix(view.reduced_W, view.reduced_a) - frame.tangent_start
    return _kernel_norm(change, frame.gram) / frame.kernel_norm


def _accuracy(X: FloatArray | None, y: FloatArray | None, view: View) -> FloatArray:
    """Share of samples with <theta, x> on the side of the label -1 or 1; NaN without data."""
    if X is None or y is None:
        return np.full(len(view.theta), np.nan)
    return np.asarray(((_apply(X, view.theta) > 0.0) == (y > 0.0)).mean(axis=1))


ACCURACIES: dict[str, Callable[[View], FloatArray]] = {
    "train_accuracy": lambda v: _accuracy(v.frame.problem.X, v.frame.problem.y, v),
    "test_accuracy": lambda v: _accuracy(v.frame.problem.X_test, v.frame.problem.y_test, v),
}
"""What is recorded besides where all labels are -1 or 1."""


def _of_view(formula: Callable[[Measured], FloatArray]) -> Callable[[View], FloatArray]:
    return lambda view: formula(view.measured)


FORMULAS: dict[str, Callable[[View], FloatArray]] = {
    function.__name__: function
    for function in (
        train_loss,
        test_loss,
        linearized_train_loss,
        linearized_test_loss,
        norm_mean,
        norm_squared,
        second_layer_norm,
        alignment_mean,
        cosine_mean,
        interpolator_distance,
        lazy_fraction,
        ntk_distance,
    )
} | {
    "tracked_norm": lambda view: view.norms,
    "tracked_alignment": lambda view: view.alignments,
    "tracked_second_layer": lambda view: view.second_layer,
    "cloud_norm": lambda view: view.norms,
    "cloud_alignment": lambda view: view.alignments,
    **{name: _of_view(formula) for name, formula in measures.FORMULAS.items()},
}
"""Each returns one number per network, (B,), or one per neuron, (B, m): see Quantity."""
