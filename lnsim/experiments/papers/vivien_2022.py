"""Pillaud-Vivien, Reygner, Flammarion 2022, "Label noise (stochastic) gradient descent implicitly
solves the Lasso for quadratic parametrisation".

beta = u v. Under the full gradient g and the noise sigma xi of one drawn label a step multiplies p
= (u + v)/sqrt 2 by 1 - lr y and m = (u - v)/sqrt 2 by 1 + lr y, y_j = g_j + sigma xi x_kj. While
p_j or m_j lives, the mean over time of its logarithm's change vanishes; if it dies it is negative.
With E ln(1 -+ lr y_j) = -+lr g_j - lr^2 sigma^2 h_j/2 to second order, h = diag(X^T X/n), the mean
of beta over time b, whose gradient is the mean of g, satisfies

    g_j = -sign(b_j) lambda h_j where b_j is not 0,    |g_j| <= lambda h_j elsewhere,

lambda = lr sigma^2/2: the conditions of the Lasso min (1/2n)|X b - y|^2 + lambda sum_j h_j |b_j|.
The authors state it for the flow; the derivation for the steps is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from lnsim.base.checks import FloatArray
from lnsim.dynamics import SGD, LabelNoise
from lnsim.experiments.papers import _sparse
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.diagonal import Diagonal
from lnsim.models.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LR, SIGMA, STEPS, SEEDS, RECORDS = 0.02, 2.5, 300_000, 16, 3_000
WEIGHT = LR * SIGMA**2 / 2
ARM = "label noise"
BURNT = RECORDS // 4
"""Records left out of the mean over time."""


def start() -> tuple[Problem, Diagonal]:
    """Twenty samples, thirty coordinates, three nonzeros; u = 1/sqrt 2, v = 0."""
    return _sparse.start(20, 30, 3, 0.5**0.5)


def lasso(X: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """The minimiser of (1/2n)|X b - y|^2 + sum_j weights_j |b_j|, by scipy, b = p - m.

    Raises ArithmeticError where its conditions are not met to 1e-6 of the least weight.
    """
    count, dim = X.shape

    def value(split: FloatArray) -> tuple[float, FloatArray]:
        r = X @ (split[:dim] - split[dim:]) - y
        g = X.T @ r / count
        return float(r @ r) / (2 * count) + float(np.tile(weights, 2) @ split), np.append(
            g + weights, weights - g
        )

    found = minimize(
        value, np.zeros(2 * dim), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * (2 * dim),
        options={"maxiter": 100_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 1e-13},
    )  # fmt: skip
    b = found.x[:dim] - found.x[dim:]
    g = X.T @ (X @ b - y) / count
    wrong = np.where(b != 0, np.abs(g + np.sign(b) * weights), np.maximum(np.abs(g) - weights, 0.0))
    if wrong.max() > 1e-6 * weights.min():
        raise ArithmeticError(f"the Lasso was not solved: {found.message}")
    return np.asarray(b)


def _weights() -> FloatArray:
    """lambda h, (d,)."""
    return np.asarray(WEIGHT * np.mean(start()[0].X ** 2, axis=0))


def _means(runs: Runs) -> FloatArray:
    """The mean of beta over time, (S, d)."""
    return np.asarray(runs[ARM]["tracked_beta"][:, BURNT:].mean(axis=1))


def _solution() -> FloatArray:
    problem = start()[0]
    return lasso(problem.X, problem.y, _weights())


def _slopes(runs: Runs) -> FloatArray:
    """-g_j sign(b_j)/(lambda h_j) of the mean over time, over the Lasso's support, (S,)."""
    problem, b = start()[0], _solution()
    g = (_means(runs) @ problem.X.T - problem.y) @ problem.X / len(problem.y)
    on = np.abs(b) > 0.05 * np.abs(b).max()
    return np.asarray((-g * np.sign(b) / _weights())[:, on].mean(axis=1))


def _off(runs: Runs) -> float:
    """The largest |g_j|/(lambda h_j) of the mean over time and seeds."""
    problem = start()[0]
    g = (_means(runs).mean(axis=0) @ problem.X.T - problem.y) @ problem.X / len(problem.y)
    return float(np.abs(g / _weights()).max())


def _distances(runs: Runs) -> FloatArray:
    """|b - Lasso| over |Lasso - theta*|, for each seed."""
    problem, b = start()[0], _solution()
    assert problem.theta_star is not None
    missed = np.linalg.norm(b - problem.theta_star)
    return np.asarray(np.linalg.norm(_means(runs) - b, axis=1) / missed)


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import beside

    return beside(
        _solution(), _means(runs), r"Lasso $b_j$", r"$\beta_j$, mean over time", "label noise"
    )


PAPER = Published(
    key="pillaudvivien2022",
    line="label noise on a quadratic parametrisation solves a Lasso",
    setting=f"n = 20, d = 30, three nonzeros, full gradient and the noise of one label, sigma ="
    f" {SIGMA}, lr = {LR}, {STEPS:,} steps, {SEEDS} seeds; the paper's own sizes are not used",
    arms={
        ARM: Arm(
            start=start,
            dynamics=SGD(LR, LabelNoise(SIGMA, labels=1), batch_size=0),
            steps=STEPS,
            records=RECORDS,
            seeds=SEEDS,
            options={"tracked": 30},
        )
    },
    claims=(
        Claim(
            statement="on the support of the Lasso the gradient is the weight of the l1 norm",
            place="ours, from the abstract",
            published=1.0,
            measured=_slopes,
            arms=(ARM,),
            within=0.1,
            rule="-g_j sign(b_j)/(lambda h_j) of the mean over time, mean over the support and"
            " seeds, within 10 %",
        ),
        Claim(
            statement="nowhere is it larger",
            place="ours, from the abstract",
            asked=True,
            published=1.15,
            measured=_off,
            arms=(ARM,),
            relation="at most",
            rule="largest |g_j|/(lambda h_j) of the mean over time and seeds",
        ),
        Claim(
            statement="the mean over time is the Lasso's solution",
            place="ours, from the abstract",
            asked=True,
            published=0.35,
            measured=_distances,
            arms=(ARM,),
            relation="at most",
            rule="its distance over the distance of the Lasso's from theta*, mean of seeds",
        ),
    ),
    figure=_figure,
    caption="Coordinates of the mean over time, a point for each seed, beside the Lasso's.",
)
