"""A setting of the two-layer linear network, its start, and the predictions of theory for it.

The paper's statements and the law of modes are about label noise SGD, as which they read every
setting: without label noise sigma is 0.  `gaps`, `beyond_noise` and `covered_noise` say which
settings they do not cover.  The law of the cloud takes `dynamics`, SAM too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Schedule
from lnsim.experiments import _synthetic
from lnsim.experiments._synthetic import LinearConfig, NoisyConfig, config_of, series
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.run.phases import Phases
from lnsim.run.record import Ending
from lnsim.run.times import Times, of_course
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import cloud, flatness, modes, paper
from lnsim.theory.whole import Whole, whole

DRAWN = 120
"""Records at which the law of the cloud is drawn, at most, besides those of the clouds."""
LARGEST_EXPANSION = 1.0
"""The law of modes predicts nothing if its small parameter is larger (modes.py)."""


@dataclass(frozen=True)
class Start:
    """The problem and the network at the start of runs of `config`, made on first use."""

    config: LinearConfig

    @cached_property
    def _pair(self) -> tuple[Problem, Network]:
        return _synthetic.start(self.config)

    @property
    def problem(self) -> Problem:
        return self._pair[0]

    @property
    def network(self) -> Network:
        return self._pair[1]

    @property
    def theta_star(self) -> FloatArray:
        assert self.problem.theta_star is not None
        return self.problem.theta_star

    @cached_property
    def learnt_at_rest(self) -> tuple[float, float]:
        """|W|_F^2 in the span of the training inputs, and |a|^2, at rest.  May raise ValueError."""
        return paper.stationary_norms(self.theta_star, self.problem.gram)

    @cached_property
    def least_trace(self) -> float:
        """The least trace of the Hessian among the networks with the predictor theta*."""
        return float(flatness.least_trace(self.theta_star[None], self.problem.gram))

    @cached_property
    def unreached(self) -> float:
        """|W|_F^2 orthogonal to the training inputs, a constant; rounding may make it negative."""
        X, W = self.problem.X, self.network.W
        return float(np.sum(W**2) - np.sum((W @ (np.linalg.pinv(X) @ X)) ** 2))

    @cached_property
    def curvature(self) -> float:
        """tr(A Sigma), A = W^T W + |a|^2 I: the trace of the mean Hessian near the interpolator."""
        W, a = self.network.W, self.network.a
        A = W.T @ W + float(a @ a) * np.eye(self.problem.dim)
        return float(np.sum(A * self.problem.gram))


@dataclass(frozen=True)
class Case:
    """A setting of `experiment`, its start, and a run of it or None.  Made by the methods `of_...`.

    `rho` is the radius of SAM, 0 without SAM.  Measurements of an ensemble are the first replica's.
    """

    config: NoisyConfig
    start: Start
    experiment: str = "label-noise"
    rho: float = 0.0
    trajectory: Trajectory | None = None

    @classmethod
    def of_setting(cls, config: LinearConfig, experiment: str = "label-noise") -> Case:
        """A case without a run.  Raises ValueError or TypeError for what a run would refuse.

        Raises ValueError for an experiment of which no theory is derived.
        """
        case = cls.of_keys(experiment, vars(config))
        case.dynamics.at(0)  # made, and so checked
        checks.integer("steps", config.steps, 0, checks.MOST_STEPS)
        checks.integer("record_every", config.record_every, 1)
        return case

    @classmethod
    def of_keys(cls, experiment: str, keys: Mapping[str, Any], start: Start | None = None) -> Case:
        """A case from the keys of an experiment's configuration; keys unknown here are ignored.

        `start` may be that of another case with the same sizes, seed and theta_norm.
        """
        config = config_of(NoisyConfig, {"sigma": 0.0, **keys})
        return cls(config, start or Start(config), experiment, keys.get("rho", 0.0))

    @classmethod
    def of_run(cls, trajectory: Trajectory) -> Case:
        """The case of a run.  Raises ValueError if the run is not of a two-layer linear network."""
        keys = trajectory.config
        if "model" in trajectory.arrays:
            raise ValueError(
                "the theory is of two-layer linear networks with one output, squared loss and plain"
                f" label noise; this run ({keys.get('experiment', 'simulation')}) is of any model"
            )
        missing = [key for key in ("samples", "dim", "width", "lr") if key not in keys]
        if missing:
            raise ValueError(
                "the theory is of two-layer linear networks made by an experiment; this run "
                f"({keys.get('experiment', 'simulation')}) has no {' and no '.join(missing)}"
            )
        config = config_of(NoisyConfig, {"sigma": 0.0, **keys})
        experiment = str(keys.get("experiment", "label-noise"))
        return cls(config, Start(config), experiment, keys.get("rho", 0.0), trajectory)

    # The setting

    @property
    def theta_norm(self) -> float:
        return math.hypot(*self.start.theta_star)  # hypot: the squares may overflow

    @property
    def length(self) -> int:
        """Number of steps that the run took; without a run, the configured number."""
        return self.config.steps if self.trajectory is None else self.trajectory.status.step

    @property
    def gaps(self) -> list[str]:
        """The parts of the setting that no statement covers."""
        gaps = [] if self.experiment == "label-noise" else [f"the dynamics of {self.experiment}"]
        gaps += ["momentum"] if self.config.momentum > 0 else []
        return gaps + (["weight decay"] if self.config.weight_decay > 0 else [])

    @property
    def beyond_noise(self) -> str:
        """Why the paper's statements on label noise do not cover the setting, or ""."""
        if self.config.batch_size > 1:
            return "stated for one sample a step"
        return "" if self.config.law == "rademacher" else "stated for noise of +sigma or -sigma"

    @property
    def covered_noise(self) -> float | None:
        """sigma if the statements on label noise cover the setting, else None.

        SAM without rho is label noise SGD.
        """
        config = self.config
        plain = (
            self.experiment in ("label-noise", "sam")
            and config.law == "rademacher"
            and config.batch_size == 1
            and not (self.rho or config.momentum or config.weight_decay)
        )
        return config.sigma if plain else None

    # What the paper says

    @cached_property
    def conditions(self) -> tuple[paper.Condition, ...]:
        """Condition 1."""
        config, start = self.config, self.start
        return paper.condition_1(start.problem.X, start.theta_star, config.width, config.lr)

    @property
    def escape_bound(self) -> float:
        """T_1 of Theorem 2; NaN for a width of 1, where it is undefined."""
        config = self.config
        if config.width < 2:
            return math.nan
        return paper.lazy_escape_bound(config.width, config.lr, config.sigma)

    @property
    def lemma_3(self) -> paper.Lemma3:
        return paper.lemma_3(self.config.width, self.config.dim, self.config.sigma)

    @property
    def lemma_4(self) -> paper.Lemma4:
        return paper.lemma_4(self.config.lr)

    @property
    def premise(self) -> str:
        """Why Phase II, as the paper defines it, cannot begin, or "" if it can."""
        at_rest = math.sqrt(self.stationary[0] / self.config.width)
        if self.config.sigma == 0:
            return "no label noise: the neurons stay large"
        if at_rest <= paper.phase_two_threshold(self.config.lr):
            return ""
        return f"the neurons rest at |w_i| = {at_rest:.3g}: T2, T3, Lemmas 5 and 6 are vacuous"

    # What the law of modes says

    @property
    def stationary(self) -> tuple[float, float]:
        """|W|_F^2 and |a|^2 at rest, with the part of W orthogonal to the training inputs."""
        first, second = self.start.learnt_at_rest
        return max(0.0, first + self.start.unreached), second

    @property
    def decay_time(self) -> float:
        """The time in which |W|_F^2 falls by e, at leading order."""
        return paper.decay_time(self.config.lr, self.config.sigma)

    @property
    def instability(self) -> float:
        """(lr/2) tr(A Sigma) at the start: from 1 on the loss noise amplifies itself."""
        return self.config.lr * self.start.curvature / 2

    def modes_at(self, steps: FloatArray) -> modes.ModeCurve:
        """The law of modes at `steps` : (T,).  Raises ValueError or ArithmeticError if none."""
        config, start = self.config, self.start
        return modes.integrate_modes(
            start.problem.X, start.theta_star, start.network.W, start.network.a,
            config.lr, config.sigma, steps, config.batch_size,
        )  # fmt: skip

    @cached_property
    def curve(self) -> modes.ModeCurve | str:
        """The law of modes at every record, or why there is no such curve."""
        steps = np.unique(np.linspace(0, self.length, 201).round())
        if self.trajectory is not None:
            steps = self.trajectory.steps.astype(np.float64)
        try:
            return self.modes_at(steps)
        except (ValueError, ArithmeticError) as error:
            return str(error)

    # What the law of the cloud says

    @property
    def dynamics(self) -> Schedule:
        """The dynamics of the setting.  Raises ValueError if it is none that theory covers."""
        config = self.config
        if self.experiment == "label-noise":
            return _synthetic.label_noise_sgd(config)
        if self.experiment == "sam":
            return _synthetic.sam(config, self.rho)
        raise ValueError(
            f"no theory is derived for the dynamics of {self.experiment}: take label-noise or sam"
        )

    def predict(self, times: ArrayLike) -> cloud.Prediction:
        """The law of the cloud at `times` : (T,).  Raises ValueError or ArithmeticError if none."""
        dynamics, _ = self.dynamics.at(0)
        return cloud.predict(self.start.problem, self.start.network, dynamics, times)

    def _predict(self, times: ArrayLike) -> cloud.Prediction | str:
        """The prediction of the run at `times`, or why there is none."""
        if self.trajectory is None:
            return "there is no run"
        if self.finished is None:
            return "the run diverged"
        try:
            return self.predict(times)
        except (ValueError, ArithmeticError) as error:
            return str(error)

    @cached_property
    def _predicted(self) -> cloud.Prediction | str:
        run = self.trajectory
        return self._predict([] if run is None else run.steps.astype(np.float64))

    @cached_property
    def drawn(self) -> cloud.Prediction | str:
        """The law of the cloud for a figure of the run, or why there is none.

        It is at the first and the last record, at most DRAWN between them, evenly over the steps
        and over their logarithm, and at the clouds.
        """
        run = self.trajectory
        if run is None:
            return self._predict([])
        last = run.steps.size - 1
        even = np.linspace(0, last, DRAWN // 2), np.geomspace(1, max(last, 1), DRAWN // 2)
        chosen = np.minimum(np.concatenate(even).round().astype(int), last)
        clouds = run.arrays.get("cloud_step", run.steps[:1])
        return self._predict(np.union1d(run.steps[chosen], clouds).astype(np.float64))

    @property
    def prediction(self) -> cloud.Prediction | None:
        """The law of the cloud at the records of the run, or None: see `unpredicted`."""
        predicted = self._predicted
        return None if isinstance(predicted, str) else predicted

    @property
    def unpredicted(self) -> str:
        """Why there is no prediction, or ""."""
        predicted = self._predicted
        return predicted if isinstance(predicted, str) else ""

    @cached_property
    def whole(self) -> Whole | str:
        """The whole course by the law of the cloud, whatever the run, or why there is none."""
        try:
            dynamics, _ = self.dynamics.at(0)
            return whole(self.start.problem, self.start.network, dynamics)
        except (ValueError, ArithmeticError) as error:
            return str(error)

    @cached_property
    def predicted_times(self) -> Times | None:
        """The times of the whole course; NaN for those that the theory does not reach."""
        if isinstance(self.whole, str):
            return None
        course = self.whole.prediction
        times = of_course(course.times, course.__getitem__, self.stationary[0])
        return times.without_never() if self.whole.beyond else times

    def measured_times(self, replica: int = 0) -> Times:
        """The same times of the run, or of one replica; infinite for what it does not reach."""
        run = self.trajectory
        assert run is not None
        return of_course(
            run.steps, lambda name: np.atleast_2d(run[name])[replica], self.stationary[0]
        )

    def law_of_modes(self) -> tuple[FloatArray | None, str]:
        """The predicted |W(t)|_F^2 of a run, (records,), or None and why there is none."""
        if self.config.momentum or self.config.weight_decay:
            return None, "not derived for momentum or weight decay"
        if self.config.batch_size < 1:
            return None, "not derived for full batches"
        if self.finished is None:
            return None, "the run diverged"
        if isinstance(self.curve, str):
            return None, "it has no solution here"
        if self.curve.expansion.max() > LARGEST_EXPANSION:
            return None, f"its small parameter is {self.curve.expansion.max():.2g}"
        return self.curve.norm_squared, ""

    # What the run measured

    @property
    def finished(self) -> Trajectory | None:
        """The run, unless it diverged."""
        run = self.trajectory
        return run if run is not None and run.status.code != Ending.DIVERGED else None

    @cached_property
    def _phases(self) -> Phases | None:
        return None if self.trajectory is None else self.trajectory.phases()

    def phase(self, name: str) -> float:
        """A measured time, NaN where there is none."""
        return math.nan if self._phases is None else first_replica(vars(self._phases)[name])

    def last(self, name: str) -> float:
        """The last record of a series, NaN where there is none or the run diverged."""
        return math.nan if self.finished is None else float(series(self.finished, name)[-1])


def first_replica(values: FloatArray) -> float:
    """A measured number; of an ensemble, (S,), the first replica's."""
    return float(np.ravel(values)[0])
