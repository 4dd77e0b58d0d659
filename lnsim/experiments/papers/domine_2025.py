"""Domine, Anguita, Proca, Braun, Kunin, Mediano, Saxe 2025, "From Lazy to Rich: Exact Learning
Dynamics in Deep Linear Networks".

Two-layer linear networks whose start has A^T A - W W^T = lambda I, on whitened inputs, have a
closed form (theory/balanced.py).  lambda = 0 is rich, a large |lambda| lazy: the relative scale of
the layers alone makes the regime, without noise.

Where the start is aligned with the target's singular vectors, every mode moves alone.  Of f = A W
let s = a w be a mode's value, a^2 - w^2 = lambda; from da/dt = w (sigma - s), dw/dt = a (sigma - s)

    ds/dt = (a^2 + w^2) (sigma - s) = sqrt(lambda^2 + 4 s^2) (sigma - s):

a sigmoid for lambda = 0, an exponential of rate |lambda| for a large one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.integrate import solve_ivp

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs, growth
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network
from lnsim.theory import balanced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lnsim.simulation.trajectory import Trajectory

DIM, END, LR, RECORDS = 5, 4.0, 1e-3, 100
BALANCES = (-30.0, -8.0, -2.0, 0.0, 2.0, 8.0, 30.0)
SMALL = 0.05
"""The value s of every mode at the start."""
SINGULAR = np.array([1.6, 1.2, 0.9, 0.6, 0.4])
LEFT, _, RIGHT = np.linalg.svd(np.random.default_rng(0).standard_normal((DIM, DIM)))
TARGET = LEFT * SINGULAR @ RIGHT
"""S, the predictor that is learned."""


def start(balance: float, *, aligned: bool = False) -> tuple[Problem, Network]:
    """Whitened inputs, labels S x; A^T A - W W^T = `balance` I, singular values of A W SMALL.

    The singular vectors are those of S if `aligned`, else drawn.
    """
    draws = np.random.default_rng(1)
    X = np.sqrt(12) * np.linalg.qr(draws.standard_normal((12, DIM)))[0]
    out, hidden, into = (np.linalg.qr(draws.standard_normal((DIM, DIM)))[0] for _ in range(3))
    if aligned:
        out, into = LEFT, RIGHT.T
    a = np.sqrt((balance + np.sqrt(balance**2 + 4 * SMALL**2)) / 2)
    return Problem(X, X @ TARGET.T), Network(SMALL / a * hidden @ into.T, a * out @ hidden.T)


def _arm(balance: float, lr: float = LR, *, aligned: bool = False) -> Arm:
    return Arm(start=partial(start, balance, aligned=aligned), dynamics=GD(lr),
               steps=round(END / lr), records=RECORDS)  # fmt: skip


def _name(balance: float) -> str:
    return f"lambda = {balance:g}"


FINE, ALIGNED, RICH = "lambda = 2, lr = 5e-4", "lambda = 8, aligned", "lambda = 0, aligned"
ARMS = {
    **{_name(balance): _arm(balance) for balance in BALANCES},
    FINE: _arm(2.0, LR / 2),
    RICH: _arm(0.0, aligned=True),
    ALIGNED: _arm(8.0, aligned=True),
}


def _deviation(arm: str, balance: float, runs: Runs) -> float:
    """The largest deviation of Q Q^T at the end from the closed form, over its largest entry."""
    network, final = start(balance)[1], runs[arm].final
    R = balanced.solution(network.W, network.A, TARGET, np.array([END]))[0]
    Q = np.vstack([final.W.T, final.A])
    return float(np.abs(Q @ Q.T - R).max() / np.abs(R).max())


def _off_modes(arm: str, balance: float, runs: Runs) -> float:
    """The largest deviation of the singular values from ds/dt above, at all records."""
    run = runs[arm]
    flow = solve_ivp(
        lambda t, s: np.sqrt(balance**2 + 4 * s**2) * (SINGULAR - s), (0.0, END),
        np.full(DIM, SMALL), t_eval=np.minimum(run.steps * LR, END), rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    return float(np.abs(run["singular_values"] - flow.y.T).max())


def _kernel(network: Network) -> FloatArray:
    """A A^T (x) I + I (x) W^T W, the tangent kernel on the axes of the inputs."""
    eye = np.eye(DIM)
    return np.asarray(np.kron(network.A @ network.A.T, eye) + np.kron(eye, network.W.T @ network.W))


def _moved(balance: float, run: Trajectory) -> float:
    """1 - cos(K_0, K) at the end."""
    first, last = _kernel(start(balance)[1]), _kernel(run.final)
    return float(1 - np.sum(first * last) / np.linalg.norm(first) / np.linalg.norm(last))


def _order(runs: Runs) -> float:
    """The largest ratio of the kernel's move at one |lambda| to that at the next smaller one."""
    moved = np.array([_moved(balance, runs[_name(balance)]) for balance in BALANCES])
    middle = len(BALANCES) // 2
    up, down = moved[middle:], moved[middle::-1]
    return float(np.append(growth(up), growth(down)).max())


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    chosen = {name: runs[name] for name in map(_name, (-8.0, -2.0, 0.0, 2.0, 8.0))}
    return over_steps(chosen, {name: run["train_loss"] for name, run in chosen.items()},
                      "training loss")  # fmt: skip


PAPER = Published(
    key="domine2025",
    line="the balance of the layers alone carries a linear network from rich to lazy",
    setting="d = C = m = 5, whitened inputs, singular values of the predictor 0.05 at the start,"
    " lr = 1e-3, up to t = 4; the sizes are ours",
    arms=ARMS,
    claims=(
        Claim(
            statement="gradient descent follows the exact solution",
            place="abstract",
            asked=True,
            published=2e-3,
            measured=lambda runs: float(
                np.max([_deviation(_name(b), b, runs) for b in (-2.0, 0.0, 2.0)])
            ),
            arms=tuple(map(_name, (-2.0, 0.0, 2.0))),
            relation="at most",
            rule="largest deviation of Q Q^T at the end, lambda = -2, 0, 2, relative",
        ),
        Claim(
            statement="the deviation is of first order in lr",
            place="ours",
            asked=True,
            published=2.0,
            measured=lambda runs: _deviation(_name(2.0), 2.0, runs) / _deviation(FINE, 2.0, runs),
            arms=(_name(2.0), FINE),
            within=0.02,
            rule="deviation with lr = 1e-3 over that with half of it, lambda = 2, within 2 %",
        ),
        Claim(
            statement="a mode is learned in a sigmoid for lambda = 0, else exponentially",
            place="ours",
            asked=True,
            published=5e-3,
            measured=lambda runs: float(
                np.max([_off_modes(RICH, 0.0, runs), _off_modes(ALIGNED, 8.0, runs)])
            ),
            arms=(RICH, ALIGNED),
            relation="at most",
            rule="largest deviation of the singular values from their equation, lambda = 0 and 8",
        ),
        Claim(
            statement="the larger |lambda|, the less the kernel moves",
            place="abstract",
            published=1.0,
            measured=_order,
            arms=tuple(map(_name, BALANCES)),
            relation="at most",
            rule="largest ratio of 1 - cos(K_0, K) at neighbouring |lambda|, of both signs",
        ),
    ),
    figure=_figure,
    caption="The training loss over the steps, from both sides of the balanced start.",
)
