"""Figure 3: a Wide ResNet under label noise, without it, and linearised.

Gradient descent on clean labels stays near the linearised network: it is lazy.  With label noise
the training loss stays higher, the test loss falls lower, the first layer shrinks, and the kernel
moves farther.

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
    """`tau` is the probability that a label is drawn anew at a step, from the classes of `flip`."""

    tau: float = key(0.5, "probability that a label is drawn anew each time it is used")
    flip: str = key("any", "any or other: the classes from which a noisy label is drawn")


def run(
    config: Config, *, backend: str = _images.BACKEND, device: str = "", **driver: Any
) -> Trajectory:
    """Trains both arms; `driver`: progress, resume, checkpoint, ... as for `lnsim.simulate`.

    The default `device` is CUDA if there is one.  Raises ValueError or TypeError for bad input.
    """
    arms = {"clean": {}, "noisy": {"tau": config.tau, "flip": config.flip}}
    return _wide_resnet.run("wide-resnet", config, arms, backend, device, **driver)


def figure(trajectory: Trajectory) -> Figure:
    """Figure 3 of this run, and how far the kernel moved."""
    tau, flip = trajectory.config["tau"], trajectory.config["flip"]
    return _wide_resnet.figure(trajectory, Config, f"label noise {tau:g} ({flip})")


EXPERIMENT = Experiment(
    name="wide-resnet",
    meaning="a Wide ResNet with label noise, linearised (Figure 3)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=_wide_resnet.report,
    backend=_images.BACKEND,
    presets=_wide_resnet.PRESETS,
    default_preset=_images.default_preset,
    parallel=_images.join,
    exact=False,
    rests_on=("zhang2026", "zagoruyko2016", "novak2020", "lee2019", "jacot2018", "krizhevsky2009"),
)
