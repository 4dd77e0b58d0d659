"""Andriushchenko, Flammarion 2022, "Towards Understanding Sharpness-Aware Minimization".

Their experiment on sparse regression with a diagonal network, beta = u * v, and un-normalised SAM:

    n-SAM    the gradient of the loss L at w + rho grad L(w)
    1-SAM    the mean of every sample's gradient at w + rho grad of that sample's loss

Their losses are means of r^2, ours of r^2/2: what they move by rho grad l_k = 2 rho r_k grad f_k is
`SAM(lr, 2 rho, micro_batch=1)` here.  Digits are those of their notebook, which is deterministic
but for its runs of one drawn sample a step.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lnsim.dynamics import GD, SAM, SGD
from lnsim.experiments.papers import _sparse
from lnsim.experiments.papers.published import AMONG, Arm, Claim, Published, Runs, growth

NOTEBOOK = "understanding-sam, diag_nets_sam.ipynb"
STEPS, SEEDS = 10_001, 100
SMALL = partial(_sparse.start, 20, 30, 3, 0.02)


def _arm(
    dynamics: object, seeds: int = 0, start: object = partial(_sparse.start, 20, 30, 3)
) -> Arm:
    return Arm(start=start, dynamics=dynamics, steps=STEPS, records=200, seeds=seeds)  # type: ignore[arg-type]


def n_sam(lr: float, rho: float) -> SAM:
    """Moved by rho times the gradient of the mean loss."""
    return SAM(lr, rho, batch_size=0, normalized=False)


def one_sam(lr: float, rho: float) -> SAM:
    """The gradient of every sample at weights moved by rho times its own."""
    return SAM(lr, 2 * rho, batch_size=0, normalized=False, micro_batch=1)


ARMS = {
    "GD": _arm(GD(1 / 3)),
    "n-SAM, rho = 0.9": _arm(n_sam(1 / 3, 0.9)),
    "1-SAM, rho = 0.03": _arm(one_sam(1 / 3, 0.03)),
    "1-SAM, rho = 0.1": _arm(one_sam(1 / 3, 0.1)),
    "1-SAM, rho = 0.2": _arm(one_sam(1 / 3, 0.2)),
    "GD, lr 1/6": _arm(GD(1 / 6)),
    "n-SAM, rho = 0.1, lr 1/6": _arm(n_sam(1 / 6, 0.1)),
    "GD, small start, lr 1/6": _arm(GD(1 / 6), start=SMALL),
    "1-SAM, small start, lr 1/6": _arm(one_sam(1 / 6, 0.03), start=SMALL),
    "SGD": _arm(SGD(1 / 3), SEEDS),
}
DIGITS = {
    "GD": 0.015747762611708224,
    "n-SAM, rho = 0.9": 0.032812027137658364,
    "1-SAM, rho = 0.03": 0.009127933293039658,
    "1-SAM, rho = 0.1": 0.0015235412218010903,
    "1-SAM, rho = 0.2": 1.5622244035909675e-05,
    "GD, lr 1/6": 0.015056044189449159,
    "n-SAM, rho = 0.1, lr 1/6": 0.01598195225147282,
    "GD, small start, lr 1/6": 0.0006337885714222886,
    "1-SAM, small start, lr 1/6": 0.00023853572282255735,
}
DRAWN = (
    "GD",
    "n-SAM, rho = 0.9",
    "1-SAM, rho = 0.03",
    "1-SAM, rho = 0.1",
    "1-SAM, rho = 0.2",
    "SGD",
)


def _test_loss(arm: str, runs: Runs) -> np.ndarray:
    losses: np.ndarray = runs[arm]["test_loss"][..., -1]
    return losses


def _sparser(runs: Runs) -> float:
    """The largest ratio of the test loss at one rho of 1-SAM to that at the next smaller one."""
    losses = [float(_test_loss(arm, runs)) for arm in ("GD", *(a for a in DRAWN if "1-SAM" in a))]
    return float(growth(losses).max())


PAPER = Published(
    key="andriushchenko2022",
    line="1-SAM on a diagonal network finds the sparse target, gradient descent and n-SAM do not",
    setting="n = 20, d = 30, three nonzeros, u = 0.1, v = 0, 10,001 steps of lr = 1/3 unless said",
    arms=ARMS,
    claims=(
        *(
            Claim(
                statement=f"the test loss of {arm}",
                place=NOTEBOOK,
                published=digits,
                measured=partial(_test_loss, arm),
                arms=(arm,),
                rule="after the last step; nine digits, six below 1e-4",
                within=1e-9 if digits > 1e-4 else 1e-6,
            )
            for arm, digits in DIGITS.items()
        ),
        Claim(
            statement="the larger rho of 1-SAM, the smaller the test loss",
            place=NOTEBOOK,
            published=1.0,
            measured=_sparser,
            arms=tuple(arm for arm in DRAWN if arm == "GD" or "1-SAM" in arm),
            rule="largest ratio of neighbouring test losses, from GD (rho = 0) on",
            relation="at most",
        ),
        Claim(
            statement="the test loss of SGD, one sample a step",
            place=NOTEBOOK,
            published=0.00248053461,
            measured=partial(_test_loss, "SGD"),
            arms=("SGD",),
            rule=f"their one run among {SEEDS} seeds of ours",
            relation=AMONG,
        ),
    ),
    figure=lambda runs: _sparse.test_losses({name: runs[name] for name in DRAWN}),
    caption="Test loss over the steps, lr = 1/3; of SGD the median and the middle 90 % of seeds.",
)
