"""Full-batch gradient descent with large steps: the catapult (Lewkowycz et al. 2020).

With lambda_0 the largest eigenvalue of the tangent kernel over n at the start, descent with
eta < 2/lambda_0 is monotone; between 2/lambda_0 and 4/lambda_0 the loss first rises, the curvature
falls below 2/eta, and the loss goes to 0 at a flatter minimum; above, it diverges.

A run trains one start with `count` learning rates at once: eta lambda_0 is in the middle of each of
`count` equal cells between `least` and `most`, so that a boundary at the edge of a cell is met.
What became of each is measured at the records:

    diverged     the squared residual overflowed (base/checks.py)
    monotone     the loss never rose by more than 1 % of its start above the least it had before
    catapult     it rose, and is below its start at the end
    unsettled    it rose, and is not

`problem` "single" is the setting of the law (theory/catapult.py): one sample x = 1, y = 0.  There
the boundary of divergence is 4/lambda_0 at every width, and 2/lambda_0 is moved by about 1/m.
"regression" is the paper's data and start, where both boundaries depend on the width: a narrow
network learns features, which raise its curvature, and near the upper boundary runs that converge
and that diverge alternate.  Values of eta lambda_0, n = 200, d = 20, seeds 0 to 2, cells of 0.025:

    m         the loss rises from    the first that diverges    the last that does not
    100       1.68-1.73              2.63-2.88                  2.63-2.95
    300       1.93-2.03              3.25-3.50                  3.25-3.50
    1,000     2.00                   3.48-3.68                  3.58-3.68
    10,000    2.00                   3.38-3.55                  3.65-3.88
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.config import key
from lnsim.dynamics import GD
from lnsim.experiments import _synthetic
from lnsim.models.problem import Problem
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import Network, ntk_init
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import catapult, flatness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lnsim.figures.large_steps import Law

RISE = 0.01
"""A rise of the loss counts from this share of its start on."""
MONOTONE, CATAPULT, DIVERGED, UNSETTLED = "monotone", "catapult", "diverged", "unsettled"
MOST_RATES, MOST_LAW = 100_000, 2_000
"""Learning rates of a run, and of the curve of the law in its figure."""


@dataclass(frozen=True)
class Config:
    """One sample, a thousand neurons, 68 learning rates."""

    problem: str = key("single", "single (x = 1, y = 0) or regression")
    samples: int = key(200, "n, training samples of a regression")
    test_samples: int = key(1000, "samples of its test set")
    dim: int = key(20, "d, its input dimension")
    width: int = key(1000, "m, hidden neurons")
    least: float = key(1.0, "eta lambda_0 where the first cell begins")
    most: float = key(4.4, "eta lambda_0 where the last cell ends")
    count: int = key(68, "cells, each with a learning rate in its middle")
    steps: int = key(300, "number of training steps")
    record_every: int = key(1, "steps between records")
    tracked: int = key(0, "number of neurons recorded one by one")
    seed: int = key(0, "seed of the data and the network")
    measures: str = key("none,sharpness", "what is measured: names, all or none")

    @property
    def multiples(self) -> FloatArray:
        """eta lambda_0 of every learning rate, (count,).  Raises ValueError if out of range."""
        least = checks.number("least", checks.real("least", self.least, least=0.0))
        most = checks.number("most", self.most)
        count = checks.integer("count", self.count, 1, MOST_RATES)
        if not most > least:
            raise ValueError(f"most must be above least, {least:g}, got {most:g}")
        return least + (most - least) * ((np.arange(count) + 0.5) / count)


def _single(config: Config) -> tuple[Problem, Network]:
    """x = 1, y = 0, and f = u^T v / sqrt(m) with standard normal u and v (catapult.py)."""
    network = ntk_init(config.width, 1, config.seed)
    share = config.width**0.25
    return Problem(np.ones((1, 1)), np.zeros(1)), Network(network.W / share, network.a * share)


def _regression(config: Config) -> tuple[Problem, Network]:
    """The paper's data and start."""
    problem = gaussian_regression(
        config.samples, config.dim, config.seed, test_samples=config.test_samples
    )
    return problem, ntk_init(config.width, config.dim, config.seed)


