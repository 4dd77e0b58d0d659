"""Lemma 4: the first layer under full-batch descent, every second-layer weight a random chain.

The lemma asks for m = 1/sqrt(lr), about 32 at lr = 0.001; the paper's figures have m = 1000, and so
has this.  It bounds the time by 1/lr^2 = 10^6 steps, which are all run.
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
"""Steps of the second-layer weights that the figure shows one by one."""


@dataclass(frozen=True)
class Config(_chain.ChainConfig):
    """The setting of the figures."""

    steps: int = key(1_000_000, "how long to train")
    record_every: int = key(1_001, "steps between records; for resnet, epochs")


def run(config: Config, *, backend: str = "numba", device: str = "", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate` as it is.

    Raises ValueError or TypeError for values out of range.
    """
    dynamics = _chain.oscillation(config)
    return _synthetic.train("oscillation", config, dynamics, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Losses, norms with Lemma 4's level and time, alignment, and the chains at the start."""
    from lnsim.figures import oscillation

    config = _synthetic.config_of(Config, trajectory.config)
    # The draws of a step do not depend on what is recorded, so this is the same run.
    steps = min(EARLY, trajectory.status.step)
    early = replace(config, steps=steps, record_every=1)
    chains = run(early, backend=trajectory.config["backend"])
    return oscillation.oscillation(trajectory, chains, _lemma(config.lr))


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    return [
        _synthetic.escape_line(trajectory),
        _synthetic.norm_line(trajectory),
        _synthetic.alignment_line(trajectory),
        _lemma_line(trajectory),
    ]


def _lemma(lr: float) -> paper.Lemma4 | None:
    """Lemma 4, which is of steps below 1."""
    return paper.lemma_4(lr) if lr < 1 else None


def _lemma_line(trajectory: Trajectory) -> str:
    """When the level of Lemma 4 was reached, and by when it should be."""
    lemma = _lemma(trajectory.config["lr"])
    if lemma is None:
        return "Lemma 4       says nothing of lr >= 1"
    reached = _synthetic.first_below(trajectory, lemma.level)
    when = "not reached" if np.isnan(reached) else f"reached at step {int(reached):,}"
    return f"Lemma 4       mean |w|^2 <= {lemma.level:.4g} {when} (bound {lemma.latest:,.0f})"


EXPERIMENT = Experiment(
    name="oscillation",
    meaning="an oscillating second layer alone shrinks the first (Lemma 4)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
)
