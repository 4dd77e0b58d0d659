"""What the experiments on the two-layer linear network share: the setting, the run, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.config import key, recorded
from lnsim.dynamics import SAM, SGD, LabelNoise, Schedule
from lnsim.models.problem import Problem
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import Network, ntk_init
from lnsim.run.measures import NONE
from lnsim.run.quantities import TWO_LAYER
from lnsim.simulation.simulate import simulate
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from lnsim.models.base import Model


MEASURED = "measured besides the default: names, all or none"
"""The meaning of the key `measures`."""


@dataclass(frozen=True)
class LinearConfig:
    """The setting of the figures.

    `reduces` (whether the network may be trained in the span of the data) and `samples_a_step` (the
    number of samples whose gradients a step takes one by one) determine the cost of a step.
    `model` is its name in the table of quantities, `at_least_one` the keys whose least value is 1.
    """

    model: ClassVar[str] = TWO_LAYER
    at_least_one: ClassVar[tuple[str, ...]] = ("samples", "test_samples", "dim", "width")
    reduces: ClassVar[bool] = True

    samples: int = key(200, "n, training samples; of images, 0: all")
    test_samples: int = key(1000, "samples of the test set; of images, 0: all")
    dim: int = key(20, "d, the input dimension")
    width: int = key(1000, "m, hidden neurons; of resnet, channels of the first group")
    theta_norm: float = key(0.0, "|theta*| to scale the labels to; 0: as drawn")
    lr: float = key(1e-3, "learning rate, eta in the paper")
    steps: int = key(2_000_000, "number of training steps")
    record_every: int = key(2_000, "steps between records; for resnet, epochs")
    tracked: int = key(8, "number of neurons recorded one by one")
    seed: int = key(0, "seed of the data, the network and the noise")
    measures: str = key("", MEASURED, later=True, before=NONE)

    @property
    def samples_a_step(self) -> int:
        return 1

    @property
    def numbers_a_step(self) -> int:
        """How many numbers of the reduced network the samples of a step touch."""
        rank = min(self.samples, self.dim)
        width = min(self.width, rank + 1) if self.reduces else self.width
        return max(self.samples_a_step, 1) * width * rank

    @property
    def numbers_a_record(self) -> int:
        """How many weights are observed at a record."""
        return self.width * self.dim

    @property
    def apart(self) -> tuple[bool, ...]:
        """What replicas of one run must agree in, besides the keys that are no scalars."""
        return ()


@dataclass(frozen=True)
class NoisyConfig(LinearConfig):
    """The setting of label noise SGD."""

    sigma: float = key(4.0, "standard deviation of the label noise")
    law: str = key("rademacher", "label noise: rademacher, gaussian or uniform")
    batch_size: int = key(1, "samples in a step; 0: all of them")
    momentum: float = key(0.0, "fraction of the last update that is added again")
    weight_decay: float = key(0.0, "fraction of the weights subtracted per step, times lr")

    @property
    def samples_a_step(self) -> int:
        return self.batch_size or self.samples


C = TypeVar("C", bound=LinearConfig)


def start(config: LinearConfig) -> tuple[Problem, Network]:
    """The problem and the network at the start.  Raises ValueError for sizes out of range."""
    checks.real("theta_norm", config.theta_norm, least=0.0)
    problem = gaussian_regression(
        config.samples,
        config.dim,
        config.seed,
        theta_norm=config.theta_norm or None,
        test_samples=config.test_samples,
    )
    return problem, ntk_init(config.width, config.dim, config.seed)


def label_noise_sgd(config: NoisyConfig) -> SGD:
    """The dynamics of `config`."""
    return SGD(
        config.lr,
        LabelNoise(config.sigma, config.law),
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def sam(config: Any, rho: float) -> SAM:
    """SAM of radius rho, with the label noise of `config`, one with lr, sigma, law, batch_size."""
    noise = LabelNoise(config.sigma, config.law)
    return SAM(config.lr, rho, noise, batch_size=config.batch_size)


def train(
    experiment: str,
    config: LinearConfig,
    dynamics: Schedule,
    backend: str,
    device: str,
    **driver: Any,
) -> Trajectory:
    """Trains from `start`.  See `launch`."""
    problem, network = start(config)
    return launch(experiment, config, problem, network, dynamics, backend, device, **driver)


def launch(
    experiment: str,
    config: Any,
    problem: Problem,
    network: Model,
    dynamics: Schedule,
    backend: str,
    device: str,
    **driver: Any,
) -> Trajectory:
    """Trains `network`; the trajectory's config names the experiment and repeats the run.

    `device` becomes part of the backend; `driver` goes to `simulate`.
    """
    driver = {
        "seed": config.seed, "tracked": config.tracked, "measures": config.measures, **driver,
    }  # fmt: skip
    resume = driver.get("resume")
    keys = recorded(config, None if resume is None else resume.config)
    if device:
        backend = f"{backend}:{device}"
    return simulate(
        problem,
        network,
        dynamics,
        steps=config.steps,
        record_every=config.record_every,
        backend=backend,
        config={"experiment": experiment, "backend": backend, **keys},
        **driver,
    )


def config_of(cls: type[C], keys: Mapping[str, Any]) -> C:
    """The configuration of class `cls` from a run's `keys`; keys unknown to it are ignored."""
    known = cls.__dataclass_fields__
    return cls(**{key: value for key, value in keys.items() if key in known})