PROBLEMS: dict[str, Callable[[Config], tuple[Problem, Network]]] = {
    "single": _single,
    "regression": _regression,
}
"""The words for problems, and what a run of each starts from."""


def start(config: Config) -> tuple[Problem, Network]:
    """The problem and the network at the start.  Raises ValueError for values out of range."""
    return PROBLEMS[checks.choice("problem", config.problem, PROBLEMS)](config)


def curvature(problem: Problem, network: Network) -> float:
    """lambda_0: the largest eigenvalue of the tangent kernel over n.

    It is that of the Hessian without the part of the residuals.
    """
    W, a = network.W, network.a
    return float(
        flatness.sharpness(
            (W.T @ W)[None], network.theta[None], np.array([a @ a]),
            np.zeros((1, problem.dim)), flatness.square_root(problem.gram),
        )[0]
    )  # fmt: skip


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Trains one start with every learning rate, a replica for each; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    multiples = config.multiples
    problem, network = start(config)
    rates = multiples / curvature(problem, network)
    driver = {"replicas": len(multiples), "clouds": False, "linearized": False, **driver}
    dynamics = GD(rates if len(rates) > 1 else float(rates[0]))
    return _synthetic.launch(
        "large-steps", config, problem, network, dynamics, backend, device, **driver
    )


@dataclass(frozen=True)
class Map:
    """What became of every learning rate of a run, in order of eta lambda_0."""

    trajectory: Trajectory

    @cached_property
    def config(self) -> Config:
        known = Config.__dataclass_fields__
        return Config(**{k: v for k, v in self.trajectory.config.items() if k in known})

    @cached_property
    def _pair(self) -> tuple[Problem, Network]:
        return start(self.config)

    @cached_property
    def curvature(self) -> float:
        """lambda_0."""
        return curvature(*self._pair)

    @cached_property
    def multiples(self) -> FloatArray:
        """eta lambda_0, (S,)."""
        return self.config.multiples

    @property
    def rates(self) -> FloatArray:
        """eta, (S,)."""
        return self.multiples / self.curvature

    @property
    def cell(self) -> float:
        """The resolution in eta lambda_0."""
        return (self.config.most - self.config.least) / self.config.count

    @cached_property
    def loss(self) -> FloatArray:
        """The training loss over its start, (S, records); NaN after a divergence."""
        values = np.atleast_2d(self.trajectory["train_loss"])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.asarray(values / values[:, :1])

    @cached_property
    def sharpness(self) -> FloatArray | None:
        """The largest eigenvalue of the Hessian, (S, records), if the run measured it."""
        values = self.trajectory.arrays.get("sharpness")
        return None if values is None else np.atleast_2d(values)

    @cached_property
    def last_sharpness(self) -> FloatArray:
        """The sharpness at the end, (S,); NaN of those that diverged or were not measured."""
        values = np.full(len(self.multiples), np.nan)
        if self.sharpness is not None:
            ended = self.kinds != DIVERGED
            values[ended] = self.sharpness[ended, -1]
        return values

    @cached_property
    def kinds(self) -> NDArray[Any]:
        """The word for each learning rate, (S,)."""
        loss = np.where(np.isnan(self.loss), np.inf, self.loss)
        with np.errstate(invalid="ignore"):
            rise = np.max(loss - np.minimum.accumulate(loss, axis=1), axis=1)
        landed = np.where(loss[:, -1] < 1.0, CATAPULT, UNSETTLED)
        words = np.where(rise > RISE, landed, MONOTONE)
        diverged = np.ravel(self.trajectory["diverged_at"]) >= 0
        return np.where(diverged, DIVERGED, words)

    def of(self, kind: str) -> FloatArray:
        """eta lambda_0 of the learning rates of one kind."""
        return self.multiples[self.kinds == kind]

    @cached_property
    def peak(self) -> FloatArray:
        """The largest loss over its start, (S,); NaN of those that diverged."""
        values = np.full(len(self.multiples), np.nan)
        ended = self.kinds != DIVERGED
        values[ended] = self.loss[ended].max(axis=1)
        return values

    @cached_property
    def rises(self) -> float:
        """eta lambda_0 between the last of the monotone and the next; NaN if there is no such."""
        return self._border(self.kinds != MONOTONE)

    @cached_property
    def diverges(self) -> float:
        """eta lambda_0 between the first that diverged and the one before it; NaN if there is no
        such."""
        return self._border(self.kinds == DIVERGED)

    def _border(self, beyond: NDArray[np.bool_]) -> float:
        first = int(np.argmax(beyond))
        return self.config.least + first * self.cell if beyond[first] and first else float("nan")

    @property
    def predicted_rise(self) -> float:
        """eta lambda_0 from which on the loss rises, by theory: of one sample at this width."""
        if self.config.problem != "single":
            return catapult.RISES
        return catapult.rise_boundary(self.start_prediction, self.curvature)

    @property
    def start_prediction(self) -> float:
        """f at the start, of one sample."""
        problem, network = self._pair
        return float(network.predict(problem.X)[0, 0])

    @cached_property
    def law(self) -> Law | None:
        """What the recursion gives for one sample, on a grid ten times as fine; else None."""
        if self.config.problem != "single":
            return None
        from lnsim.figures.large_steps import Law

        fine = replace(self.config, count=min(10 * self.config.count, MOST_LAW)).multiples
        steps = int(self.trajectory.steps[-1])
        path = catapult.recursion(
            self.start_prediction, self.curvature, fine / self.curvature, steps
        )
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            peak = np.square(path.f / self.start_prediction).max(axis=1)
        last, landed = path.curvature[:, -1] / self.curvature, fine < catapult.DIVERGES
        return Law(fine, np.where(landed, last, np.nan), np.where(landed, peak, np.nan))


