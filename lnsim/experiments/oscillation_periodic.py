"""The oscillation simulation in windows: on for `period` steps, off for `period` steps.

While it is off both layers follow plain gradient descent (the paper leaves this open).  Neuron
norms fall while the second layer oscillates and stop falling while it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.base.config import key
from lnsim.dynamics import Alternating
from lnsim.experiments import _chain, _synthetic
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_chain.ChainConfig):
    """The setting of the figures."""

    steps: int = key(100_000, "number of training steps")
    record_every: int = key(51, "steps between records; for resnet, epochs")
    period: int = key(5000, "length of each on-window and each off-window, in steps")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    dynamics = Alternating(_chain.oscillation(config), config.period)
    return _synthetic.train("oscillation-periodic", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Losses, norms and second-layer weights over the windows."""
    from lnsim.figures import two_phases

    return two_phases.windows(trajectory, trajectory.config["period"], most=2)


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    return [
        _synthetic.escape_line(trajectory),
        _synthetic.norm_line(trajectory),
        _synthetic.window_line(trajectory, trajectory.config["period"]),
        _synthetic.loss_line(trajectory),
        *_synthetic.curvature_lines(trajectory),
    ]


EXPERIMENT = Experiment(
    name="oscillation-periodic",
    meaning="the same with the oscillation on and off in turn",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=("zhang2026", "linearised-twin"),
)
