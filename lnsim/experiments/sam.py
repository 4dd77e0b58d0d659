"""Figure 4: sharpness-aware minimisation passes through the same two phases, without label noise.

The paper leaves rho open.  rho = 0.1 shows both phases; rho = 0 is SGD and stays lazy; rho = 2
makes the network collapse to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.dynamics import SAM, LabelNoise
from lnsim.experiments import _synthetic
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_synthetic.Setting):
    """The setting of the figures; label noise may be added."""

    steps: int = 1_000_000
    record_every: int = 1_000
    rho: float = 0.1
    sigma: float = 0.0
    law: str = "rademacher"
    batch_size: int = 1


def run(config: Config, *, backend: str = "numba", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate` as it is.

    Raises ValueError or TypeError for values out of range.
    """
    noise = LabelNoise(config.sigma, config.law)
    dynamics = SAM(config.lr, config.rho, noise, batch_size=config.batch_size)
    return _synthetic.train("sam", config, dynamics, backend, driver)


def figure(trajectory: Trajectory) -> Figure:
    """Figure 4 of this run."""
    from lnsim.figures import two_phases

    return two_phases.two_phases(trajectory)


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    return _synthetic.report(trajectory)


EXPERIMENT = Experiment(
    name="sam",
    meaning="two phases of sharpness-aware minimisation (Figure 4)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
)
