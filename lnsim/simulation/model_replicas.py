"""All that moves while a run of any model trains: S replicas of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import LinearEngine, ModelState, Segment
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics
from lnsim.dynamics.draws import Sizes, Targets, drawn
from lnsim.models.base import Coordinates, Model
from lnsim.models.problem import Problem
from lnsim.simulation.replicas import Moving

NUMBERS_PER_WORD = 4
"""Target entries held at a time, at most, per word held at a time (Moving.room)."""


@dataclass
class ModelReplicas(Moving):
    """The replicas of one run, in reduced coordinates, updated in place."""

    state: ModelState
    coordinates: Coordinates[Model]
    sizes: Sizes
    targets: Targets
    twin: None = None
    ledger: None = None

    weights = ("theta",)

    @classmethod
    def start(
        cls,
        coordinates: Coordinates[Model],
        problem: Problem,
        dynamics: Dynamics,
        sizes: Sizes,
        count: int,
    ) -> ModelReplicas:
        """`count` copies of the reduced model, at rest."""
        theta = np.repeat(coordinates.model.flat[None], count, axis=0)
        perturbed = dynamics.parameter_noise is not None
        drawn_once = 0 if dynamics.replacement else sizes.samples
        state = ModelState(
            theta,
            velocity=np.zeros_like(theta),
            last=np.zeros((count, theta.shape[1] if perturbed else 0)),
            order=np.zeros((count, drawn_once), dtype=np.int64),
            diverged_at=np.full(count, -1, dtype=np.int64),
        )
        of_samples = _of_outputs(problem.targets(problem.y), sizes.outputs)
        targets = Targets(of_samples)
        if problem.classes is not None:
            of_classes = _of_outputs(problem.class_targets, sizes.outputs)
            targets = Targets(of_samples, problem.labels(problem.y), of_classes)
        return cls(state, coordinates, sizes, targets)

    def room(self, dynamics: Dynamics, draws: int, step: int) -> int:
        """As many as the words and the numbers to compare with allow."""
        numbers = (dynamics.batch_size or self.sizes.samples) * self.sizes.outputs
        return super().room(dynamics, max(draws, numbers // NUMBERS_PER_WORD), step)

    def train(
        self,
        engine: LinearEngine,
        problem: Problem,
        dynamics: Dynamics,
        words: NDArray[np.uint64],
        first_step: int,
        factors: tuple[FloatArray | None, FloatArray | None],
    ) -> None:
        """See Moving."""
        draws = drawn(
            dynamics, self.sizes, words, self.targets, self.state.order, first_step, factors
        )
        model, X = self.coordinates.model, self.coordinates.X
        segment = Segment(model, X, problem.loss, dynamics, draws, words.shape[1], first_step)
        engine.train(self.state, segment)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, not copied."""
        return dict(vars(self.state))


def _of_outputs(targets: FloatArray, outputs: int) -> FloatArray:
    """Targets (n, classes) of a network with `outputs` >= classes: 0 for the outputs without one.

    Only cross-entropy has more outputs than its labels have classes.
    """
    return np.pad(targets, ((0, 0), (0, outputs - targets.shape[1])))