def series(trajectory: Trajectory, name: str) -> FloatArray:
    """A recorded series, (records,); of an ensemble, the first replica's."""
    values = trajectory[name]
    return values if values.ndim == 1 else values[0]


def window_changes(trajectory: Trajectory, period: int) -> tuple[FloatArray, FloatArray]:
    """The change of the mean norm over each window of `period` steps: on-windows, off-windows.

    The norm is interpolated between records.
    """
    steps, norm = trajectory.steps, series(trajectory, "norm_mean")
    borders = np.unique(np.append(np.arange(0, steps[-1] + 1, period), steps[-1]))
    changes = np.diff(np.interp(borders, steps, norm))
    return changes[0::2], changes[1::2]


def first_below(trajectory: Trajectory, level: float) -> float:
    """The step of the first record with (1/m) sum |w_i|^2 <= level (Lemma 4), NaN if none."""
    squares = series(trajectory, "norm_squared") / trajectory["final_W"].shape[-2]
    below = np.flatnonzero(squares <= level)
    return float(trajectory.steps[below[0]]) if below.size else float("nan")


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    lines = [f(trajectory) for f in (escape_line, norm_line, alignment_line, loss_line)]
    return lines + curvature_lines(trajectory)


def escape_line(trajectory: Trajectory) -> str:
    """When the neurons left the lazy regime."""
    phases = trajectory.phases()
    first, last = (float(np.ravel(t)[0]) for t in (phases.first_escape, phases.last_escape))
    if np.isnan(first):
        return "lazy escape   no neuron left the lazy regime"
    end = "not all of them" if np.isnan(last) else f"last near {round(last):,}"
    return f"lazy escape   first neuron near step {round(first):,}, {end}"


def norm_line(trajectory: Trajectory) -> str:
    """The mean norm at the start and the end."""
    norm = series(trajectory, "norm_mean")
    return (
        f"mean norm     {norm[0]:.4g} at the start, {norm[-1]:.4g} at step {trajectory.steps[-1]:,}"
    )


def alignment_line(trajectory: Trajectory) -> str:
    """The mean alignment at the start and the end."""
    alignment, cosine = (series(trajectory, f"{name}_mean") for name in ("alignment", "cosine"))
    return (
        f"alignment     {alignment[0]:.4g} at the start, {alignment[-1]:.4g} at the end"
        f" (mean |cos| {cosine[-1]:.3f})"
    )


def loss_line(trajectory: Trajectory) -> str:
    """The test loss at the end."""
    loss = series(trajectory, "test_loss")[-1]
    return f"test loss     {loss:.4g} at the end (clean labels)"


def curvature_lines(trajectory: Trajectory) -> list[str]:
    """The trace and the largest eigenvalue of the Hessian at the start and the end, if recorded."""
    parts = []
    for name, words in (("hessian_trace", "tr H"), ("sharpness", "sharpness")):
        if name in trajectory.arrays:
            values = series(trajectory, name)
            parts.append(f"{words} {values[0]:.4g}, {values[-1]:.4g}")
    return [f"curvature     start and end: {'; '.join(parts)}"] if parts else []


def window_line(trajectory: Trajectory, period: int) -> str:
    """The total change of the mean norm in all on-windows and in all off-windows."""
    on, off = window_changes(trajectory, period)
    return f"windows       mean norm {on.sum():+.4g} in all while on, {off.sum():+.4g} while off"
