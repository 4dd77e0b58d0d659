"""Andriushchenko, Varre, Pillaud-Vivien, Flammarion 2023, "SGD with Large Step Sizes Learns Sparse
Features".

Their experiment on a diagonal network beta = u * v.  Large steps hold the loss at a level at which
the noise of single samples, or the oscillation of gradient descent beyond its edge of stability,
shrinks coordinates to nothing; the longer they last, the sparser beta is when the step is divided.
Gradient descent with lr = 3.53 and SGD with lr = 0.282 are chaotic: a change of lr by 1e-14 moves
the number of nonzeros by one and the test loss by a tenth and more, and 25 to 55 % of our seeds of
the latter diverge.  The published runs of SGD are one draw each, of NumPy's generator after
seed(1), and their last losses are those after 99,599 steps.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lnsim.dynamics import GD, SGD, Piecewise, Scheduled
from lnsim.experiments.papers import _sparse
from lnsim.experiments.papers.published import AMONG, Arm, Claim, Published, Runs, growth

NOTEBOOK = "sgd-sparse-features, diag_nets.ipynb"
STEPS, SEEDS = 100_000, 40
DROPS = {10_000: 4.8, 30_000: 3.4, 50_000: 1.5}
"""The divisor of lr from each of these steps on."""
NONZEROS = {10_000: 86, 30_000: 80, 50_000: 78}
STOCHASTIC = {10_000: 6.6e-4, 30_000: 2.8e-4, 50_000: 1.5e-4}
SMALL, LARGE = partial(_sparse.start, 40, 100, 20), partial(_sparse.start, 80, 200, 20)


def _dropped(dynamics: GD | SGD, step: int, divisor: float) -> Scheduled:
    return Scheduled(dynamics, lr=Piecewise((step + 1,), (1.0, 1 / divisor)))


def _gd(step: int) -> str:
    return f"GD, large steps until {step:,}"


def _sgd(step: int) -> str:
    return f"SGD, large steps until {step:,}"


ARMS = {
    "GD, lr 2": Arm(start=SMALL, dynamics=GD(2.0), steps=STEPS + 1, records=100),
    **{
        _gd(step): Arm(start=SMALL, dynamics=_dropped(GD(3.53), step, by), steps=STEPS, records=100)
        for step, by in DROPS.items()
    },
    "SGD, lr 0.25": Arm(start=LARGE, dynamics=SGD(0.25), steps=STEPS, records=100, seeds=SEEDS),
    **{
        _sgd(step): Arm(
            start=LARGE, dynamics=_dropped(SGD(0.282), step, by), steps=STEPS, records=100,
            seeds=SEEDS,
        )
        for step, by in DROPS.items()
    },
}  # fmt: skip


def _test_loss(arm: str, runs: Runs) -> np.ndarray:
    """At the end, of the seeds that did not diverge."""
    run = runs[arm]
    losses: np.ndarray = np.asarray(run["test_loss"][..., -1])
    return losses[run["diverged_at"] < 0] if losses.ndim else losses


def _nonzeros(arm: str, runs: Runs) -> int:
    return int(np.count_nonzero(np.abs(runs[arm].final.beta) > 1e-50))


def _sparser(runs: Runs) -> float:
    """The largest ratio of median numbers of nonzeros, of longer large steps to shorter ones."""
    medians = []
    for run in (runs[_sgd(step)] for step in DROPS):
        beta = (run["final_u"] * run["final_v"])[run["diverged_at"] < 0]
        medians.append(float(np.median((np.abs(beta) > 1e-50).sum(axis=1))))
    return float(growth(medians).max())


def _lasting(runs: Runs) -> np.ndarray:
    """The test loss after the longest large steps over that after the shortest, for each seed."""
    first, *_, last = (runs[_sgd(step)] for step in DROPS)
    both = (first["diverged_at"] < 0) & (last["diverged_at"] < 0)
    ratios: np.ndarray = (last["test_loss"][..., -1] / first["test_loss"][..., -1])[both]
    return ratios


PAPER = Published(
    key="andriushchenko2023",
    line="the longer large steps last, the fewer coordinates of a diagonal network are left",
    setting="GD: n = 40, d = 100; SGD, one sample a step: n = 80, d = 200; 20 nonzeros, u = 0.1,"
    " v = 0, 100,000 steps",
    arms=ARMS,
    claims=(
        Claim(
            statement="the test loss of GD, lr = 2",
            place=NOTEBOOK,
            published=0.16824144824688475,
            measured=partial(_test_loss, "GD, lr 2"),
            arms=("GD, lr 2",),
            rule="after 100,001 steps; nine digits",
            within=1e-9,
        ),
        *(
            Claim(
                statement=f"GD with lr = 3.53, divided by {DROPS[step]:g} after {step:,} steps,"
                " leaves so many coordinates",
                place=NOTEBOOK,
                published=count,
                measured=partial(_nonzeros, _gd(step)),
                arms=(_gd(step),),
                rule="|beta_i| > 1e-50 at the end, within one",
                within=1.01 / count,
                note="the path is chaotic, and rounding moves the count by one",
            )
            for step, count in NONZEROS.items()
        ),
        Claim(
            statement="the test loss of SGD, lr = 0.25",
            place=NOTEBOOK,
            published=0.00353,
            measured=partial(_test_loss, "SGD, lr 0.25"),
            arms=("SGD, lr 0.25",),
            rule=f"their one run among {SEEDS} seeds of ours",
            relation=AMONG,
        ),
        *(
            Claim(
                statement=f"the test loss of SGD with lr = 0.282, divided by {DROPS[step]:g} after"
                f" {step:,} steps",
                place=NOTEBOOK,
                published=loss,
                measured=partial(_test_loss, _sgd(step)),
                arms=(_sgd(step),),
                rule=f"their one run among ours of {SEEDS} seeds that do not diverge",
                relation=AMONG,
            )
            for step, loss in STOCHASTIC.items()
        ),
        Claim(
            statement="the longer the large steps of SGD, the fewer coordinates are left",
            place=NOTEBOOK,
            published=1.0,
            measured=_sparser,
            arms=tuple(map(_sgd, DROPS)),
            rule="largest ratio of neighbouring medians of |beta_i| > 1e-50 over the seeds that do"
            " not diverge",
            relation="at most",
        ),
        Claim(
            statement="and the smaller the test loss",
            place=NOTEBOOK,
            published=1.0,
            measured=_lasting,
            arms=tuple(map(_sgd, DROPS)),
            rule="test loss after the longest large steps over that after the shortest, median of"
            " the seeds of which neither diverges",
            relation="at most",
            statistic="median",
        ),
    ),
    figure=lambda runs: _sparse.test_losses({arm: runs[arm] for arm in ARMS if "SGD" in arm}),
    caption="Test loss of SGD over the steps: medians and the middle 90 % of the seeds.",
)
