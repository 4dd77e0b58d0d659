"""Figure 1: ResNet-18 under label noise, its accuracy, and how far it can be pruned.

Stochastic gradient descent on the cross-entropy loss, in mini-batches, with no momentum and no
weight decay; with probability tau a label is drawn anew, from the other classes, each time its
image is drawn.  One network is trained for each tau, from the same weights and with the same
batches.  At the end a percentage of the weights, the largest, is kept and the others are set to
zero (global magnitude pruning, pruning.py); the test accuracy is measured without further training.

Preset "paper" has the paper's sizes: all of CIFAR-10, width 64, lr 0.1, 160 epochs.  The paper
leaves open the batch size (128 here), the loss, the augmentation (no augmentation here;
augment=true crops and flips), the decay of the smoothed accuracy, and the pruning.  Preset "small"
is for the CPU: a thousand images, an eighth of the width, 120 epochs, tau = 0 and 0.1, and batches
of 16, as label noise acts at each step and small batches allow more steps per minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import NetworkEngine, load_networks
from lnsim.base import checks
from lnsim.base.config import key, recorded
from lnsim.experiments import _images
from lnsim.experiments._arms import Arms, Records
from lnsim.run import quantities
from lnsim.run.experiment import Experiment
from lnsim.run.loop import record_steps
from lnsim.simulation.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OF_CURVATURE = _images.OF_CURVATURE
"""The recorded arrays, (arms, steps), beside `curvature_step`, of a run that measures them."""

SERIES = tuple(name for name in quantities.names(quantities.RESNET) if name not in OF_CURVATURE)
"""The recorded arrays, (arms, records), beside `tau` (arms,) and `epoch` (records,)."""

PRUNED = "pruned_accuracy"
"""Test accuracy with `kept_percent` of the weights kept, (arms, percentages)."""

LOSS = "cross_entropy"

PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "samples": 0,
        "test_samples": 0,
        "width": 64,
        "tau": [0.0, 0.05, 0.1, 0.2],
        "batch_size": 128,
        "epochs": 160,
        "record_every": 1,
        "train_measured": 10_000,
        "curvature_every": 160,
    },
}


@dataclass(frozen=True)
class Config(_images.ImageConfig):
    """One network is trained for each `tau`.  `flip` says from which classes a label is drawn anew.

    `width` is that of ResNet-18's first group; `record_every` is in epochs.  `smoothing` is the
    decay of the smoothed accuracy per record.  The training loss is measured on `train_measured`
    images (0: all), and on them the curvature, every `curvature_every` epochs, or never if that is
    0.  `kept_percent` are the percentages of weights in the
    pruning curve.  `precision` "bfloat16" and `compile` need CUDA.
    """

    samples: int = key(1000, "n, training samples; of images, 0: all")
    test_samples: int = key(750, "samples of the test set; of images, 0: all")
    width: int = key(8, "m, hidden neurons; of resnet, channels of the first group")
    tau: list = key([0.0, 0.1], "probability that a label is drawn anew each time it is used")
    flip: str = key("other", "any or other: the classes from which a noisy label is drawn")
    lr: float = key(0.1, "learning rate, eta in the paper")
    batch_size: int = key(16, "samples in a step; 0: all of them")
    epochs: int = key(120, "passes over the training images")
    record_every: int = key(4, "steps between records; for resnet, epochs")
    augment: bool = key(False, "random crops and flips of the training images")
    momentum: float = key(0.0, "fraction of the last update that is added again")
    weight_decay: float = key(0.0, "fraction of the weights subtracted per step, times lr")
    smoothing: float = key(0.9, "decay of the smoothed accuracy from record to record")
    train_measured: int = key(250, "images on which the training loss is measured; 0: all")
    curvature_every: int = key(40, _images.CURVATURE_EVERY, later=True, before=_images.NO_CURVATURE)
    kept_percent: list = key(
        [100, 90, 80, 70, 60, 50, 40, 30, 20, 15, 10, 7, 5, 3, 2, 1],
        "shares of the weights that pruning keeps",
    )
    precision: str = key("float32", "float32 or bfloat16; bfloat16 needs CUDA")
    compile: bool = key(False, "compile the network; needs CUDA")


def run(
    config: Config, *, backend: str = _images.BACKEND, device: str = "", **driver: Any
) -> Trajectory:
    """Trains and prunes a network for each tau; `driver` as for `lnsim.simulate`.

    The default `device` is CUDA if there is one.  Raises ValueError or TypeError for bad
    input.
    """
    engine = load_networks(backend)
    device = device or engine.default_device()
    _check(config)
    images = _images.choose(config)
    recipes = _recipes(engine, config, len(images.train_labels))
    execution = engine.Execution(precision=config.precision, compile=config.compile)
    earlier = driver.pop("resume", None)
    identity = {
        "experiment": "resnet",
        "backend": backend,
        **recorded(config, _images.config_of(earlier)),
    }
    assemble = partial(_assemble, config, len(images.train_labels))
    series = (*SERIES, *OF_CURVATURE) if config.curvature_every else SERIES
    arms = Arms(engine, recipes, images, series, assemble, identity, device)
    if earlier is not None:
        arms.restore(earlier)
    with engine.held(config.threads):
        data = engine.place(images, device)
        measure = partial(
            engine.pruned_accuracy, data=data, loss=LOSS, percentages=config.kept_percent,
            execution=execution,
        )  # fmt: skip
        start = partial(engine.resnet18, width=config.width, seed=config.seed)
        return arms.train(
            start, data, execution, measure=lambda network: {PRUNED: measure(network)},
            observe=_observed(engine, config, data), threads=config.threads, **driver,
        )  # fmt: skip


def _observed(
    engine: NetworkEngine, config: Config, data: Any
) -> Callable[[Any, int], dict[str, float]] | None:
    """The curvature of a network at its steps, and NaN at the others; None if never."""
    if not config.curvature_every:
        return None
    samples = data.train.spaced(config.train_measured)
    to_an_epoch = _steps_of_an_epoch(config, len(data.train))

    def observe(network: Any, step: int) -> dict[str, float]:
        if not _images.curvature_is_due(step // to_an_epoch, config):
            return dict.fromkeys(OF_CURVATURE, np.nan)
        return engine.curvature(network, samples, LOSS, config.seed)

    return observe


def figure(trajectory: Trajectory) -> Figure:
    """Figure 1 of this run: test loss and accuracy against the epoch, and pruned accuracy."""
    from lnsim.figures import networks

    config = trajectory.config
    words = [
        f"ResNet-18 of width {config['width']}",
        f"lr {config['lr']:g}",
        f"batches of {config['batch_size']}",
        f"{config['epochs']} epochs",
    ]
    caption = _images.caption(trajectory, Config, PRESETS, words)
    return networks.epochs_and_pruning(trajectory, caption)


def report(trajectory: Trajectory) -> list[str]:
    """The lines that `lnsim run` prints: test loss and accuracy of every tau at the end."""
    lines = []
    for i, tau in enumerate(trajectory["tau"]):
        loss, raw, smooth = (
            trajectory[name][i, -1]
            for name in ("test_loss", "test_accuracy", "smoothed_test_accuracy")
        )
        if np.isnan(loss):
            lines.append(f"tau = {tau:<8g}not trained to the end")
            continue
        lines.append(
            f"tau = {tau:<8g}test loss {loss:.4g}, accuracy {raw:.2%} (smoothed {smooth:.2%}),"
            f" {_pruned_line(trajectory, i)}"
        )
    if trajectory.arrays.get("curvature_step", np.empty(0)).size:
        lines += _curvature_lines(trajectory)
    return lines


def _curvature_lines(trajectory: Trajectory) -> list[str]:
    """A line on each tau whose curvature was measured at the last of its steps."""
    step = trajectory["curvature_step"][-1]
    return [
        f"tau = {tau:<8g}sharpness {sharpness:.3g}, Hessian trace {trace:.3g} (step {step:,})"
        for tau, sharpness, trace in zip(
            trajectory["tau"],
            *(trajectory[name][:, -1] for name in OF_CURVATURE),
            strict=True,
        )
        if not np.isnan(sharpness)
    ]


def _pruned_line(trajectory: Trajectory, arm: int) -> str:
    """The smallest share of weights with which an arm keeps nine tenths of its accuracy."""
    order = np.argsort(trajectory["kept_percent"])[::-1]
    pruned = trajectory[PRUNED][arm, order]
    below = ~(pruned >= 0.9 * trajectory["test_accuracy"][arm, -1])
    percentages = trajectory["kept_percent"][order][: np.argmax(below) if below.any() else None]
    if percentages.size == 0:
        return "not pruned"
    return f"9/10 of it with {percentages[-1]:g}% of the weights"


def _check(config: Config) -> None:
    """Refuses values that would fail only after the training, and malformed lists."""
    checks.choice("preset", config.preset, PRESETS)
    for name, least in (
        ("epochs", 0),
        ("record_every", 1),
        ("batch_size", 0),
        ("curvature_every", 0),
    ):
        checks.integer(name, getattr(config, name), least)
    for name in ("tau", "kept_percent"):
        values = getattr(config, name)
        if not values or len({_number(name, value) for value in values}) < len(values):
            raise ValueError(f"{name} must be a list of different numbers, got {values}")
    for percent in config.kept_percent:
        if not 0.0 < percent <= 100.0:
            raise ValueError(f"kept_percent must be above 0 and at most 100, got {percent}")


def _number(name: str, value: Any) -> float:
    number = checks.real(name, value)
    if not isinstance(number, float):
        raise TypeError(f"{name} must be a list of numbers, got {value!r} in it")
    return number


def _recipes(engine: NetworkEngine, config: Config, n: int) -> dict[str, Any]:
    """What determines each arm, by its name."""
    to_an_epoch = _steps_of_an_epoch(config, n)
    return {
        f"tau = {tau}": engine.Recipe(
            steps=config.epochs * to_an_epoch,
            record_every=config.record_every * to_an_epoch,
            lr=config.lr,
            batch_size=config.batch_size,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            loss=LOSS,
            tau=tau,
            flip=config.flip,
            augment=config.augment,
            smoothing=config.smoothing,
            train_measured=config.train_measured,
            seed=config.seed,
        )
        for tau in config.tau
    }


def _steps_of_an_epoch(config: Config, n: int) -> int:
    return -(-n // (config.batch_size or n))


def _assemble(
    config: Config, n: int, records: Mapping[str, Records], measured: Mapping[str, Records]
) -> dict[str, NDArray[Any]]:
    """The trajectory's arrays: those of all arms, stacked.  `n` is the number of images."""
    percentages = np.array(config.kept_percent, dtype=np.float64)
    not_pruned = {PRUNED: np.full(percentages.shape, np.nan)}
    epochs = np.array(record_steps(config.epochs, config.record_every, "epochs"))
    curvature: dict[str, NDArray[Any]] = {}
    if config.curvature_every:
        due = np.array([_images.curvature_is_due(epoch, config) for epoch in epochs])
        curvature["curvature_step"] = epochs[due] * _steps_of_an_epoch(config, n)
        for name in OF_CURVATURE:
            curvature[name] = np.stack([of_arm[name][due] for of_arm in records.values()])
    return {
        "tau": np.array(config.tau, dtype=np.float64),
        "epoch": epochs,
        "kept_percent": percentages,
        PRUNED: np.stack([measured.get(name, not_pruned)[PRUNED] for name in records]),
        **{key: np.stack([of_arm[key] for of_arm in records.values()]) for key in SERIES},
        **curvature,
    }


EXPERIMENT = Experiment(
    name="resnet",
    meaning="ResNet-18 under label noise: accuracy, pruning (Figure 1)",
    Config=Config,
    run=run,
    figures=lambda record: {"figure": figure(record)},
    report=report,
    backend=_images.BACKEND,
    presets=PRESETS,
    default_preset=_images.default_preset,
    parallel=_images.join,
    exact=False,
    rests_on=("zhang2026", "he2016", "krizhevsky2009", "han2015"),
)
