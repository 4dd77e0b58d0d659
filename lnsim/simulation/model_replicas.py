"""All that moves while a run of any model trains: S replicas of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import LinearEngine, ModelState
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics, ParameterNoise, Schedule
from lnsim.dynamics.draws import Sizes, drawn
from lnsim.models.base import Coordinates, Model
from lnsim.models.problem import Problem
from lnsim.simulation.replicas import Moving
from lnsim.streams import WordStream

NUMBERS_PER_WORD = 4
"""Numbers to compare with that are held at a time, for each word that may be (Moving.room)."""


@dataclass
class ModelReplicas(Moving):
    """The replicas of one run, in reduced coordinates, updated in place.

    `targets`, `labels`, `class_targets` are those of Problem, of the training samples.
    """

    state: ModelState
    coordinates: Coordinates[Model]
    problem: Problem
    sizes: Sizes
    targets: FloatArray
    labels: NDArray[np.int64] | None
    class_targets: FloatArray | None
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
        perturbed = any(isinstance(noise, ParameterNoise) for noise in dynamics.noises)
        drawn_once = 0 if dynamics.replacement else sizes.samples
        state = ModelState(
            theta,
            velocity=np.zeros_like(theta),
            last=np.zeros((count, theta.shape[1] if perturbed else 0)),
            order=np.zeros((count, drawn_once), dtype=np.int64),
            diverged_at=np.full(count, -1, dtype=np.int64),
        )
        classes = problem.classes is not None
        return cls(
            state,
            coordinates,
            problem,
            sizes,
            _of_outputs(problem.targets(problem.y), sizes.outputs),
            problem.labels(problem.y) if classes else None,
            _of_outputs(problem.class_targets, sizes.outputs) if classes else None,
        )

    def advance(
        self,
        engine: LinearEngine,
        problem: Problem,
        dynamics: Schedule,
        stream: WordStream,
        draws: int,
        step: int,
        most: int,
    ) -> int:
        """Takes at most `most` steps from `step`, as many as go at once; returns how many."""
        now, until = dynamics.at(step)
        numbers = (now.batch_size or self.sizes.samples) * self.sizes.outputs
        count = min(most, until - step, self.room(max(draws, numbers // NUMBERS_PER_WORD)))
        words = stream.take(count * draws).reshape(len(self), count, draws)
        given = drawn(
            now, self.sizes, words, self.targets, self.labels, self.class_targets,
            self.state.order, step, dynamics.factors(step, count),
        )  # fmt: skip
        engine.train(
            self.state, self.coordinates.model, self.coordinates.X, problem.loss, now, given,
            count, step,
        )  # fmt: skip
        return count

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, not copied."""
        return dict(vars(self.state))


def _of_outputs(targets: FloatArray, outputs: int) -> FloatArray:
    """Targets (n, classes) of a network with `outputs` >= classes: 0 for the outputs without one.

    Only cross-entropy has more outputs than its labels have classes.
    """
    return np.pad(targets, ((0, 0), (0, outputs - targets.shape[1])))
