"""The oscillation simulation in windows: on for `period` steps, off for `period` steps.

While it is off both layers follow plain gradient descent (the paper leaves this open).  Neuron
norms fall while the second layer oscillates and stop falling while it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.dynamics import Alternating
from lnsim.experiments import _chain, _synthetic
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_chain.ChainSetting):
    """The setting of the figures."""

    steps: int = 100_000
    record_every: int = 51
    period: int = 5000


def run(config: Config, *, backend: str = "numba", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate` as it is.

    Raises ValueError or TypeError for values out of range.
    """
    dynamics = Alternating(_chain.oscillation(config), config.period)
    return _synthetic.train("oscillation-periodic", config, dynamics, backend, driver)


def figure(trajectory: Trajectory) -> Figure:
    """Losses, norms and second-layer weights over the windows."""
    from lnsim.figures import two_phases

    return two_phases.windows(trajectory, trajectory.config["period"], most=2)


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    return [
        _synthetic.escape_line(trajectory),
        _synthetic.norm_line(trajectory),
        _synthetic.window_line(trajectory, trajectory.config["period"]),
        _synthetic.loss_line(trajectory),
    ]


EXPERIMENT = Experiment(
    name="oscillation-periodic",
    meaning="the same with the oscillation on and off in turn",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
)
