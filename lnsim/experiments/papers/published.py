"""What a paper states, how it is run here, and the rule by which ours is judged: plain data.

A module of this package is one paper, named by its first author and year, and ends in

    PAPER = Published(...)

`arms` are the runs of its setting, by name.  A claim is a statement or a number of the paper, with
its place there; `measured` takes the arms' runs and gives one number, or one for each seed.  The
rules are those of `verdicts.published`, which runs and judges:

    one number              it satisfies the relation to the published number, or it does not; NaN
                            does not
    one for each seed       the 95 % interval of their mean (or median) does on both ends: holds;
                            on neither: does not hold; else not decided
    "among"                 the published number is of one draw: it is in our seeds' middle 98 %
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lnsim.base import archive
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Schedule
from lnsim.models.base import Model
from lnsim.models.problem import Problem
from lnsim.simulation.simulate import simulate
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Trajectory]
"""The runs of a paper's arms, by the arm's name."""

AMONG = "among"
RELATIONS = ("about", "at most", "at least", AMONG)
STATISTICS = ("mean", "median")


def growth(values: ArrayLike) -> FloatArray:
    """Each value over the one before it, (n - 1,)."""
    of = np.asarray(values, dtype=float)
    return np.asarray(of[1:] / of[:-1])


@dataclass(frozen=True, kw_only=True)
class Arm:
    """`steps` steps of `dynamics` from `start` : () -> (problem, network), over `seeds` seeds.

    `seeds` 0 is a single run, without the axis of replicas: that of a dynamics that draws nothing.
    `options` go to `lnsim.simulate`.
    """

    start: Callable[[], tuple[Problem, Model]]
    dynamics: Schedule
    steps: int
    records: int = 1
    seeds: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What the run is, as a configuration: another one gives other numbers."""
        problem, model = self.start()
        arrays = {"X": problem.X, "y": problem.y, **model.parameters}
        return {
            "dynamics": repr(self.dynamics), "steps": self.steps, "records": self.records,
            "seeds": self.seeds, "options": repr(sorted(self.options.items())),
            "start": archive.digest(arrays),
        }  # fmt: skip

    def run(self, **driver: Any) -> Trajectory:
        """The run, or the ensemble; `driver` are further arguments of `lnsim.simulate`."""
        options: dict[str, Any] = {"tracked": 0, "measures": "none", **self.options, **driver}
        if self.seeds:
            options["seed"] = list(range(self.seeds))
        every = max(1, self.steps // self.records)
        return simulate(
            *self.start(), self.dynamics, steps=self.steps, record_every=every, **options
        )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper at `place`, a figure, table, theorem or file of it.

    `relation`: our number is "about" (within the relative error `within`), "at most" or "at least"
    the published one, or the published one is "among" our seeds.  `arms` are those that `measured`
    needs.  `rule` says what is measured.  `asked`: the paper states it without a number, and
    `published` is one that we ask.
    """

    statement: str
    place: str
    published: float
    measured: Callable[[Runs], ArrayLike]
    arms: tuple[str, ...]
    rule: str
    relation: str = "about"
    within: float = 0.0
    statistic: str = "mean"
    asked: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS or self.statistic not in STATISTICS:
            raise ValueError(f"no such rule: {self.relation!r}, {self.statistic!r}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A paper: its key in `lnsim.references`, a line, its setting, its arms and its claims.

    `figure` draws the arms' runs as the paper's own figure does; `caption` says what it shows.
    """

    key: str
    line: str
    setting: str
    arms: Mapping[str, Arm]
    claims: tuple[Claim, ...]
    figure: Callable[[Runs], Figure]
    caption: str
