"""What is recorded of any model under any loss, each quantity with its formula.

As simulation/observables.py for the two-layer network with one output, whose numbers it repeats
there.  With several outputs, a neuron's alignment is |Theta* w_i| for Theta* : (C, d), and its
cosine that of the angle to the rows' span: |P w_i| / |w_i|, P the projector on it.

The tangent kernel of f = A W x between (x, c) and (x', c') is

    K = delta_cc' x^T W^T W x' + (A A^T)_cc' x^T x',

so that for changes D of W^T W and N of A A^T, with P = X D X^T and G = X X^T,
|K_t - K_0|_F^2 = C |P|^2 + 2 tr(N) <P, G> + |N|^2 |G|^2; all of it through X^T X.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics
from lnsim.models.base import Coordinates, Model
from lnsim.models.curvature import Curvature, check_dense, multiplicities
from lnsim.models.problem import Problem
from lnsim.run import measures, quantities
from lnsim.run.quantities import Axis
from lnsim.theory.flatness import effective_rank


class ModelFrame:
    """What stays fixed along a run: the problem, the coordinates, the model at the start, measures.

    `chosen` are the measures that `lnsim.simulate` is asked for, `dynamics` says how batches are
    drawn, `replicas` is the number of models that are trained.  Raises ValueError or TypeError for
    unknown measures, and for the spectrum of a model that is too large.
    """

    wide: ClassVar = False
    """See Frame: every model has all networks lifted whole."""

    def __init__(
        self,
        problem: Problem,
        coordinates: Coordinates[Model],
        model: Model,
        dynamics: Dynamics,
        replicas: int = 1,
        chosen: str | Sequence[str] = measures.NONE,
    ) -> None:
        self.problem = problem
        self.coordinates = coordinates
        self.model = model
        self.theta_star = problem.theta_star
        self.start = model.neurons
        self.size = model.size
        self.name = quantities.of_kernel(model.kernel)
        self.units = model.dim if model.kernel == "diagonal" else len(self._neurons)
        self.lazy_radius = 0.0 if self.start is None else 1.0 / np.sqrt(len(self.start))
        self.sides = list(coordinates.sides)
        self.shrinks = any(rest is not None for rest in coordinates.rest)
        self.batch = dynamics.batch_size, dynamics.replacement
        costly = ("effective_rank",) if self.shrinks else ()
        self.chosen = measures.chosen(self.name, chosen, costly)
        if "hessian_spectrum" in self.chosen:
            check_dense(coordinates.model)
        # Lanczos starts from the last record's eigenvector.
        self.in_order = "sharpness" in self.chosen
        self.memory: dict[str, FloatArray] = {}
        if self.in_order:
            self.memory["sharpest"] = np.zeros((replicas, coordinates.model.size))

    @property
    def _neurons(self) -> FloatArray:
        return np.empty((0, 0)) if self.start is None else self.start

    @cached_property
    def directions(self) -> FloatArray:
        """Orthonormal rows that span those of Theta* : (C, d)."""
        assert self.theta_star is not None
        _, singular, Vt = np.linalg.svd(np.atleast_2d(self.theta_star), full_matrices=False)
        return np.asarray(Vt[singular > singular.max(initial=0.0) * 1e-12])

    @cached_property
    def gram(self) -> FloatArray:
        """X^T X, shape (d, d)."""
        return self.problem.X.T @ self.problem.X

    def formulas(
        self, axis: Axis = Axis.RECORD, *, of_neurons: bool = False, needs: str = ""
    ) -> dict[str, Callable[[Any], FloatArray]]:
        """The quantities that are recorded so of this model on this problem."""
        names = quantities.names(self.name, axis, of_neurons=of_neurons, needs=needs)
        given = {
            "": True,
            "theta_star": self.theta_star is not None,
            "classes": self.problem.classes is not None,
        }
        rows = [row for row in map(quantities.TABLE.get, names) if row is not None]
        return {
            row.name: FORMULAS[row.name]
            for row in rows
            if given[row.given] and (row.needs != measures.NEEDS or row.name in self.chosen)
        }

    def cloud(self, name: str) -> int:
        """The number of values per cloud of a quantity."""
        if name == "hessian_spectrum":
            return multiplicities(self.coordinates).size
        return self.units

    def path(self, name: str, tracked: int) -> int:
        """The number of values at every record of a quantity of neurons or singular values."""
        return min(self.model.outputs, self.model.dim) if name == "singular_values" else tracked

    def view(
        self,
        weights: list[FloatArray],
        scale: FloatArray,
        twin: FloatArray,
        replica: NDArray[np.int64],
    ) -> ModelView:
        """B models of reduced parameters theta : (B, P); `scale` : (B,) of Coordinates.lift."""
        return ModelView(self, weights[0], scale, replica)

    def network(self, weights: list[FloatArray], scale: float) -> Model:
        """The full model of reduced parameters theta : (P,), read-only."""
        model = self.coordinates.lift(weights[0].copy(), scale)
        for array in model.parameters.values():
            array.flags.writeable = False
        return model

    def final(self, weights: list[FloatArray], scale: float) -> dict[str, FloatArray]:
        """The arrays that a trajectory has of the last model."""
        parameters = self.coordinates.lift(weights[0], scale).parameters
        return {f"final_{name}": array for name, array in parameters.items()}

    def constants(self) -> dict[str, Any]:
        """The arrays of the run that are known at its start."""
        about = {"model": np.array(json.dumps(self.model.about()))}
        if "hessian_spectrum" in self.chosen:
            about["hessian_multiplicity"] = multiplicities(self.coordinates)
        return about if self.theta_star is None else about | {"theta_star": self.theta_star}


class ModelView:
    """B models of these `replica` numbers, `scale` : (B,) what their rests are multiplied by."""

    def __init__(
        self,
        frame: ModelFrame,
        theta: FloatArray,
        scale: FloatArray,
        replica: NDArray[np.int64],
    ) -> None:
        self.frame = frame
        self.theta, self.replica = theta, replica
        self.models = [
            frame.coordinates.lift(one, float(s)) for one, s in zip(theta, scale, strict=True)
        ]

    def only(self, numbers: NDArray[np.int64]) -> ModelView:
        """The models of these numbers alone."""
        view = ModelView(self.frame, self.theta[:0], np.empty(0), self.replica[numbers])
        view.theta = self.theta[numbers]
        view.models = [self.models[b] for b in numbers]
        return view

    @cached_property
    def curvatures(self) -> list[Curvature]:
        """The loss near every model, in reduced coordinates."""
        frame = self.frame
        return [
            Curvature(frame.coordinates.model.from_flat(one), frame.problem, frame.coordinates.X)
            for one in self.theta
        ]

    @cached_property
    def neurons(self) -> FloatArray:
        """W of every model, shape (B, m, d)."""
        arrays = [model.neurons for model in self.models]
        return np.stack([array for array in arrays if array is not None])

    @cached_property
    def norms(self) -> FloatArray:
        """|w_i| of every neuron, shape (B, m)."""
        return np.linalg.norm(self.neurons, axis=2)

    @cached_property
    def displacements(self) -> FloatArray:
        """|w_i(t) - w_i(0)| of every neuron, shape (B, m)."""
        return np.linalg.norm(self.neurons - self.frame._neurons, axis=2)

    @cached_property
    def alignments(self) -> FloatArray:
        """|Theta* w_i| of every neuron, shape (B, m)."""
        assert self.frame.theta_star is not None
        return np.linalg.norm(self.neurons @ np.atleast_2d(self.frame.theta_star).T, axis=2)

    @property
    def second_layers(self) -> FloatArray:
        """The weights that go out of every neuron: a_i, or |A_i| for several outputs, (B, m)."""
        layers = [np.atleast_2d(list(model.parameters.values())[1]) for model in self.models]
        return np.stack([A[0] if len(A) == 1 else np.linalg.norm(A, axis=0) for A in layers])

    def predictions(self, X: FloatArray) -> FloatArray:
        """f of every row of X, shape (B, n, C)."""
        if self.frame.model.predictor is None:
            return np.stack([model.predict(X) for model in self.models])
        return np.matmul(X, self.predictors.transpose(0, 2, 1))

    @cached_property
    def train_predictions(self) -> FloatArray:
        """f of the training inputs."""
        return self.predictions(self.frame.problem.X)

    @cached_property
    def test_predictions(self) -> FloatArray | None:
        """f of the test inputs, or None where there are none."""
        X = self.frame.problem.X_test
        return None if X is None else self.predictions(X)

    @cached_property
    def predictors(self) -> FloatArray:
        """Theta of every model, shape (B, C, d)."""
        arrays = [model.predictor for model in self.models]
        return np.stack([array for array in arrays if array is not None])

    def of_test(self, function: Callable[[FloatArray, FloatArray], Any]) -> FloatArray:
        """The mean over the test samples of function(f, y), (B,); NaN where there are none."""
        if self.test_predictions is None or self.frame.problem.y_test is None:
            return np.full(len(self.models), np.nan)
        return np.asarray(function(self.test_predictions, self.frame.problem.y_test).mean(axis=1))


def _interpolator_distance(view: ModelView) -> FloatArray:
    """|Theta - Theta*|_F."""
    assert view.frame.theta_star is not None
    return np.linalg.norm(view.predictors - view.frame.theta_star, axis=(1, 2))


def _cosine_mean(view: ModelView) -> FloatArray:
    norms = np.where(view.norms > 0.0, view.norms, np.inf)
    along = np.linalg.norm(view.neurons @ view.frame.directions.T, axis=2)
    return np.asarray((along / norms).mean(axis=1))


def _effective_nonzeros(view: ModelView) -> FloatArray:
    """0 for beta = 0."""
    beta = view.predictors[:, 0]
    squares = np.square(beta).sum(axis=1)
    return np.abs(beta).sum(axis=1) ** 2 / np.where(squares > 0.0, squares, np.inf)


def _ntk_distance(view: ModelView) -> FloatArray:
    frame = view.frame
    start = _kernel_parts(frame.model)
    norm = _kernel_norm(*start, frame.gram)
    changes = [_kernel_parts(model) for model in view.models]
    moved = [_kernel_norm(D - start[0], N - start[1], frame.gram) for D, N in changes]
    return np.array(moved) / (norm or np.nan)


def _kernel_parts(model: Model) -> tuple[FloatArray, FloatArray]:
    """W^T W and A A^T."""
    W, A = model.parameters.values()
    A = np.atleast_2d(A)
    return W.T @ W, A @ A.T


def _kernel_norm(D: FloatArray, N: FloatArray, gram: FloatArray) -> float:
    """|I (x) X D X^T + N (x) X X^T|_F."""
    product = D @ gram
    square = (
        len(N) * np.sum(product * product.T)
        + 2.0 * np.trace(N) * np.sum(product * gram.T)
        + np.sum(N * N) * np.sum(gram * gram)
    )
    return float(np.sqrt(max(square, 0.0)))


def _singular_values(view: ModelView) -> FloatArray:
    finite = np.nan_to_num(view.predictors, posinf=0.0, neginf=0.0)
    return np.asarray(np.linalg.svd(finite, compute_uv=False))


def _train_loss(view: ModelView) -> FloatArray:
    """The mean loss over the training samples, clean labels."""
    problem = view.frame.problem
    return np.asarray(problem.losses(view.train_predictions, problem.y).mean(axis=1))


def _train_accuracy(view: ModelView) -> FloatArray:
    """The share of training samples that are classified rightly."""
    problem = view.frame.problem
    return problem.correct(view.train_predictions, problem.y).mean(axis=1)


def _sharpness(view: ModelView) -> FloatArray:
    """By Lanczos, from the last record's eigenvector and a part of all other directions."""
    last = view.frame.memory["sharpest"]
    noise = np.random.default_rng(0).standard_normal(last.shape[1])
    values = []
    for curvature, s in zip(view.curvatures, view.replica.tolist(), strict=True):
        value, last[s] = curvature.sharpness(last[s] + noise / (10.0 * np.linalg.norm(noise)))
        values.append(value)
    return np.array(values)


