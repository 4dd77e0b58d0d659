"""Even, Pesme, Gunasekar, Flammarion 2023, "(S)GD over Diagonal Linear Networks: Implicit
Regularisation, Large Stepsizes and Edge of Stability".

beta = u v from u = alpha, v = 0, with steps of any size.  p = (u + v)/sqrt 2 and m = (u - v)/sqrt 2
are multiplied by 1 - lr g and 1 + lr g.  So with alpha_k^2 = |u^2 - v^2| after k steps

    alpha_inf^2 = alpha^2 exp(-sum_k q(lr g_k)),     q(x) = -ln|1 - x^2|,
    beta = (alpha_inf^2/2) sinh(2 theta),      2 theta = sum_k ln|(1 - lr g_k)/(1 + lr g_k)|,

where g is in the span of the inputs.  As lr -> 0 theta is in that span too, and the limit is the
interpolator of least hyperbolic entropy at the scale alpha_inf, a vector: of a convex problem whose
dual, smooth and of n variables, is solved here by scipy.  With large steps alpha_inf differs from
alpha, for gradient descent mostly on the support of the target, which hinders, and for SGD evenly
and much more, which helps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD, SGD
from lnsim.experiments.papers import _sparse
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs, growth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA, STEPS, SEEDS = 0.1, 20_000, 32
RATES = (1 / 30, 1 / 9, 1 / 3)
SMALL, LONG = 0.01, 600_000

_start = partial(_sparse.start, 20, 30, 3, ALPHA)


def _gd(lr: float) -> str:
    return f"GD, lr = {lr:.3g}"


def _sgd(lr: float) -> str:
    return f"SGD, lr = {lr:.3g}"


ARMS = {
    _gd(SMALL): Arm(start=_start, dynamics=GD(SMALL), steps=LONG, records=200),
    **{_gd(lr): Arm(start=_start, dynamics=GD(lr), steps=STEPS, records=200) for lr in RATES},
    **{
        _sgd(lr): Arm(start=_start, dynamics=SGD(lr), steps=STEPS, records=200, seeds=SEEDS)
        for lr in RATES
    },
}


def least_entropy(X: FloatArray, y: FloatArray, scale: FloatArray) -> FloatArray:
    """The interpolator of least hyperbolic entropy at `scale` : (d,), squared: alpha_inf^2.

    Its entries are (scale/2) sinh(2 X^T nu), with nu such that X beta = y.  Raises ArithmeticError
    if scipy does not find it.
    """

    def value(nu: FloatArray) -> float:
        return float(np.sum(scale / 4 * np.cosh(2 * (X.T @ nu))) - y @ nu)

    def slope(nu: FloatArray) -> FloatArray:
        return np.asarray(X @ (scale / 2 * np.sinh(2 * (X.T @ nu))) - y)

    def curvature(nu: FloatArray) -> FloatArray:
        return np.asarray((X * (scale * np.cosh(2 * (X.T @ nu)))) @ X.T)

    found = minimize(
        value, np.zeros(len(y)), method="trust-exact", jac=slope, hess=curvature,
        options={"gtol": 1e-10, "maxiter": 10_000},
    )  # fmt: skip
    if np.abs(slope(found.x)).max() > 1e-6:
        raise ArithmeticError(f"no interpolator of least entropy was found: {found.message}")
    return np.asarray(scale / 2 * np.sinh(2 * (X.T @ found.x)))


def _from_entropy(arm: str, runs: Runs) -> float:
    """The distance of the limit from the interpolator of least entropy at its scale, relative."""
    problem, u, v = _start()[0], runs[arm]["final_u"], runs[arm]["final_v"]
    least = least_entropy(problem.X, problem.y, np.abs(u**2 - v**2))
    return float(np.linalg.norm(u * v - least) / np.linalg.norm(least))


def _gains(arm: str, runs: Runs) -> FloatArray:
    """sum_j ln(alpha^2/alpha_inf^2), for each seed."""
    u, v = runs[arm]["final_u"], runs[arm]["final_v"]
    gains: FloatArray = -np.log(np.abs(u**2 - v**2) / ALPHA**2).sum(axis=-1)
    return gains


def _trend(name: object, runs: Runs, *, largest: bool) -> float:
    """The largest (or least) ratio of median test losses at one lr to those at the next smaller."""
    medians = [float(np.median(runs[name(lr)]["test_loss"][..., -1])) for lr in RATES]  # type: ignore[operator]
    ratios = growth(medians)
    return float(ratios.max() if largest else ratios.min())


def _figure(runs: Runs) -> Figure:
    return _sparse.test_losses({name: runs[name] for name in ARMS if name != _gd(SMALL)})


PAPER = Published(
    key="even2023",
    line="large steps help SGD and hinder gradient descent, through the scale of their limit",
    setting=f"n = 20, d = 30, three nonzeros, u = {ALPHA}, v = 0, {STEPS:,} steps",
    arms=ARMS,
    claims=(
        Claim(
            statement="the limit of small steps is the interpolator of least entropy at its scale",
            place="abstract",
            asked=True,
            published=1e-4,
            measured=partial(_from_entropy, _gd(SMALL)),
            arms=(_gd(SMALL),),
            relation="at most",
            rule="|beta - least|/|least|, the latter by scipy from |u^2 - v^2| at the end",
            note=f"lr = {SMALL}, {LONG:,} steps; the distance is of second order in lr",
        ),
        Claim(
            statement="the larger the step, the worse gradient descent",
            place="abstract",
            published=1.0,
            measured=partial(_trend, _gd, largest=False),
            arms=tuple(map(_gd, RATES)),
            relation="at least",
            rule="least ratio of test losses at neighbouring lr",
        ),
        Claim(
            statement="the larger the step, the better SGD",
            place="abstract",
            published=1.0,
            measured=partial(_trend, _sgd, largest=True),
            arms=tuple(map(_sgd, RATES)),
            relation="at most",
            rule=f"largest ratio of median test losses at neighbouring lr, {SEEDS} seeds",
        ),
        Claim(
            statement="the scale shrinks by far more under SGD than under gradient descent",
            place="ours",
            asked=True,
            published=5.0,
            arms=(_gd(1 / 9), _sgd(1 / 9)),
            measured=lambda runs: _gains(_sgd(1 / 9), runs) / _gains(_gd(1 / 9), runs),
            relation="at least",
            rule=f"ratio of sum ln(alpha^2/alpha_inf^2) at lr = 1/9, mean of {SEEDS} seeds; n = 20"
            " is their order",
        ),
    ),
    figure=_figure,
    caption="Test loss over the steps at several step sizes; of SGD medians and middle 90 %.",
)
