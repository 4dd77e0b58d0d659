"""Pesme, Pillaud-Vivien, Flammarion 2021, "Implicit Bias of SGD for Diagonal Linear Networks".

beta = u v from u = alpha, v = 0.  The stochastic gradient flow of their loss (1/4n) sum r^2 ends
at the interpolator of least hyperbolic entropy at the scale alpha exp(-2 gamma diag(X^T X/n) int L
dt), smaller than alpha: SGD acts as gradient descent from a smaller start.  In ours, L = (1/2n) sum
r^2, with t = lr times the step and h = diag(X^T X/n), that is

    alpha_inf,j = alpha exp(-lr h_j int L dt),     alpha_inf^2 = |u^2 - v^2| at the end.

For discrete steps p = (u + v)/sqrt 2 and m = (u - v)/sqrt 2 are multiplied by 1 - lr g and 1 + lr
g, so |p m| = |u^2 - v^2|/2 by |1 - lr^2 g^2|: the scale shrinks at every step of every coordinate.
The flow takes the noise of a sample as independent of its residual; one-sample SGD has mean_k r_k^2
x_kj^2 in place of 2 L h_j.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD, SGD, LabelNoise, Piecewise, Scheduled
from lnsim.experiments.papers import _sparse
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA, LR, STEPS, SEEDS, RECORDS = 0.1, 0.01, 60_000, 32, 6_000
NOISY, SIGMA = 10_000, 0.5
"""Steps in which the slow arm has label noise, and its standard deviation."""

_start = partial(_sparse.start, 20, 30, 3, ALPHA)
_slow = Scheduled(SGD(LR, LabelNoise(SIGMA)), noise=Piecewise((NOISY,), (1.0, 0.0)))
ARMS = {
    "GD": Arm(start=_start, dynamics=GD(LR), steps=STEPS, records=RECORDS),
    "SGD": Arm(start=_start, dynamics=SGD(LR), steps=STEPS, records=RECORDS, seeds=SEEDS),
    "SGD, label noise at first": Arm(
        start=_start, dynamics=_slow, steps=STEPS, records=RECORDS, seeds=SEEDS
    ),
}


def shrinkage(arm: str, runs: Runs) -> FloatArray:
    """ln(alpha^2/alpha_inf^2) of each coordinate, (S, d) or (d,)."""
    u, v = runs[arm]["final_u"], runs[arm]["final_v"]
    return np.asarray(-np.log(np.abs(u**2 - v**2) / ALPHA**2))


def _predicted(arm: str, runs: Runs) -> FloatArray:
    """Measured over predicted sum of `shrinkage` over the coordinates, for each seed."""
    run = runs[arm]
    integral = LR * np.trapezoid(run["train_loss"], run.steps, axis=-1)
    h = np.mean(_start()[0].X ** 2, axis=0)
    ratio: FloatArray = shrinkage(arm, runs).sum(axis=-1) / (2 * LR * h.sum() * integral)
    return ratio


def _ratio(arm: str, other: str, runs: Runs) -> FloatArray:
    """The test loss at the end over that of another arm, for each seed."""
    ratio: FloatArray = runs[arm]["test_loss"][..., -1] / runs[other]["test_loss"][..., -1]
    return ratio


def _figure(runs: Runs) -> Figure:
    return _sparse.test_losses(runs)


PAPER = Published(
    key="pesme2021",
    line="SGD acts as gradient descent from a smaller start, and finds sparser solutions",
    setting=f"n = 20, d = 30, three nonzeros, u = {ALPHA}, v = 0, lr = {LR}, {STEPS:,} steps",
    arms=ARMS,
    claims=(
        Claim(
            statement="the scale shrinks by exp(-lr h int L dt)",
            place="ours",
            published=1.0,
            measured=partial(_predicted, "SGD"),
            arms=("SGD",),
            within=0.1,
            rule="sum over coordinates of ln(alpha^2/alpha_inf^2), measured over predicted, mean"
            f" of {SEEDS} seeds, within 10 %",
            note="as we derive it; the flow takes the noise as independent of the residual",
        ),
        Claim(
            statement="the scale is smaller than at the start in every coordinate",
            place="abstract",
            published=0.0,
            measured=lambda runs: float(shrinkage("SGD", runs).min()),
            arms=("SGD",),
            relation="at least",
            rule="least ln(alpha^2/alpha_inf^2) over coordinates and seeds",
        ),
        Claim(
            statement="SGD generalises better than gradient descent",
            place="abstract",
            published=1.0,
            measured=partial(_ratio, "SGD", "GD"),
            arms=("GD", "SGD"),
            relation="at most",
            rule=f"ratio of the test losses, mean of {SEEDS} seeds",
        ),
        Claim(
            statement="the slower the training loss converges, the better",
            place="abstract",
            published=1.0,
            measured=partial(_ratio, "SGD, label noise at first", "SGD"),
            arms=("SGD", "SGD, label noise at first"),
            relation="at most",
            statistic="median",
            rule=f"ratio of the test losses with label noise {SIGMA} in the first {NOISY:,} steps"
            f" and without, median of {SEEDS} seeds",
        ),
    ),
    figure=_figure,
    caption="Test loss over the steps: medians and the middle 90 % of the seeds.",
)