def _flatness_gap(view: ModelView) -> FloatArray:
    """NaN under other losses than the squared one, and for models without a formula."""
    problem = view.frame.problem
    if problem.loss != "squared":
        return np.full(len(view.models), np.nan)
    least = np.array([model.least_trace(problem.gram) for model in view.models])
    trace = np.array([curvature.gauss_newton_trace for curvature in view.curvatures])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(trace / least)


def _of_small(view: ModelView) -> list[Model]:
    """Models of the same ranks and balance: the reduced ones, if those are all that there is."""
    if view.frame.shrinks:
        return view.models
    return [curvature.model for curvature in view.curvatures]


def _effective_rank(view: ModelView) -> FloatArray:
    """Of the first layer."""
    return _ranks([next(iter(model.parameters.values())) for model in _of_small(view)])


def _ranks(matrices: Iterable[FloatArray]) -> FloatArray:
    """Effective ranks; NaN for matrices that are not finite."""
    singular = [
        np.linalg.svd(W, compute_uv=False) if np.isfinite(W).all() else np.full(1, np.nan)
        for W in matrices
    ]
    return np.array([float(effective_rank(values)) for values in singular])


def _support(view: ModelView) -> FloatArray:
    beta = np.abs(view.predictors[:, 0])
    return (beta > 0.01 * beta.max(axis=1, keepdims=True)).sum(axis=1).astype(np.float64)


