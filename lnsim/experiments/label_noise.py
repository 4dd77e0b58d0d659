"""Figure 2: label noise SGD leaves the lazy regime, shrinks the neurons and turns them to theta*.

The paper shows 100,000 steps; |W|_F^2 decays by a factor e about every 1/(lr sigma)^2 = 62,500
steps, so two million show both phases to their end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lnsim import _checks
from lnsim.dynamics import SGD, LabelNoise
from lnsim.network import ntk_init
from lnsim.problem import gaussian_regression
from lnsim.simulate import simulate
from lnsim.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config:
    """The setting of the figures.  theta_norm = 0 leaves theta* as drawn."""

    samples: int = 200
    test_samples: int = 1000
    dim: int = 20
    width: int = 1000
    theta_norm: float = 0.0
    lr: float = 1e-3
    sigma: float = 4.0
    law: str = "rademacher"
    batch_size: int = 1
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 2_000_000
    record_every: int = 2_000
    tracked: int = 8
    seed: int = 0


def run(config: Config, *, backend: str = "numba", **driver: Any) -> Trajectory:
    """Draws the problem and the network and trains; `driver` goes to `simulate` as it is.

    Raises ValueError or TypeError for values out of range.
    """
    _checks.real("theta_norm", config.theta_norm, least=0.0)
    problem = gaussian_regression(
        config.samples,
        config.dim,
        config.seed,
        theta_norm=config.theta_norm or None,
        test_samples=config.test_samples,
    )
    dynamics = SGD(
        config.lr,
        LabelNoise(config.sigma, config.law),
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return simulate(
        problem,
        ntk_init(config.width, config.dim, config.seed),
        dynamics,
        steps=config.steps,
        record_every=config.record_every,
        seed=config.seed,
        tracked=config.tracked,
        backend=backend,
        config={"experiment": "label-noise", "backend": backend, **asdict(config)},
        **driver,
    )


def figure(trajectory: Trajectory) -> Figure:
    """Figure 2 of this run."""
    from lnsim import figures

    return figures.two_phases(trajectory)


def report(trajectory: Trajectory) -> list[str]:
    """What a person wants to know first, a line each."""
    phases = trajectory.phases()
    escape = "no neuron left the lazy regime"
    if not np.isnan(phases.first_escape):
        escape = f"first neuron at step {int(phases.first_escape):,}, "
        escape += (
            "not all of them"
            if np.isnan(phases.last_escape)
            else f"last at step {int(phases.last_escape):,}"
        )
    norm, alignment = trajectory["norm_mean"], trajectory["alignment_mean"]
    test_loss = trajectory["test_loss"][-1]
    return [
        f"lazy escape   {escape}",
        f"mean norm     {norm[0]:.4g} at the start,"
        f" {norm[-1]:.4g} at step {trajectory.steps[-1]:,}",
        f"alignment     {alignment[0]:.4g} at the start, {alignment[-1]:.4g} at the end"
        f" (mean |cos| {trajectory['cosine_mean'][-1]:.3f})",
        f"test loss     {test_loss:.4g} at the end (clean labels)",
    ]
