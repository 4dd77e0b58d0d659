"""What the experiments on any model share: their keys, the run, the report.

A configuration says how its model and its problem are made; noise, SAM and schedules are the same
for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.config import key
from lnsim.dynamics import (
    SAM,
    SGD,
    Decay,
    Dropout,
    Dynamics,
    Factor,
    GradientNoise,
    LabelFlips,
    LabelNoise,
    Noise,
    ParameterNoise,
    Piecewise,
    Schedule,
    Scheduled,
    WarmUp,
)
from lnsim.experiments import _synthetic
from lnsim.experiments._synthetic import MEASURED, series
from lnsim.models.base import Model
from lnsim.models.problem import Problem
from lnsim.models.problems import (
    gaussian_classes,
    gaussian_regression,
    low_rank_teacher,
    sparse_regression,
)
from lnsim.run.experiment import Experiment
from lnsim.run.measures import NONE
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DROPS = 20
"""A learning rate divided by ten more often would be none."""
NUMBERS = 10
"""How many times as long as the scalar network's the kernels for any model take for a number."""

NOISE = (
    "none, label, label-k (on K labels of the full batch), flips, gradient, parameters,"
    " anticorrelated or dropout"
)
DROPS = "steps after which lr is divided by ten, again and again; 0: never"
PROBLEM = "classes, regression or low-rank"
OUTPUTS = "C, outputs; of classes one for each, or 1 under the logistic loss"
"""Meanings of keys whose defaults differ."""


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The keys that all these experiments have.

    A subclass names its model in the table of quantities, and makes the model and the problem.
    """

    model: ClassVar[str]
    at_least_one: ClassVar[tuple[str, ...]] = ()

    samples: int = key(200, "n, training samples")
    test_samples: int = key(1000, "samples of the test set")
    dim: int = key(20, "d, the input dimension")
    data_noise: float = key(0.0, "deviation of the noise in a regression's labels, drawn once")
    loss: str = key("squared", "squared, logistic or cross-entropy")
    scale: float = key(1.0, "what the weights at the start are multiplied by, or are")
    noise: str = key("label", NOISE)
    sigma: float = key(1.0, "deviation of the noise on labels, gradient or parameters")
    law: str = key("rademacher", "of the label noise: rademacher, gaussian or uniform")
    labels: int = key(1, "K, the labels that have noise under label-k")
    tau: float = key(0.2, "probability that a label is drawn anew each time it is used")
    flip: str = key("other", "a noisy label is drawn from any class, or from the other ones")
    rate: float = key(0.1, "probability that dropout drops a hidden unit")
    rho: float = key(0.0, "radius of sharpness-aware minimisation; 0: SGD")
    normalized: bool = key(True, "whether SAM divides the radius by the gradient's norm")
    micro_batch: int = key(0, "samples that SAM moves the weights for at a time; 0: the batch")
    layers: str = key("both", "which ones SAM moves: both, first or second")
    through: str = key("both", "what SAM takes at the moved weights: both, jacobian or loss")
    lr: float = key(1e-2, "learning rate, eta in the paper")
    batch_size: int = key(1, "samples in a step; 0: all of them")
    replacement: bool = key(True, "whether a sample may be drawn again before all were drawn")
    momentum: float = key(0.0, "share of the last step that is taken again")
    weight_decay: float = key(0.0, "share of the weights taken away, times lr")
    warm_up: int = key(0, "steps in which lr rises to its value")
    decay_steps: int = key(0, "steps in which lr falls; 0: it does not")
    decay_end: float = key(0.01, "share of lr that is left then")
    decay_curve: str = key("cosine", "of the fall: cosine, linear or exponential")
    drop_every: int = key(0, DROPS)
    steps: int = key(100_000, "how long to train")
    record_every: int = key(500, "steps between records")
    tracked: int = key(8, "neurons, or coordinates, that are followed one by one")
    seed: int = key(0, "of the data, the network and the noise")
    measures: str = key("", MEASURED, later=True, before=NONE)

    @abstractmethod
    def make_problem(self) -> Problem:
        """The problem.  Raises ValueError for sizes out of range."""

    @abstractmethod
    def make_model(self) -> Model:
        """The model at its start.  Raises ValueError for sizes out of range."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """About how many parameters are trained, reduced."""

    @property
    def numbers_a_step(self) -> int:
        """See LinearConfig."""
        return NUMBERS * (self.batch_size or self.samples) * self.parameters

    @property
    def numbers_a_record(self) -> int:
        """See LinearConfig."""
        return NUMBERS * self.parameters

    @property
    def apart(self) -> tuple[bool, ...]:
        """What replicas of one run must agree in, besides the keys that are no scalars.

        SAM takes micro-batches one by one, SGD does not; under a schedule weight decay takes the
        reduction away.
        """
        return (bool(np.any(self.rho)), self._scheduled and bool(np.any(self.weight_decay)))

    @property
    def _scheduled(self) -> bool:
        return any((self.warm_up, self.decay_steps, self.drop_every))


@dataclass(frozen=True)
class LayersConfig(ModelConfig):
    """The further keys of networks with layers."""

    problem: str = key("regression", PROBLEM)
    outputs: int = key(1, OUTPUTS)
    separation: float = key(4.0, "distance between the means of classes")
    theta_norm: float = key(0.0, "|theta*| to scale a regression's labels to; 0: as drawn")
    rank: int = key(4, "nonzero singular values of a low-rank target, from 1 down to 1/2")
    orthonormal: bool = key(False, "whether a low-rank target's inputs have X^T X = n I")
    width: int = key(100, "m, neurons of a hidden layer")
    start: str = key("ntk", "ntk, balanced, ...: see ntk_init and deep_init")

    def make_problem(self) -> Problem:
        """See ModelConfig."""
        checks.choice("problem", self.problem, ("classes", "low-rank", "regression"))
        checks.integer("outputs", self.outputs, 1, checks.MOST_ENTRIES)
        if self.problem == "classes":
            return gaussian_classes(
                self.samples,
                self.dim,
                self.outputs if self.outputs > 1 else 2,
                self.seed,
                self.separation,
                loss=self.loss,
                test_samples=self.test_samples,
            )
        if self.loss != "squared":
            raise ValueError(
                f"loss must be squared for the problem {self.problem!r}, got {self.loss!r}"
            )
        if self.problem == "low-rank":
            dim = checks.integer("dim", self.dim, 1, checks.MOST_ENTRIES)
            rank = checks.integer("rank", self.rank, 1, min(dim, self.outputs))
            return low_rank_teacher(
                self.samples,
                self.dim,
                self.outputs,
                np.linspace(1.0, 0.5, rank).tolist(),
                self.seed,
                noise=self.data_noise,
                orthonormal=self.orthonormal,
                test_samples=self.test_samples,
            )
        checks.real("theta_norm", self.theta_norm, least=0.0)
        return gaussian_regression(
            self.samples,
            self.dim,
            self.seed,
            outputs=self.outputs,
            theta_norm=self.theta_norm or None,
            noise=self.data_noise,
            test_samples=self.test_samples,
        )


def sparse_problem(config: ModelConfig, nonzeros: int) -> Problem:
    """A sparse regression.  Raises ValueError for a loss that is none of regression's."""
    if config.loss != "squared":
        raise ValueError(f"loss must be squared for a sparse target, got {config.loss!r}")
    return sparse_regression(
        config.samples,
        config.dim,
        nonzeros,
        config.seed,
        noise=config.data_noise,
        test_samples=config.test_samples,
    )