def figure(trajectory: Trajectory) -> Figure:
    """Loss and sharpness of a few learning rates, and the map of the end over all of them."""
    from lnsim.figures import large_steps

    return large_steps.large_steps(trajectory.steps, Map(trajectory))


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    ends = Map(trajectory)
    config, last = ends.config, ends.last_sharpness
    lines = [
        f"start         lambda_0 {ends.curvature:.5g}; eta lambda_0 in {config.count} cells of"
        f" {ends.cell:.3g}"
    ]
    if trajectory.status.step == 0:
        return [*lines, "end           no step was taken"]
    lines += [
        f"monotone      {_range(ends, MONOTONE)}"
        f"{_border('rises', ends.rises, ends.predicted_rise)}",
        f"catapult      {_range(ends, CATAPULT)}{_peak(ends)}",
        f"diverged      {_range(ends, DIVERGED)}"
        f"{_border('diverges', ends.diverges, catapult.DIVERGES)}",
    ]
    if unsettled := len(ends.of(UNSETTLED)):
        lines.append(f"unsettled     {unsettled} rose and are not below their start at the end")
    if config.record_every > 1:
        lines.append(f"records       {config.record_every:,} steps apart: no rise between is seen")
    if np.isfinite(last).any():
        product = np.nanmax(last * ends.multiples / ends.curvature)
        least = np.nanmin(last) / ends.curvature
        lines.append(
            f"sharpness     at the end at most {product:.4g}/eta (edge: 2/eta), least {least:.3g}"
            " lambda_0"
        )
    return lines


def _range(ends: Map, kind: str) -> str:
    """How many learning rates are of one kind, and between which ones they lie."""
    values = ends.of(kind)
    if not len(values):
        return f"none of {ends.config.count}"
    return f"{len(values)} of {ends.config.count}, {values[0]:.4g} to {values[-1]:.4g}"


def _border(what: str, measured: float, predicted: float) -> str:
    """Where it is crossed, beside theory."""
    where = "" if np.isnan(measured) else f"; {what} from {measured:.4g}"
    return where if np.isnan(predicted) else f"{where} (theory {predicted:.4g})"


def _peak(ends: Map) -> str:
    """The largest rise of the loss."""
    peaks = ends.peak[ends.kinds == CATAPULT]
    return f"; loss up to {peaks.max():.4g} times its start" if peaks.size else ""


EXPERIMENT = Experiment(
    name="large-steps",
    meaning="gradient descent with large steps: the catapult",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=("lewkowycz2020", "reduction"),
)
