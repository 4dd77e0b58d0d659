"""Figure 4: sharpness-aware minimisation passes through the same two phases, without label noise.

The paper leaves rho open.  The default, 0.076, is as fast as the label noise of Figure 2: by theory
(theory/sam.py, `radius_over_phase`) it takes |W|_F^2 to 1/e of its start in the same time as sigma
= 4 does.  At one moment the contraction is as fast with rho = 0.063 when the labels are fitted, and
with 0.088 at rest, because SAM's own shaking speeds it up while tr H is large.  So it runs ahead of
that label noise at first and falls back later, and in as many steps it shows both phases, with a
mean |cos| of 0.997 at the end.  rho = 0 is SGD and stays lazy; rho = 2 makes the network collapse
to zero.

That one-sample SAM moves along the interpolators to where tr H is least, as label noise does, is
known (Wen, Ma, Li 2022).
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
class Config(_synthetic.LinearConfig):
    """The setting of the figures; label noise may be added."""

    rho: float = key(0.076, "radius of SAM; the default is as fast as label noise of sigma 4")
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
    dynamics = _synthetic.sam(config, config.rho)
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
        "law-of-sam",
        "reduction",
        "linearised-twin",
    ),
)