NOISES: dict[str, Callable[[ModelConfig], Noise | None]] = {
    "none": lambda config: None,
    "label": lambda config: LabelNoise(config.sigma, config.law),
    "label-k": lambda config: LabelNoise(config.sigma, config.law, config.labels),
    "flips": lambda config: LabelFlips(config.tau, config.flip),
    "gradient": lambda config: GradientNoise(config.sigma),
    "parameters": lambda config: ParameterNoise(config.sigma),
    "anticorrelated": lambda config: ParameterNoise(config.sigma, anticorrelated=True),
    "dropout": lambda config: Dropout(config.rate),
}
"""The words for noise, and the noise that each is."""


def dynamics(config: ModelConfig) -> Schedule:
    """SGD, or SAM where there is a radius, under the schedule of lr.

    Raises ValueError or TypeError for values out of range.
    """
    noise = NOISES[checks.choice("noise", config.noise, NOISES)](config)
    step: Dynamics
    if np.any(checks.real("rho", config.rho, least=0.0)):
        for name in ("momentum", "weight_decay"):
            if np.any(getattr(config, name)):
                raise ValueError(f"{name} must be 0 with rho > 0, got {getattr(config, name)}")
        step = SAM(
            config.lr, config.rho, noise, config.batch_size, config.normalized,
            config.micro_batch or None, config.layers, config.through, config.replacement,
        )  # fmt: skip
    else:
        step = SGD(
            config.lr, noise, config.batch_size, config.momentum, config.weight_decay,
            config.replacement,
        )  # fmt: skip
    factors = _factors(config)
    return Scheduled(step, lr=factors) if factors else step


