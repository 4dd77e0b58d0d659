"""Figure 4: sharpness-aware minimisation passes through the same two phases, without label noise.

The paper leaves rho open.  rho = 0.1 shows both phases; rho = 0 is SGD and stays lazy; rho = 2
makes the network collapse to zero.  That one-sample SAM moves along the interpolators to where tr H
is least, as label noise does, is known (Wen, Ma, Li 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.base.config import key
from lnsim.dynamics import SAM, LabelNoise
from lnsim.experiments import _synthetic
from lnsim.experiments.case import Case
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_synthetic.LinearConfig):
    """The setting of the figures; label noise may be added."""

    steps: int = key(1_000_000, "number of training steps")
    record_every: int = key(1_000, "steps between records; for resnet, epochs")
    rho: float = key(0.1, "radius of sharpness-aware minimisation")
    sigma: float = key(0.0, "standard deviation of the label noise")
    law: str = key("rademacher", "label noise: rademacher, gaussian or uniform")
    batch_size: int = key(1, "samples in a step; 0: all of them")

    @property
    def samples_a_step(self) -> int:
        return self.batch_size or self.samples


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    noise = LabelNoise(config.sigma, config.law)
    dynamics = SAM(config.lr, config.rho, noise, batch_size=config.batch_size)
    return _synthetic.train("sam", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Figure 4 of this run, with the law of the cloud over it."""
    from lnsim.figures import two_phases

    case = Case.of_run(trajectory)
    return two_phases.two_phases(
        trajectory, prediction=case.drawn, least_trace=case.start.least_trace
    )


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    return _synthetic.report(trajectory)


EXPERIMENT = Experiment(
    name="sam",
    meaning="two phases of sharpness-aware minimisation (Figure 4)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=(
        "zhang2026",
        "foret2021",
        "andriushchenko2022",
        "wen2022",
        "reduction",
        "linearised-twin",
    ),
)
