"""Lewkowycz, Bahri, Dyer, Sohl-Dickstein, Gur-Ari 2020, "The large learning rate phase of deep
learning: the catapult mechanism".

Their model is f = u^T v x / sqrt(n), one sample x = 1, y = 0, loss f^2/2, under gradient descent.
With lambda = (|u|^2 + |v|^2)/n, the value of the tangent kernel, a step is

    f <- f (1 - lr lambda + lr^2 f^2 / n),     lambda <- lambda + (lr f^2 / n) (lr lambda - 4):

monotone below lr = 2/lambda_0, then a rise of the loss and a flatter minimum, and divergence above
4/lambda_0 (theory/catapult.py; the experiment `large-steps` has the same with a finer map, and on
data).  Here x = 1/sqrt(n) for a two-layer network without that factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.theory.catapult import recursion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, STEPS = 512, 150
MULTIPLES = np.array([0.5, 1.0, 1.5, 1.9, 2.1, 2.5, 3.0, 3.5, 3.9, 4.1, 4.5, 5.0])
"""lr lambda_0."""
ARM = "gradient descent"


def start() -> tuple[Problem, Network]:
    """u and v of normal entries."""
    u, v = np.random.default_rng(0).standard_normal((2, WIDTH))
    return Problem(np.full((1, 1), 1 / np.sqrt(WIDTH)), np.zeros(1)), Network(u[:, None], v)


def _curvature() -> float:
    """lambda_0."""
    network = start()[1]
    return float((np.sum(network.W**2) + network.a @ network.a) / WIDTH)


RATES = MULTIPLES / _curvature()


def _losses(runs: Runs) -> FloatArray:
    """(rates, steps + 1); infinite once diverged."""
    losses = np.array(runs[ARM]["train_loss"])
    return np.where(np.isfinite(losses), losses, np.inf)


def _rises(runs: Runs) -> FloatArray:
    """The largest loss over the first, of each rate."""
    losses = _losses(runs)
    return np.asarray(losses.max(axis=1) / losses[:, 0])


def _deviation(runs: Runs) -> float:
    """The loss against the recursion, relative to the largest so far, below 4/lambda_0."""
    network = start()[1]
    f = float(network.W[:, 0] @ network.a) / np.sqrt(WIDTH)
    below = MULTIPLES < 4
    path = recursion(f, _curvature(), RATES[below], 10, square=1 / WIDTH)
    predicted = np.square(path.f) / 2
    largest = np.maximum.accumulate(predicted, axis=1)
    return float((np.abs(_losses(runs)[below, :11] - predicted) / largest).max())


def _share(runs: Runs, least: float, most: float, *, risen: bool) -> float:
    """Of the rates between, those whose loss ends below 1e-6 of its first, risen before or not."""
    losses, between = _losses(runs), np.digitize(MULTIPLES, [least, most]) == 1
    ends = losses[:, -1] < 1e-6 * losses[:, 0]
    return float((ends & ((_rises(runs) > 1.01) == risen))[between].mean())


def _flatness(runs: Runs) -> float:
    """The largest lr lambda at the end, of the rates between 2/lambda_0 and 4/lambda_0."""
    run = runs[ARM]
    trace = (np.sum(run["final_W"] ** 2, axis=(1, 2)) + np.sum(run["final_a"] ** 2, axis=1)) / WIDTH
    return float((RATES * trace)[np.digitize(MULTIPLES, [2, 4]) == 1].max())


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    chosen = [i for i in range(len(MULTIPLES)) if MULTIPLES[i] in (1.0, 1.9, 2.5, 3.5, 4.1)]
    names = [rf"$\eta\lambda_0={MULTIPLES[i]:g}$" for i in chosen]
    losses = np.array(runs[ARM]["train_loss"])
    curves = {name: losses[i] for name, i in zip(names, chosen, strict=True)}
    return over_steps(dict.fromkeys(names, runs[ARM]), curves, "training loss")


PAPER = Published(
    key="lewkowycz2020",
    line="between 2/lambda_0 and 4/lambda_0 the loss rises, and a flatter minimum is found",
    setting=f"f = u^T v x / sqrt(n), n = {WIDTH}, one sample x = 1, y = 0, {STEPS} steps",
    arms={
        ARM: Arm(
            start=start,
            dynamics=GD(RATES),
            steps=STEPS,
            records=STEPS,
            options={"replicas": len(MULTIPLES), "linearized": False},
        ),
    },
    claims=(
        Claim(
            statement="the loss follows the recursion in f and lambda",
            place="Section 2.1",
            asked=True,
            published=1e-9,
            measured=_deviation,
            arms=(ARM,),
            relation="at most",
            rule="largest deviation over the largest loss so far, in ten steps, below 4/lambda_0",
        ),
        Claim(
            statement="below 2/lambda_0 it falls to 0 without a rise",
            place="Section 2.1",
            published=1.0,
            measured=lambda runs: _share(runs, 0, 2, risen=False),
            arms=(ARM,),
            relation="at least",
            rule="share of the rates",
        ),
        Claim(
            statement="between 2/lambda_0 and 4/lambda_0 it rises first, then falls to 0",
            place="Section 2.1",
            published=1.0,
            measured=lambda runs: _share(runs, 2, 4, risen=True),
            arms=(ARM,),
            relation="at least",
            rule="share of the rates",
        ),
        Claim(
            statement="above 4/lambda_0 it diverges",
            place="Section 2.1",
            published=1.0,
            measured=lambda runs: float(np.isinf(_losses(runs)[MULTIPLES > 4, -1]).mean()),
            arms=(ARM,),
            relation="at least",
            rule="share of the rates",
        ),
        Claim(
            statement="between them lambda ends below 2/lr",
            place="Section 2.1",
            published=2.0,
            measured=_flatness,
            arms=(ARM,),
            relation="at most",
            rule="largest lr lambda at the end",
        ),
    ),
    figure=_figure,
    caption="The loss over the steps, below, between and above 2/lambda_0 and 4/lambda_0.",
)
