"""Figure 5: a Wide ResNet under sharpness-aware minimisation, gradient descent, and linearised.

Full-batch SAM, theta <- theta - lr g(theta + rho g / |g|), takes the place of label noise: without
noise, it also shrinks the first layer and leaves the linearised network.  The paper leaves rho
open, and whether parts of the batch are perturbed separately.

Network, setting and presets: _wide_resnet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnsim.base.config import key
from lnsim.experiments import _images, _wide_resnet
from lnsim.run.experiment import Experiment
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(_wide_resnet.WideResNetConfig):
    """`rho` is the length of SAM's ascent step, or, un-normalised, its step size.

    `micro_batch` samples are perturbed by their own gradient; with `perturbation` "process", each
    process that torchrun started perturbs by the gradient of its own share of the batch.
    """

    rho: float = key(1.0, "radius of sharpness-aware minimisation")
    normalized: bool = key(True, "whether SAM divides the gradient by its norm", later=True)
    micro_batch: int = key(0, "samples that SAM perturbs together; 0: the whole batch", later=True)
    perturbation: str = key(
        "batch", "batch, or process: each process perturbs by its own share of it", later=True
    )


def run(
    config: Config, *, backend: str = _images.BACKEND, device: str = "", **driver: Any
) -> Trajectory:
    """Trains both arms; `driver`: progress, resume, checkpoint, ... as for `lnsim.simulate`.

    The default `device` is CUDA if there is one.  Raises ValueError or TypeError for bad input.
    """
    names = ("rho", "normalized", "micro_batch", "perturbation")
    arms = {"clean": {}, "sam": {name: getattr(config, name) for name in names}}
    return _wide_resnet.run("wide-resnet-sam", config, arms, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Figure 5 of this run, and how far the kernel moved."""
    config = trajectory.config
    words = [rf"SAM with $\rho$ = {config['rho']:g}"]
    if not config.get("normalized", True):
        words.append("un-normalised")
    if micro_batch := config.get("micro_batch", 0):
        words.append(f"micro-batches of {micro_batch}")
    if config.get("perturbation", "batch") == "process":
        words.append("each process perturbs by its own share")
    return _wide_resnet.figure(trajectory, Config, ", ".join(words))


EXPERIMENT = Experiment(
    name="wide-resnet-sam",
    meaning="the same with sharpness-aware minimisation (Figure 5)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=_wide_resnet.report,
    backend=_images.BACKEND,
    presets=_wide_resnet.PRESETS,
    default_preset=_images.default_preset,
    parallel=_images.join,
    exact=False,
    rests_on=(
        "zhang2026",
        "foret2021",
        "zagoruyko2016",
        "novak2020",
        "lee2019",
        "jacot2018",
        "krizhevsky2009",
    ),
)