def _factors(config: ModelConfig) -> tuple[Factor, ...]:
    """What lr is multiplied by; none of it depends on how long the run is."""
    for name in ("warm_up", "decay_steps", "drop_every"):
        checks.integer(name, getattr(config, name), 0, checks.MOST_STEPS)
    factors: list[Factor] = []
    if config.drop_every:
        drops = range(1, 1 + min(MOST_DROPS, max(0, config.steps - 1) // config.drop_every))
        factors.append(
            Piecewise(
                tuple(config.drop_every * drop for drop in drops),
                (1.0, *(10.0**-drop for drop in drops)),
            )
        )
    if config.warm_up:
        factors.append(WarmUp(config.warm_up))
    if config.decay_steps:
        factors.append(Decay(config.decay_steps, config.decay_end, config.decay_curve))
    return tuple(factors)


def experiment(
    name: str, meaning: str, Config: type[ModelConfig], rests_on: tuple[str, ...]
) -> Experiment:
    """The experiment on the model and the problem that `Config` makes."""

    def run(
        config: ModelConfig, *, backend: str = "numba", device: str = "", **driver: Any
    ) -> Trajectory:
        problem, model = config.make_problem(), config.make_model()
        return _synthetic.launch(
            name, config, problem, model, dynamics(config), backend, device, **driver
        )

    return Experiment(
        name=name, meaning=meaning, Config=Config, run=run, figures=_figures, report=report,
        rests_on=rests_on,
    )  # fmt: skip


def _figures(trajectory: Trajectory) -> dict[str, Figure]:
    from lnsim.figures import models

    return {"figure": models.figure(trajectory)}


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    arrays = trajectory.arrays
    lines = [_both_ends(trajectory, "loss", ("train_loss", "test_loss"), " (clean labels)")]
    if "train_accuracy" in arrays:
        lines.append(_both_ends(trajectory, "accuracy", ("train_accuracy", "test_accuracy")))
    if "lazy_escape" in arrays:
        lines += [_synthetic.escape_line(trajectory), _synthetic.norm_line(trajectory)]
    if "alignment_mean" in arrays:
        lines.append(_synthetic.alignment_line(trajectory))
    lines += _synthetic.curvature_lines(trajectory)
    if "interpolator_distance" in arrays:
        distance = series(trajectory, "interpolator_distance")
        lines.append(f"target        |theta - theta*| {distance[0]:.4g}, {distance[-1]:.4g}")
    if "effective_nonzeros" in arrays:
        count, target = series(trajectory, "effective_nonzeros")[-1], trajectory["theta_star"]
        nonzero = np.count_nonzero(target)
        lines.append(f"nonzeros      {count:.4g} effective ones at the end; theta* has {nonzero}")
    if "singular_values" in arrays:
        values = arrays["singular_values"]
        lines.append(_spectrum_line(values[(0,) * (values.ndim - 2)][-1]))
    return lines


def _both_ends(
    trajectory: Trajectory, title: str, names: tuple[str, str], further: str = ""
) -> str:
    """Of the training and of the test samples a quantity at the start and at the end."""
    parts = [
        f"{name.partition('_')[0]} {values[0]:.4g}, {values[-1]:.4g}"
        for name in names
        if not np.isnan(values := series(trajectory, name)).all()
    ]
    return f"{title:<14}start and end: {'; '.join(parts)}{further}"


def _spectrum_line(values: FloatArray) -> str:
    """How many singular values of the predictor are large at the end."""
    large = int(np.count_nonzero(values > 0.1 * values.max(initial=0.0)))
    return f"spectrum      {large} of {values.size} singular values above a tenth of the largest"
