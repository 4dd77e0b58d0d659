"""Lemma 4: the first layer under full-batch descent, every second-layer weight a random chain.

The lemma requires m = 1/sqrt(lr), about 32 at lr = 0.001; here m = 1000 as in the paper's figures.
The run lasts for the lemma's time bound of 1/lr^2 = 10^6 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lnsim.base.config import key
from lnsim.experiments import _chain, _synthetic
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory
from lnsim.theory import paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EARLY = 40
"""Number of first steps of which the figure shows the second-layer weights."""


@dataclass(frozen=True)
class Config(_chain.ChainConfig):
    """The setting of the figures."""

    steps: int = key(1_000_000, "number of training steps")
    record_every: int = key(1_001, "steps between records; for resnet, epochs")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate`.

    Raises ValueError or TypeError for values out of range.
    """
    dynamics = _chain.oscillation(config)
    return _synthetic.train("oscillation", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Losses, norms with Lemma 4's level and time, alignment, and the chains at the start."""
    from lnsim.figures import oscillation

    config = _synthetic.config_of(Config, trajectory.config)
    # The draws do not depend on the records, so this is the same run.
    steps = min(EARLY, trajectory.status.step)
    early = replace(config, steps=steps, record_every=1)
    chains = run(early, backend=trajectory.config["backend"])
    return oscillation.oscillation(trajectory, chains, _lemma(config.lr))


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints about a run."""
    return [
        _synthetic.escape_line(trajectory),
        _synthetic.norm_line(trajectory),
        _synthetic.alignment_line(trajectory),
        _lemma_line(trajectory),
        *_synthetic.curvature_lines(trajectory),
    ]


def _lemma(lr: float) -> paper.Lemma4 | None:
    """Lemma 4, which requires lr < 1, or None."""
    return paper.lemma_4(lr) if lr < 1 else None


def _lemma_line(trajectory: Trajectory) -> str:
    """The step at which the level of Lemma 4 was reached, and the lemma's bound on it."""
    lemma = _lemma(trajectory.config["lr"])
    if lemma is None:
        return "Lemma 4       does not apply to lr >= 1"
    reached = _synthetic.first_below(trajectory, lemma.level)
    when = "not reached" if np.isnan(reached) else f"reached at step {int(reached):,}"
    return f"Lemma 4       mean |w|^2 <= {lemma.level:.4g} {when} (bound {lemma.latest:,.0f})"


EXPERIMENT = Experiment(
    name="oscillation",
    meaning="an oscillating second layer shrinks the first (Lemma 4)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    rests_on=("zhang2026", "linearised-twin"),
)
