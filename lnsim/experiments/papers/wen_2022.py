"""Wen, Ma, Li 2022, "How Does Sharpness-Aware Minimization Minimize Sharpness?".

Once the labels are fitted, SAM with the normalised gradient of all samples moves along the
minimisers by the gradient flow of the largest eigenvalue of the Hessian, lambda_max; with that of
one drawn sample by that of its trace.  Both take lr rho^2/2 of flow time a step.

Here it is a two-layer linear network at the setting of Zhang et al. 2026, not theirs, for whose
minimisers the least trace is known: 2 sqrt(tr Sigma theta*^T Sigma theta*) (theory/flatness.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lnsim.dynamics import GD, SAM
from lnsim.experiments.papers.published import Arm, Claim, Published, Runs
from lnsim.models.problem import Problem
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import Network, ntk_init
from lnsim.theory import flatness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, DIM, WIDTH, LR, RHO, STEPS, SEEDS = 200, 20, 300, 1e-3, 0.2, 200_000, 8
FULL, ONE, NONE = "SAM, all samples", "SAM, one sample", "gradient descent"


def start() -> tuple[Problem, Network]:
    """The data of Zhang et al. 2026, and a start of 300 neurons."""
    return gaussian_regression(SAMPLES, DIM), ntk_init(WIDTH, DIM)


def _arm(dynamics: SAM | GD, seeds: int = 0) -> Arm:
    options = {"measures": "none,sharpness,hessian_trace", "linearized": False}
    return Arm(
        start=start, dynamics=dynamics, steps=STEPS, records=100, seeds=seeds, options=options
    )


ARMS = {
    NONE: _arm(GD(LR)),
    FULL: _arm(SAM(LR, RHO, batch_size=0)),
    ONE: _arm(SAM(LR, RHO), SEEDS),
}


def _least_trace() -> float:
    problem, _ = start()
    assert problem.theta_star is not None
    return float(flatness.least_trace(problem.theta_star[None], problem.gram))


def _share(arm: str, name: str, runs: Runs) -> float:
    """The quantity at the end over that at the end of gradient descent; the mean of seeds."""
    return float(runs[arm][name][..., -1].mean() / runs[NONE][name][-1])


def _figure(runs: Runs) -> Figure:
    from lnsim.figures.published import over_steps

    values = {f"{arm}: trace": run["hessian_trace"] for arm, run in runs.items()}
    values |= {f"{arm}: largest": run["sharpness"] for arm, run in runs.items()}
    of = {name: runs[name.rpartition(":")[0]] for name in values}
    return over_steps(of, values, "trace and largest eigenvalue of the Hessian")


PAPER = Published(
    key="wen2022",
    line="SAM on all samples lowers the largest eigenvalue of the Hessian, on one its trace",
    setting=f"two-layer linear network, n = {SAMPLES}, d = {DIM}, m = {WIDTH}, lr = {LR:g}, rho ="
    f" {RHO:g}, normalised, {STEPS:,} steps",
    arms=ARMS,
    claims=(
        Claim(
            statement="one-sample SAM goes to the least trace",
            place="Theorem 5.4",
            published=_least_trace(),
            measured=lambda runs: runs[ONE]["hessian_trace"][:, -1],
            arms=(ONE,),
            within=0.05,
            rule=f"trace at the end, mean of {SEEDS} seeds, within 5 %",
        ),
        Claim(
            statement="full-batch SAM lowers lambda_max more than it lowers the trace",
            place="ours, from Theorem 4.5",
            published=1.0,
            measured=lambda runs: (
                _share(FULL, "sharpness", runs) / _share(FULL, "hessian_trace", runs)
            ),
            arms=(FULL, NONE),
            relation="at most",
            rule="share of lambda_max that is left over that of the trace, beside descent",
        ),
        Claim(
            statement="full-batch SAM does not go to the least trace",
            place="ours, from Theorem 4.5",
            asked=True,
            published=1.5,
            arms=(FULL,),
            relation="at least",
            measured=lambda runs: float(runs[FULL]["hessian_trace"][-1]) / _least_trace(),
            rule="trace at the end over the least one",
        ),
    ),
    figure=_figure,
    caption="Trace and largest eigenvalue of the Hessian over the steps.",
)
