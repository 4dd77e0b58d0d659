"""Label noise in windows: on for `period` steps, off for `period` steps, and so on.

Neuron norms fall while the noise is on and stop while it is off; second-layer weights oscillate
while it is on and settle while it is off.  100,000 steps are ten windows of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.base.config import key
from lnsim.dynamics import Alternating
from lnsim.experiments import _synthetic
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_synthetic.NoisyConfig):
    """The paper's setting."""

    steps: int = key(100_000, "number of training steps")
    record_every: int = key(50, "steps between records; for resnet, epochs")
    period: int = key(5000, "length of each on-window and each off-window, in steps")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    dynamics = Alternating(_synthetic.label_noise_sgd(config), config.period)
    return _synthetic.train("label-noise-periodic", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Losses, norms and second-layer weights over the windows."""
    from lnsim.figures import two_phases

    return two_phases.windows(trajectory, trajectory.config["period"])


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
    name="label-noise-periodic",
    meaning="label noise SGD with the noise on and off in turn",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=("zhang2026", "reduction", "linearised-twin"),
)
