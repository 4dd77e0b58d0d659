"""Claims about networks on images: whether noise leads to flatter minima there too.

At every record with the curvature the sharpness is that of the whole training loss, clean labels
(lnsim_torch.curvature).  Judged is the last such record of each network, one seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lnsim.run.record import Record
from lnsim.verdicts import judge
from lnsim.verdicts.judge import Verdict

RUNS = ("wide-resnet", "wide-resnet-sam", "resnet")
"""The experiments whose networks are judged."""

RULE = "largest eigenvalue of the Hessian of the training loss, clean labels, at the last record"


def sharpness(runs: Mapping[str, Record]) -> list[Verdict]:
    """Sharpness with label noise and with SAM, against that of the same network without either."""
    wide, sam, residual = (runs[name] for name in RUNS)
    noisiest = int(np.argmax(residual["tau"]))
    return [
        _judged("label noise", "a Wide ResNet", _of_arm(wide, "clean"), _of_arm(wide, "noisy")),
        _judged("SAM", "a Wide ResNet", _of_arm(sam, "clean"), _of_arm(sam, "sam")),
        _judged(
            f"label noise tau = {residual['tau'][noisiest]:g}", "a ResNet",
            _of_tau(residual, int(np.argmin(residual["tau"]))), _of_tau(residual, noisiest),
        ),
    ]  # fmt: skip


End = dict[str, float]
"""What was MEASURED of a network last, by name."""

MEASURED = ("sharpness", "hessian_trace", "train_loss")


def _of_arm(run: Record, arm: str) -> End:
    """What was MEASURED last of a network of a Wide ResNet's run."""
    return {name: float(run[f"{arm}_{name}"][-1]) for name in MEASURED}


def _of_tau(run: Record, number: int) -> End:
    """What was MEASURED last of the network with the label noise of this number."""
    return {name: float(run[name][number, -1]) for name in MEASURED}


def _judged(cause: str, network: str, without: End, with_it: End) -> Verdict:
    trace, loss = (
        f"{with_it[name]:.3g} and {without[name]:.3g}" for name in ("hessian_trace", "train_loss")
    )
    return judge.judge(
        f"with {cause} the sharpness of {network} is below that without", "networks", "at most",
        without["sharpness"], with_it["sharpness"], RULE,
        note=f"tr H is {trace}, the training loss {loss}, with and without",
    )  # fmt: skip
