"""Figure 2: label noise SGD leaves the lazy regime, shrinks the neurons and turns them to theta*.

The paper shows 100,000 steps; |W|_F^2 decays by a factor e about every 1/(lr sigma)^2 = 62,500
steps, so two million show both phases to their end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.base.config import key
from lnsim.experiments import _synthetic
from lnsim.run.experiment import Experiment
from lnsim.run.record import Ending
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_EXPANSION = 1.0
"""The small parameter of the law of modes from which on it is no prediction (modes.py)."""


@dataclass(frozen=True)
class Config(_synthetic.NoisyConfig):
    """The paper's setting.  `ledger` keeps the norm ledger of every neuron (ledger.py)."""

    ledger: bool = key(False, "keep what moved every neuron's norm (Lemma 3)")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate` as it is.

    Raises ValueError or TypeError for values out of range.
    """
    driver = {"ledger": config.ledger, **driver}
    dynamics = _synthetic.label_noise_sgd(config)
    return _synthetic.train("label-noise", config, dynamics, backend, device, **driver)


def law_of_modes(trajectory: Trajectory) -> tuple[FloatArray | None, str]:
    """The predicted |W(t)|_F^2 at the records, (records,), or None and why there is none."""
    from lnsim.theory import modes

    config = _synthetic.config_of(Config, trajectory)
    if config.momentum or config.weight_decay:
        return None, "not derived for momentum or weight decay"
    if config.batch_size < 1:
        return None, "not derived for full batches"
    if trajectory.status.code == Ending.DIVERGED:
        return None, "the run diverged"
    problem, network = _synthetic.start(config)
    assert problem.theta_star is not None
    try:
        curve = modes.integrate_modes(
            problem.X, problem.theta_star, network.W, network.a,
            config.lr, config.sigma, trajectory.steps.astype(np.float64), config.batch_size,
        )  # fmt: skip
    except (ValueError, ArithmeticError):
        return None, "it has no solution here"
    if curve.expansion.max() > LARGEST_EXPANSION:
        return None, f"its small parameter is {curve.expansion.max():.2g}"
    return curve.norm_squared, ""


def figure(trajectory: Trajectory) -> Figure:
    """Figure 2 of this run, with the law of modes beside |W|_F^2."""
    from lnsim.figures import two_phases

    curve, reason = law_of_modes(trajectory)
    return two_phases.two_phases(trajectory, law_of_modes=curve, without=reason)


def figures(trajectory: Trajectory) -> dict[str, Figure]:
    """Figure 2 and, where it was kept, the norm ledger's, by file name."""
    from lnsim.figures import ledger

    drawn = {"figure": figure(trajectory)}
    if "ledger_removed" in trajectory.arrays:
        config = _synthetic.config_of(Config, trajectory)
        lemma = paper.lemma_3(config.width, config.dim, config.sigma)
        drawn["ledger"] = ledger.ledger(trajectory, lemma)
    return drawn


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    return _synthetic.report(trajectory)


EXPERIMENT = Experiment(
    name="label-noise",
    meaning="two phases of label noise SGD (Figure 2)",
    Config=Config,
    run=run,
    figures=figures,
    report=report,
)
