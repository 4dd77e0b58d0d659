"""Figure 2: label noise SGD leaves the lazy regime, shrinks the neurons and turns them to theta*.

The paper shows 100,000 steps; |W|_F^2 decays by a factor e about every 1/(lr sigma)^2 = 62,500
steps, so two million steps show both phases completely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.base.config import key
from lnsim.experiments import _synthetic
from lnsim.experiments.case import Case
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_synthetic.NoisyConfig):
    """The paper's setting.  `ledger` keeps the norm ledger of every neuron (ledger.py)."""

    ledger: bool = key(False, "record what changed each neuron's norm (Lemma 3)")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    driver = {"ledger": config.ledger, **driver}
    dynamics = _synthetic.label_noise_sgd(config)
    return _synthetic.train("label-noise", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Figure 2 of this run, with the law of the cloud over it."""
    from lnsim.figures import two_phases

    case = Case.of_run(trajectory)
    return two_phases.two_phases(
        trajectory, prediction=case.drawn, least_trace=case.start.least_trace
    )


def figures(trajectory: Trajectory) -> dict[str, Figure]:
    """Figure 2 and, if the run kept the norm ledger, its figure, by file name."""
    from lnsim.figures import ledger

    by_name = {"figure": figure(trajectory)}
    if "ledger_removed" in trajectory.arrays:
        by_name["ledger"] = ledger.ledger(trajectory, Case.of_run(trajectory).lemma_3)
    return by_name


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    return _synthetic.report(trajectory)


EXPERIMENT = Experiment(
    name="label-noise",
    meaning="two phases of label noise SGD (Figure 2)",
    Config=Config,
    run=run,
    figures=figures,
    report=report,
    rests_on=("zhang2026", "law-of-modes", "stationary-state", "reduction", "linearised-twin"),
)
