"""Chen, Kunin, Yamamura, Ganguli 2023, "Stochastic Collapse: How Gradient Noise Attracts SGD
Dynamics Towards Simpler Subnetworks".

Their teacher and student are linear, 64 inputs and outputs, 1,024 samples with X^T X = I, a teacher
of rank 8 with singular values from 0.5 to 1, label noise in the data 0.5/8.  The student is trained
in the singular vectors of X^T y, which it keeps: a diagonal network u v of the 64 singular values
s, from u = v = 1, and noise sigma on each mode at every step, with lr = 3/1024, a tenth of it from
step 50,000 on.  u = v for ever, and while a mode lives the mean over time of the change of ln u,

    -lr (u^2 - s + sigma xi) - lr^2 sigma^2/2 + ...,

vanishes: E[u v] = max(s - lr sigma^2/2, 0), our derivation.  So noise thresholds the spectrum
softly, and what it kills stays dead when the step is divided.

Here mode i is a sample sqrt(64) e_i, of a problem whose gradient is then that of the modes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.dynamics import SGD, LabelNoise, Piecewise, Scheduled
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs, growth
from lnsim.models.diagonal import Diagonal
from lnsim.models.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES, SAMPLES, RANK, LR, STEPS, DROP, SEEDS = 64, 1024, 8, 3 / 1024, 60_000, 50_000, 16
NOISES = (0.0, 5.0, 10.0, 15.0, 20.0)
RECORDS = 600


def _data() -> tuple[FloatArray, FloatArray]:
    """The teacher and X^T y : (64, 64) each."""
    draws = np.random.default_rng(0)
    X = np.linalg.qr(draws.standard_normal((SAMPLES, MODES)))[0]
    left, right = (np.linalg.qr(draws.standard_normal((MODES, MODES)))[0] for _ in range(2))
    teacher = left[:, :RANK] * np.linspace(0.5, 1.0, RANK) @ right[:, :RANK].T
    noise = 0.5 / np.sqrt(MODES) * draws.standard_normal((SAMPLES, MODES))
    return teacher, X.T @ (X @ teacher + noise)


TEACHER, MOMENTS = _data()
LEFT, VALUES, RIGHT = np.linalg.svd(MOMENTS)
ROOT = np.sqrt(MODES)


def start() -> tuple[Problem, Diagonal]:
    """A sample for each mode, and u = v = 1."""
    return (
        Problem(ROOT * np.eye(MODES), ROOT * VALUES, VALUES),
        Diagonal(np.ones(MODES), np.ones(MODES)),
    )


def _name(sigma: float) -> str:
    return f"sigma = {sigma:g}"


def _arm(sigma: float) -> Arm:
    noise = LabelNoise(ROOT * sigma, "gaussian")
    lr = Piecewise((DROP,), (1.0, 0.1))
    return Arm(
        start=start, dynamics=Scheduled(SGD(LR, noise, batch_size=0), lr=lr), steps=STEPS,
        records=RECORDS, seeds=SEEDS, options={"tracked": MODES},
    )  # fmt: skip


ARMS = {_name(sigma): _arm(sigma) for sigma in NOISES}


def _test_losses(sigma: float, runs: Runs) -> FloatArray:
    """Mean square of the student less the teacher, over its entries, for each seed, (S, T)."""
    beta = runs[_name(sigma)]["tracked_beta"]
    overlap = np.einsum("ij,ik,kj->j", LEFT, TEACHER, RIGHT.T)
    square = (beta**2).sum(axis=-1) - 2 * beta @ overlap + np.sum(TEACHER**2)
    return np.asarray(square / MODES**2)


def _beside_none(sigma: float, runs: Runs) -> FloatArray:
    """The final test loss over that without noise, for each seed."""
    none = _test_losses(0.0, runs)[:, -1].mean()
    return np.asarray(_test_losses(sigma, runs)[:, -1] / none)


def _level(sigma: float, runs: Runs) -> FloatArray:
    """The mean of the top modes from step 20,000 to the drop, over its prediction, of each seed."""
    run = runs[_name(sigma)]
    late = (run.steps >= 20_000) & (run.steps <= DROP)
    predicted = np.maximum(VALUES[:RANK] - LR * sigma**2 / 2, 0.0)
    found: FloatArray = run["tracked_beta"][:, late, :RANK].mean(axis=(1, 2)) / predicted.mean()
    return found


def _alive(runs: Runs) -> float:
    """The largest ratio of the number of living modes to that at the next smaller sigma."""
    last = [runs[_name(sigma)]["tracked_beta"][:, -1] for sigma in NOISES]
    alive = [np.where(np.isnan(beta), np.nan, beta > 0.01).mean() for beta in last]
    return float(growth(alive).max())


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    return over_steps(runs, {_name(s): _test_losses(s, runs) for s in NOISES}, "test loss")


PAPER = Published(
    key="chen2023",
    line="label noise kills the small singular values of a linear student, which then generalises",
    setting=f"64 modes, n = 1,024, teacher of rank 8, lr = 3/1024, a tenth after {DROP:,} of"
    f" {STEPS:,} steps, {SEEDS} seeds",
    arms=ARMS,
    claims=(
        *(
            Claim(
                statement=f"the test loss is better with noise, sigma = {sigma:g}",
                place="Figure 5",
                published=1.0,
                measured=partial(_beside_none, sigma),
                arms=(_name(0.0), _name(sigma)),
                relation="at most",
                rule="final test loss over that without noise, mean of seeds",
            )
            for sigma in NOISES[1:]
        ),
        Claim(
            statement="the more noise, the more singular values die",
            place="Figure 5",
            published=1.0,
            measured=_alive,
            arms=tuple(ARMS),
            relation="at most",
            rule="largest ratio of the numbers of u v > 0.01 at the end, at neighbouring sigma",
        ),
        *(
            Claim(
                statement=f"with sigma = {sigma:g} a mode of the teacher rests at s - lr sigma^2/2",
                place="ours",
                published=1.0,
                measured=partial(_level, sigma),
                arms=(_name(sigma),),
                within=0.05,
                rule="mean of u v from step 20,000 to the drop over that, 8 modes and all seeds,"
                " within 5 %",
            )
            for sigma in NOISES[1:4]
        ),
    ),
    figure=_figure,
    caption="Test loss over the steps at five noises; medians and middle 90 % of seeds.",
)
