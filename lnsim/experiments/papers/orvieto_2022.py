"""Orvieto, Kersting, Proske, Bach, Lucchi 2022, "Anticorrelated Noise Injection for Improved
Generalization".

    PGD        w <- w - lr grad L(w) + xi_{t+1}
    Anti-PGD   w <- w - lr grad L(w) + xi_{t+1} - xi_t

z = w - xi of Anti-PGD takes steps z <- z - lr grad L(z + xi), in the mean down L + (sigma^2/2) tr
H.

The widening valley is L = v^2 |u|^2/2, u in R^d, from (u_0, 0), |u_0|^2 = D, with lr = alpha/(2 D):
a single neuron (w = u, a = v) on labels 0 and inputs with X^T X/n = I.  PGD: lim E|u|^2 >= D/alpha;
Anti-PGD: <= alpha D for sigma^2 <= alpha D/(2 d).  z goes to 0, so that E|u|^2 is d sigma^2.  Their
theorem has noise of +-sigma, ours is normal of the same variance.

The regression is that of HaoChen et al. 2021, as the data of theirs are not published, with noise
on the weights.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD, SGD, ParameterNoise
from lnsim.experiments.papers import haochen_2021
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA, D, DIM, PATHS = 0.5, 100.0, 10, 200
SIGMA = (ALPHA * D / (2 * DIM)) ** 0.5
STEPS, SEEDS = 40_000, 8
VALLEY, WIDE, LATER = "Anti-PGD in the valley", "PGD in the valley", "Anti-PGD"


def valley() -> tuple[Problem, Network]:
    """A single neuron w = u_0 along the first axis, a = 0."""
    X = np.sqrt(DIM) * np.eye(DIM)
    w = np.zeros((1, DIM))
    w[0, 0] = np.sqrt(D)
    return Problem(X, np.zeros(DIM)), Network(w, np.zeros(1))


def _in_valley(sigma: float, steps: int, *, anti: bool) -> Arm:
    dynamics = SGD(ALPHA / (2 * D), ParameterNoise(sigma, anticorrelated=anti), batch_size=0)
    return Arm(start=valley, dynamics=dynamics, steps=steps, seeds=PATHS, records=100,
               options={"linearized": False})  # fmt: skip


def _on_data(*, anti: bool) -> Arm:
    dynamics = SGD(haochen_2021.LR, ParameterNoise(0.05, anticorrelated=anti), batch_size=0)
    return Arm(start=haochen_2021.start, dynamics=dynamics, steps=STEPS, records=100, seeds=SEEDS)


ARMS = {
    VALLEY: _in_valley(SIGMA, 3_000, anti=True),
    WIDE: _in_valley(0.1**0.5, 3_000, anti=False),
    "GD": Arm(start=haochen_2021.start, dynamics=GD(haochen_2021.LR), steps=STEPS, records=100),
    "PGD": _on_data(anti=False),
    LATER: _on_data(anti=True),
}


def _squares(arm: str, runs: Runs) -> FloatArray:
    """|u|^2 at the end, for each path; infinite for one that diverged."""
    run = runs[arm]
    squares = np.sum(np.square(run["final_W"]), axis=(1, 2))
    return np.where(run["diverged_at"] < 0, squares, np.inf)


def _error(arm: str, runs: Runs) -> FloatArray:
    """|beta - beta*|^2 at the end."""
    error: FloatArray = np.square(runs[arm]["interpolator_distance"][..., -1])
    return error


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    chosen = {arm: runs[arm] for arm in ("GD", "PGD", LATER)}
    errors = {arm: run["interpolator_distance"] ** 2 for arm, run in chosen.items()}
    return over_steps(chosen, errors, r"$\|\beta-\beta^\star\|^2$")


PAPER = Published(
    key="orvieto2022",
    line="anticorrelated noise finds flat minima, where independent noise runs off",
    setting=f"valley: d = {DIM}, D = {D:g}, alpha = {ALPHA}, {PATHS} paths of 3,000 steps;"
    f" regression: beta = v * v, n = 40, d = 100, noise 0.05 on the weights, {STEPS:,} steps",
    arms=ARMS,
    claims=(
        Claim(
            statement="in the widening valley Anti-PGD ends at |u|^2 of at most alpha D",
            place="Theorem 3.1",
            published=ALPHA * D,
            measured=partial(_squares, VALLEY),
            arms=(VALLEY,),
            relation="at most",
            rule=f"|u|^2 at the end, mean of {PATHS} paths",
            note=f"sigma^2 = {SIGMA**2:g}, the most that is allowed; our limit is d sigma^2 ="
            f" {DIM * SIGMA**2:g}",
        ),
        Claim(
            statement="PGD ends at |u|^2 of at least D/alpha",
            place="Theorem 3.1",
            published=D / ALPHA,
            measured=partial(_squares, WIDE),
            arms=(WIDE,),
            relation="at least",
            statistic="median",
            rule=f"|u|^2 after 3,000 steps with sigma^2 = 0.1, median of {PATHS} paths, infinite"
            " for one that diverged",
        ),
        Claim(
            statement="Anti-PGD recovers the sparse beta*",
            place="Section 4",
            asked=True,
            published=1.0,
            measured=partial(_error, LATER),
            arms=(LATER,),
            relation="at most",
            rule=f"|beta - beta*|^2 at the end, noise included, mean of {SEEDS} seeds",
        ),
        Claim(
            statement="gradient descent and PGD do not",
            place="Section 4",
            asked=True,
            published=50.0,
            measured=lambda runs: float(np.append(_error("PGD", runs), _error("GD", runs)).min()),
            arms=("GD", "PGD"),
            relation="at least",
            rule="least |beta - beta*|^2 at the end, of gradient descent and all seeds of PGD",
        ),
    ),
    figure=_figure,
    caption="Squared distance from the target over the steps; medians and middle 90 % of seeds.",
)
