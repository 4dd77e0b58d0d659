"""Kunin, Raventos, Domine, Chen, Klindt, Saxe, Ganguli 2024, "Get rich quick: exact solutions
reveal how unbalanced initializations promote rapid feature learning".

A single linear neuron f = a w^T x on whitened inputs, X^T X/n = I, y = x^T beta*.  Gradient flow is

    dw/dt = a (beta* - a w),     da/dt = w^T (beta* - a w),

and keeps delta = a^2 - |w|^2.  With z = w^T beta*/a, s = |beta*| and K = sqrt(delta^2 + 4 s^2),

    dz/dt = s^2 - delta z - z^2,    z = (K tanh Q - delta)/2,
    Q = K t/2 + artanh((delta + 2 z_0)/K),

and B = 1/a^2 obeys dB/dt = 2 - 2 (z + delta) B, whose integrating factor is E = e^{delta t} (cosh
Q/cosh Q_0)^2, so that B = (B_0 + 2 int_0^t E)/E.  The integral is taken by quadrature here.  The
rest of w, across beta*, keeps its direction, and |w|^2 = a^2 - delta.  artanh is of |argument| < 1,
as at all starts below; beyond, tanh is coth.

delta > 0 (a large) is lazy: w moves to beta*/a while a stays.  delta < 0 (w large) first turns.
The change of the kernel K = a^2 I + w w^T is measured by 1 - cos(K_0, K_t); in the authors' code
the norm of K_t has a_0^2 where a_t^2 belongs, so that curves there are not this number.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.integrate import quad_vec

from lnsim.base.checks import FloatArray
from lnsim.dynamics import GD
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.problem import Problem
from lnsim.models.two_layer import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DELTAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
TARGET, START, END = np.array([0.0, 1.0]), np.array([-1.0, 0.0]), 20.0
LR, RECORDS = 1e-3, 200
X = np.sqrt(2.0) * np.eye(2)


def start(delta: float) -> tuple[Problem, Network]:
    """beta_0 = a w = START with a > 0 and a^2 - |w|^2 = delta."""
    a = np.sqrt((delta + np.sqrt(delta**2 + 4 * START @ START)) / 2)
    return Problem(X, X @ TARGET, TARGET), Network((START / a)[None], np.array([a]))


def near_the_ridge(side: float) -> tuple[Problem, Network]:
    """delta = -2 and w^T beta*/a at the unstable root of dz/dt, or a share `side` beyond it."""
    delta, a = -2.0, 0.5
    z = -(delta + np.sqrt(delta**2 + 4 * TARGET @ TARGET)) / 2 * (1 + side)
    along = a * z
    across = np.sqrt(a**2 - delta - along**2)
    w = np.array([[across, along]])
    return Problem(X, X @ TARGET, TARGET), Network(w, np.array([a]))


def closed(w: FloatArray, a: float, time: float) -> tuple[FloatArray, float]:
    """w : (2,) and a > 0 at `time`, from the formula above."""
    s = float(np.linalg.norm(TARGET))
    delta, z = a**2 - float(w @ w), float(w @ TARGET) / a
    K = np.sqrt(delta**2 + 4 * s**2)
    first = np.arctanh((delta + 2 * z) / K)

    def factor(t: float) -> float:
        # cosh(Q)/cosh(Q_0) by exponentials that do not overflow
        Q = K * t / 2 + first
        log = np.logaddexp(Q, -Q) - np.logaddexp(first, -first)
        return float(np.exp(delta * t + 2 * log))

    integral = quad_vec(factor, 0.0, time, epsrel=1e-12)[0]
    later = np.sqrt(factor(time) / (1 / a**2 + 2 * integral))
    z = (K * np.tanh(K * time / 2 + first) - delta) / 2
    along = later * z / s
    rest = w - (w @ TARGET) * TARGET / s**2
    size = np.linalg.norm(rest)
    across = np.sqrt(max(later**2 - delta - along**2, 0.0))
    return along * TARGET / s + (across * rest / size if size else 0.0), float(later)


def _arm(delta: float, end: float = END, lr: float = LR) -> Arm:
    return Arm(start=partial(start, delta), dynamics=GD(lr), steps=round(end / lr), records=RECORDS,
               options={"tracked": 1, "linearized": False})  # fmt: skip


def _name(delta: float) -> str:
    return f"delta = {delta:g}"


SHORT = 1.0
"""A time in the midst of learning."""
COARSE, FINE = "delta = -1, lr = 1e-3", "delta = -1, lr = 5e-4"
SIDES = {"below the ridge": -1e-3, "above the ridge": 1e-3}
ARMS = {
    **{_name(delta): _arm(delta) for delta in DELTAS},
    COARSE: _arm(-1.0, SHORT),
    FINE: _arm(-1.0, SHORT, LR / 2),
    **{
        name: Arm(start=partial(near_the_ridge, side), dynamics=GD(LR), steps=round(END / LR),
                  options={"linearized": False})
        for name, side in SIDES.items()
    },
}  # fmt: skip


def _deviation(arm: str, delta: float, time: float, runs: Runs) -> float:
    """The largest deviation of w and a at the end from the closed form."""
    network, final = start(delta)[1], runs[arm].final
    w, a = closed(network.W[0], float(network.a[0]), time)
    return float(np.abs(np.append(final.W[0] - w, final.a[0] - a)).max())


def _worst(runs: Runs) -> float:
    return float(np.max([_deviation(_name(delta), delta, END, runs) for delta in DELTAS]))


def _kernel(w: FloatArray, a: FloatArray | float) -> FloatArray:
    return np.asarray(a**2 * np.eye(2) + np.outer(w, w))


def kernel_distance(run: object, delta: float) -> float:
    """1 - cos(K_0, K) at the end."""
    network, final = start(delta)[1], run.final  # type: ignore[attr-defined]
    first, last = _kernel(network.W[0], network.a[0]), _kernel(final.W[0], final.a[0])
    return float(1 - np.sum(first * last) / np.linalg.norm(first) / np.linalg.norm(last))


def _distances(runs: Runs) -> FloatArray:
    return np.array([kernel_distance(runs[_name(delta)], delta) for delta in DELTAS])


def _signs(runs: Runs) -> float:
    """The product of the signs in which a ends on both sides of the ridge; it begins at +."""
    return float(np.prod([np.sign(runs[name].final.a[0]) for name in SIDES]))


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    names = [_name(delta) for delta in (-4.0, -1.0, 0.0, 1.0, 4.0)]
    chosen = {name: runs[name] for name in names}
    return over_steps(chosen, {name: runs[name]["train_loss"] for name in names}, "training loss")


PAPER = Published(
    key="kunin2024",
    line="delta = a^2 - |w|^2 of a linear neuron decides between lazy and rich",
    setting="X^T X/n = I in two dimensions, beta_0 = (-1, 0), beta* = (0, 1), lr = 1e-3, to t = 20",
    arms=ARMS,
    claims=(
        Claim(
            statement="w and a follow the closed form",
            place="Single_Neuron.ipynb of getrichquick",
            asked=True,
            published=1e-3,
            measured=_worst,
            arms=tuple(map(_name, DELTAS)),
            relation="at most",
            rule="largest deviation at t = 20, of seven delta",
        ),
        Claim(
            statement="the deviation is of first order in lr",
            place="ours",
            asked=True,
            published=2.0,
            measured=lambda runs: (
                _deviation(COARSE, -1.0, SHORT, runs) / _deviation(FINE, -1.0, SHORT, runs)
            ),
            arms=(COARSE, FINE),
            within=0.02,
            rule="deviation at t = 1 with lr = 1e-3 over that with half of it, within 2 %",
        ),
        Claim(
            statement="the kernel moves least from the largest delta",
            place="Single_Neuron.ipynb of getrichquick",
            published=1.0,
            measured=lambda runs: _distances(runs)[-1] / _distances(runs)[:-1].min(),
            arms=tuple(map(_name, DELTAS)),
            relation="at most",
            rule="1 - cos(K_0, K) at delta = 4 over the least of the others",
        ),
        Claim(
            statement="a ends with its sign on one side of the unstable z only",
            place="Single_Neuron.ipynb of getrichquick",
            published=-1.0,
            measured=_signs,
            arms=tuple(SIDES),
            rule="product of the signs at the end, from starts 0.1 % on both sides",
        ),
    ),
    figure=_figure,
    caption="The training loss over the steps, from large w (delta < 0) to large a (delta > 0).",
)
