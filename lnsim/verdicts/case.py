"""A setting of the two-layer linear network, with its run if there is one, as theory sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.experiments.label_noise import Config
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.run.record import Ending
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import modes, paper


def config_of(trajectory: Trajectory) -> Config:
    """The configuration a run was made with.  Raises ValueError as `table` does."""
    check_synthetic(trajectory.config)
    known = {field.name for field in fields(Config)}
    values = {key: value for key, value in trajectory.config.items() if key in known}
    return Config(**{"sigma": 0.0, **values})


def check_synthetic(config: Mapping[str, object]) -> None:
    missing = [key for key in ("samples", "dim", "width", "lr") if key not in config]
    if missing:
        raise ValueError(
            "the theory is of two-layer linear networks made by an experiment; this run "
            f"({config.get('experiment', 'simulation')}) has no {' and no '.join(missing)}"
        )


@dataclass(frozen=True)
class Case:
    """A setting, the problem and network made from it, and a run of it or None."""

    config: Config
    problem: Problem
    network: Network
    trajectory: Trajectory | None

    @property
    def theta_star(self) -> FloatArray:
        assert self.problem.theta_star is not None
        return self.problem.theta_star

    @property
    def theta_norm(self) -> float:
        return math.hypot(*self.theta_star)  # whose squares a float need not hold

    @property
    def length(self) -> int:
        """Steps of the run: of those taken if there is one, else of those configured."""
        return self.config.steps if self.trajectory is None else self.trajectory.status.step

    @property
    def experiment(self) -> str:
        run = {} if self.trajectory is None else self.trajectory.config
        return str(run.get("experiment", "label-noise"))

    @property
    def gaps(self) -> list[str]:
        """What in the setting no statement covers."""
        gaps = [] if self.experiment == "label-noise" else [f"the dynamics of {self.experiment}"]
        gaps += ["momentum"] if self.config.momentum > 0 else []
        return gaps + (["weight decay"] if self.config.weight_decay > 0 else [])

    @property
    def finished(self) -> Trajectory | None:
        """The run, unless it diverged."""
        run = self.trajectory
        return run if run is not None and run.status.code != Ending.DIVERGED else None

    def phase(self, name: str) -> float:
        """A measured time, NaN where there is none."""
        return math.nan if self.trajectory is None else first_replica(self._phases, name)

    @cached_property
    def _phases(self) -> object:
        return None if self.trajectory is None else self.trajectory.phases()

    def last(self, name: str) -> float:
        """The last record of a series, NaN where there is none or the run diverged."""
        return math.nan if self.finished is None else float(series(self.finished, name)[-1])

    @cached_property
    def curve(self) -> modes.ModeCurve | str:
        """The law of modes at every record, or why there is no such curve."""
        steps = np.unique(np.linspace(0, self.length, 201).round())
        if self.trajectory is not None:
            steps = self.trajectory.steps.astype(np.float64)
        config, network = self.config, self.network
        try:
            return modes.integrate_modes(
                self.problem.X, self.theta_star, network.W, network.a,
                config.lr, config.sigma, steps, config.batch_size,
            )  # fmt: skip
        except (ValueError, ArithmeticError) as error:
            return str(error)

    @cached_property
    def stationary(self) -> tuple[float, float]:
        """|W|_F^2 and |a|^2 at rest, with what of W no training input reaches."""
        X, W = self.problem.X, self.network.W
        first, second = paper.stationary_norms(self.theta_star, X.T @ X / len(X))
        outside = float(np.sum(W**2) - np.sum((W @ np.linalg.pinv(X) @ X) ** 2))
        return max(0.0, first + outside), second  # outside may round to below 0

    @property
    def premise(self) -> str:
        """Why Phase II as the paper defines it does not begin, or nothing if it may."""
        at_rest = math.sqrt(self.stationary[0] / self.config.width)
        if self.config.sigma == 0:
            return "no label noise: the neurons stay large"
        if at_rest <= paper.phase_two_threshold(self.config.lr):
            return ""
        return f"the neurons rest at |w_i| = {at_rest:.3g}: T2, T3, Lemmas 5 and 6 are vacuous"


def series(run: Trajectory, name: str) -> FloatArray:
    """A recorded series, (records,); of an ensemble, the first replica's."""
    return run[name] if run[name].ndim == 1 else run[name][0]


def first_replica(phases: object, name: str) -> float:
    """A measured time; of an ensemble, the first replica's."""
    return float(np.ravel(getattr(phases, name))[0])
