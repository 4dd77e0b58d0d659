"""HaoChen, Wei, Lee, Ma 2021, "Shape Matters: Understanding the Implicit Bias of the Noise
Covariance".

Their model is f = <v * v, x>, from v = 1, with loss (f - y)^2/4.  Ours has (f - y)^2/2: half their
lr, and twice the noise that they add to a gradient.  The noise of their label noise is that of one
drawn sample, on the full gradient; lr is divided by 10 after a third and two thirds of the steps.
Their Gaussian noise takes 1,200,000 steps of one lr, ours the 300,000 of label noise with its
schedule.  The paper states who recovers beta*; the thresholds are ours.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lnsim.dynamics import GD, SGD, GradientNoise, LabelNoise, Piecewise, Scheduled
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.diagonal import Diagonal, diagonal_init
from lnsim.models.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LR, STEPS, SEEDS = 0.01 / 2, 300_000, 8
DROPS = Piecewise((STEPS // 3, 2 * STEPS // 3), (1.0, 0.1, 0.01))


def start() -> tuple[Problem, Diagonal]:
    """n = 40, d = 100, five ones; from NumPy's legacy generator, whose first draws are not used."""
    draws = np.random.RandomState(123)
    draws.rand(100)
    X = draws.randn(40, 100)
    beta = np.zeros(100)
    beta[:5] = 1.0
    return Problem(X, X @ beta, beta), diagonal_init(100, 1.0, "square")


def _noisy(noise: LabelNoise | GradientNoise) -> Arm:
    dynamics = Scheduled(SGD(LR, noise, batch_size=0), lr=DROPS)
    return Arm(start=start, dynamics=dynamics, steps=STEPS, records=100, seeds=SEEDS)


ARMS = {
    "GD": Arm(start=start, dynamics=GD(LR), steps=STEPS, records=100),
    "label noise": _noisy(LabelNoise(1.0, "gaussian", labels=1)),
    "Gaussian noise": _noisy(GradientNoise(2 * 0.01)),
}


def _error(arm: str, runs: Runs) -> np.ndarray:
    """|v * v - beta*|^2 at the end."""
    error: np.ndarray = np.square(runs[arm]["interpolator_distance"][..., -1])
    return error


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    errors = {arm: run["interpolator_distance"] ** 2 for arm, run in runs.items()}
    return over_steps(runs, errors, r"$\|\beta-\beta^\star\|^2$")


PAPER = Published(
    key="haochen2021",
    line="label noise recovers a sparse target, gradient descent and Gaussian noise do not",
    setting="beta = v * v from v = 1, n = 40, d = 100, five ones; 300,000 steps of lr = 0.01 in"
    " their loss, divided by 10 after a third and two thirds",
    arms=ARMS,
    claims=(
        Claim(
            statement="GD does not recover beta*",
            place="ours",
            asked=True,
            published=75.04062,
            measured=partial(_error, "GD"),
            arms=("GD",),
            rule="|beta - beta*|^2 at the end; the digits are of our NumPy run of their recipe",
            within=1e-6,
        ),
        Claim(
            statement="label noise of variance 1 recovers it",
            place="abstract",
            asked=True,
            published=0.01,
            measured=partial(_error, "label noise"),
            arms=("label noise",),
            rule=f"|beta - beta*|^2 at the end, mean of {SEEDS} seeds",
            relation="at most",
        ),
        Claim(
            statement="spherical Gaussian noise does not",
            place="abstract",
            asked=True,
            published=50.0,
            measured=partial(_error, "Gaussian noise"),
            arms=("Gaussian noise",),
            rule=f"|beta - beta*|^2 at the end, mean of {SEEDS} seeds",
            relation="at least",
            note="0.01 on every entry of the gradient of their loss",
        ),
    ),
    figure=_figure,
    caption="Squared distance from the target over the steps; median and middle 90 % of seeds.",
)
