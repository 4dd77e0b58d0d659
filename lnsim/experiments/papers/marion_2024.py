"""Marion, Chizat 2024, "Deep linear networks for regression are implicitly regularized towards flat
minima".

Deep linear regression, L = 10 layers of width d = 5, n = 50, least-squares solution w* of norm 1.
With the loss mean r^2, a = w*^T S w* and Lambda the largest eigenvalue of S = X^T X/n, every
minimiser has a sharpness of at least 2 L a, and from a small start gradient descent finds one of at
most 8 L Lambda.  Ours is half that loss: half the sharpness, L a and 4 L Lambda, and twice the lr.

A minimiser whose layers are balanced and of rank one has, for L layers and a predictor of norm 1,

    lambda_max(S^(1/2) (I + (L - 1) w* w*^T) S^(1/2))

(the first layer can move in every direction of its input, each of the others only along w*: ours):
between L a and Lambda + (L - 1) a.  With a larger lr descent ends where the sharpness is below
2/lr.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.deep import DeepLinear, deep_init
from lnsim.models.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, DIM, LAYERS, SEED = 50, 5, 10, 0
SCALES = (0.45, 0.4, 0.35, 0.3)
"""Standard deviations of the layers' entries at the start."""
SLOW, FAST = 0.01, 0.14
"""Twice their lr 0.005 and 0.07."""


def problem() -> Problem:
    """Normal inputs and labels with normal noise, divided by the norm of the least-squares w*."""
    draws = np.random.default_rng(SEED)
    X = draws.standard_normal((SAMPLES, DIM))
    y = X @ draws.standard_normal(DIM) + draws.standard_normal(SAMPLES)
    w = np.linalg.lstsq(X, y)[0]
    return Problem(X, y / np.linalg.norm(w), w / np.linalg.norm(w))


def start(scale: float) -> tuple[Problem, DeepLinear]:
    """Entries N(0, scale^2) in every layer."""
    network = deep_init(DIM, [DIM] * (LAYERS - 1), 1, SEED, scale=scale * np.sqrt(DIM))
    return problem(), network


class Bounds(NamedTuple):
    """L a, the sharpness of the balanced minimiser, and 4 L Lambda."""

    least: float
    balanced: float
    most: float


def bounds() -> Bounds:
    """At this problem."""
    of = problem()
    assert of.theta_star is not None
    S, w = of.X.T @ of.X / SAMPLES, of.theta_star
    moving = np.eye(DIM) + (LAYERS - 1) * np.outer(w, w)
    balanced = float(np.linalg.eigvals(S @ moving).real.max())
    return Bounds(
        LAYERS * float(w @ S @ w), balanced, 4 * LAYERS * float(np.linalg.eigvalsh(S)[-1])
    )


BOUNDS = bounds()
TOO_FAST = 1.1 * 2 / BOUNDS.least
"""Ten percent above the lr with which the flattest minimiser is stable."""


def _arm(scale: float, lr: float, steps: int) -> Arm:
    return Arm(start=partial(start, scale), dynamics=GD(lr), steps=steps, records=100,
               options={"measures": "none,sharpness"})  # fmt: skip


def _name(scale: float) -> str:
    return f"scale {scale:g}"


LARGE, UNSTABLE = "large lr", "too large an lr"
ARMS = {
    **{_name(scale): _arm(scale, SLOW, 80_000) for scale in SCALES},
    LARGE: _arm(SCALES[2], FAST, 20_000),
    UNSTABLE: _arm(SCALES[2], TOO_FAST, 20_000),
}


def _sharpness(runs: Runs) -> FloatArray:
    """At the end, from every start."""
    return np.array([float(runs[_name(scale)]["sharpness"][-1]) for scale in SCALES])


def _excess(runs: Runs) -> float:
    """The largest training loss above the least one, of all arms but the last at the end."""
    of = problem()
    assert of.theta_star is not None
    least = float(np.mean((of.X @ of.theta_star - of.y) ** 2)) / 2
    ends = [runs[name]["train_loss"][-1] for name in (*map(_name, SCALES), LARGE)]
    return float(np.max(ends)) - least


def _distance(runs: Runs) -> float:
    """|w - w*| at the end with too large an lr; infinite once diverged."""
    distance = float(runs[UNSTABLE]["interpolator_distance"][-1])
    return distance if np.isfinite(distance) else np.inf


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    return over_steps(runs, {name: run["sharpness"] for name, run in runs.items()}, "sharpness")


PAPER = Published(
    key="marion2024",
    line="deep linear networks find minima whose sharpness is within a factor of the least",
    setting=f"n = {SAMPLES}, d = {DIM}, {LAYERS} layers of width {DIM}, |w*| = 1",
    arms=ARMS,
    claims=(
        Claim(
            statement="all arms but the last have learned",
            place="ours",
            asked=True,
            published=1e-6,
            measured=_excess,
            arms=(*map(_name, SCALES), LARGE),
            relation="at most",
            rule="largest training loss at the end less that of w*; a premise of the next",
        ),
        Claim(
            statement="every minimiser has a sharpness of at least L a",
            place="Theorem 1",
            published=BOUNDS.least,
            measured=lambda runs: float(_sharpness(runs).min()),
            arms=tuple(map(_name, SCALES)),
            relation="at least",
            rule="least sharpness at the end, from four starts",
        ),
        Claim(
            statement="from a small start it is at most 4 L Lambda",
            place="Figure 1",
            published=BOUNDS.most,
            measured=lambda runs: float(_sharpness(runs).max()),
            arms=tuple(map(_name, SCALES)),
            relation="at most",
            rule="largest sharpness at the end, from four starts",
        ),
        Claim(
            statement="the smaller the start, the nearer to the balanced minimiser",
            place="ours",
            asked=True,
            published=1.25,
            measured=lambda runs: float(_sharpness(runs)[-1]) / BOUNDS.balanced,
            arms=(_name(SCALES[-1]),),
            relation="at most",
            rule="sharpness from the smallest start over that of the balanced minimiser",
            note=f"which is {BOUNDS.balanced:.4g}",
        ),
        Claim(
            statement="with a large lr the sharpness ends below 2/lr",
            place="Figure 1",
            published=2 / FAST,
            measured=lambda runs: float(runs[LARGE]["sharpness"][-1]),
            arms=(LARGE,),
            relation="at most",
            rule=f"sharpness at the end, lr = {FAST:g}",
        ),
        Claim(
            statement="with an lr above 2/(L a) nothing is learned",
            place="Theorem 1",
            asked=True,
            published=0.01,
            measured=_distance,
            arms=(UNSTABLE,),
            relation="at least",
            rule=f"|w - w*| at the end, lr = {TOO_FAST:.3g}",
        ),
    ),
    figure=_figure,
    caption="Sharpness over the steps from four starts, and with a larger lr.",
)