FORMULAS: dict[str, Callable[[ModelView], FloatArray]] = {
    "train_loss": _train_loss,
    "test_loss": lambda view: view.of_test(view.frame.problem.losses),
    "train_accuracy": _train_accuracy,
    "test_accuracy": lambda view: view.of_test(view.frame.problem.correct),
    "norm_mean": lambda view: view.norms.mean(axis=1),
    "norm_squared": lambda view: np.square(view.norms).sum(axis=1),
    "second_layer_norm": lambda view: np.linalg.norm(view.second_layers, axis=1),
    "alignment_mean": lambda view: view.alignments.mean(axis=1),
    "cosine_mean": _cosine_mean,
    "interpolator_distance": _interpolator_distance,
    "lazy_fraction": lambda view: (view.displacements <= view.frame.lazy_radius).mean(axis=1),
    "ntk_distance": _ntk_distance,
    "parameter_norm": lambda view: np.array([np.linalg.norm(m.flat) for m in view.models]),
    "effective_nonzeros": _effective_nonzeros,
    "singular_values": _singular_values,
    "tracked_norm": lambda view: view.norms,
    "tracked_alignment": lambda view: view.alignments,
    "tracked_second_layer": lambda view: view.second_layers,
    "tracked_beta": lambda view: view.predictors[:, 0],
    "cloud_norm": lambda view: view.norms,
    "cloud_alignment": lambda view: view.alignments,
    "cloud_beta": lambda view: view.predictors[:, 0],
    "sharpness": _sharpness,
    "hessian_trace": lambda view: np.array([c.trace for c in view.curvatures]),
    "flatness_gap": _flatness_gap,
    "kernel_alignment": lambda view: np.array([c.alignment for c in view.curvatures]),
    "effective_rank": _effective_rank,
    "predictor_rank": lambda view: _ranks(view.predictors),
    "balancedness": lambda view: np.array([model.balancedness for model in _of_small(view)]),
    "gradient_noise": lambda view: np.array([c.noise for c in view.curvatures]),
    "batch_sharpness": lambda view: np.array(
        [c.batch_sharpness(*view.frame.batch) for c in view.curvatures]
    ),
    "support": _support,
    "l1_norm": lambda view: np.abs(view.predictors[:, 0]).sum(axis=1),
    "hessian_spectrum": lambda view: np.stack(
        [c.spectrum(view.frame.coordinates) for c in view.curvatures]
    ),
}
"""One number of every model, (B,), or of every neuron of each, (B, m): see Quantity."""
