"""What the experiments with networks on images share: presets, images, processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lnsim import streams
from lnsim.backend import load_networks
from lnsim.base import checks
from lnsim.base.config import key
from lnsim.images import data as images
from lnsim.images.data import Images
from lnsim.references import credits
from lnsim.run import experiment
from lnsim.simulation.trajectory import Trajectory

BACKEND = "torch"
"""The default backend of these experiments."""

# The purpose in numpy.random.default_rng([seed, purpose]), equal to that of images/erf_network.py,
# so that all experiments choose the same images.
_CHOICE_OF_IMAGES = 5

MOST_THREADS = 1024

OF_CURVATURE = ("sharpness", "hessian_trace")
"""The series that are recorded every `curvature_every`."""

CURVATURE_EVERY = (
    "steps (resnet: epochs) between measurements of sharpness and trace, and with them the kernel's"
    " alignment and rank; 0: never"
)
"""The meaning of the key `curvature_every`."""

NO_CURVATURE = 0
"""The value of `curvature_every` that runs from before there was this key have."""

_NO_CHANGE = ("preset", "data", "data_root", "seed", "threads")
"""Keys that a caption does not list as changed from the preset."""


@dataclass(frozen=True)
class ImageConfig:
    """The keys that all have.  `preset` names the origin of the other values, unless changed.

    `data` is the path of an .npz file, or "cifar10", which is downloaded to `data_root`.  `samples`
    and `test_samples` count images; 0 means all.  `threads` is the number of CPU threads that train
    each network; it changes the rounding of sums, so it is part of the configuration.
    """

    preset: str = key("small", "small or paper: the origin of the other values")
    data: str = key("", "FILE.npz of images, or cifar10, which is downloaded")
    data_root: str = key("data", "folder of cifar10")
    samples: int = key(0, "n, training samples; of images, 0: all")
    test_samples: int = key(0, "samples of the test set; of images, 0: all")
    seed: int = key(0, "seed of the data, the network and the noise")
    threads: int = key(1, "CPU threads for each network; they change the last bits")


def default_preset(backend: str, device: str | None) -> str:
    """ "paper" on CUDA, "small" elsewhere; None is the default device."""
    device = device or load_networks(backend).default_device()
    return "paper" if device.startswith("cuda") else "small"


@contextmanager
def join(backend: str, device: str | None) -> Iterator[tuple[str, bool]]:
    """Context of a run, also under torchrun: this process's device, and whether it leads."""
    engine = load_networks(backend)
    with engine.joined(device or engine.default_device()) as own_device:
        yield own_device, engine.group().rank == 0


def config_of(earlier: Trajectory | None) -> Mapping[str, Any] | None:
    """The configuration of the run that is resumed, if one is."""
    return None if earlier is None else earlier.config


def curvature_is_due(time: int, config: Any) -> bool:
    """Whether the curvature is measured at the record of this step (resnet: epoch).

    It is at the first record from each multiple of `curvature_every` on; never if that is 0.
    """
    every = config.curvature_every
    return every > 0 and time % every < config.record_every


def choose(config: ImageConfig) -> Images:
    """The images of `config`, chosen at random.  Raises ValueError if `data` does not have them.

    The same seed chooses the same images as in `linearization`.
    """
    if checks.integer("threads", config.threads, 1) > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}, got {config.threads}")
    source = images.load(config.data, config.data_root)
    if source.train_images.ndim != 4 or source.train_images.shape[-1] != 3:
        raise ValueError(
            f"data {config.data!r} must hold images (N, height, width, 3),"
            f" got shape {source.train_images.shape}"
        )
    rng = np.random.default_rng([streams.check_seed(config.seed), _CHOICE_OF_IMAGES])
    sets: list[Any] = []
    for name, pixels, labels in (
        ("samples", source.train_images, source.train_labels),
        ("test_samples", source.test_images, source.test_labels),
    ):
        count = checks.integer(name, getattr(config, name), 0) or len(labels)
        if count > len(labels):
            raise ValueError(
                f"{name} must be at most the {len(labels)} images of data, got {count}"
            )
        chosen = rng.choice(len(labels), count, replace=False)
        sets += [pixels[chosen], labels[chosen]]
    return Images(*sets)


def caption(
    trajectory: Trajectory, cls: type[ImageConfig], presets: Mapping[str, Any], words: Sequence[str]
) -> str:
    """The caption of a figure: the preset, the keys changed from it, the data, `words`, papers.

    `cls` is the class of the run's configuration.
    """
    values = {k: v for k, v in trajectory.config.items() if k not in ("experiment", "backend")}
    preset = values["preset"]
    defaults = vars(cls(**presets[preset]))
    changed = [
        f"{key} = {value}"
        for key, value in values.items()
        if key not in _NO_CHANGE and value != defaults[key]
    ]
    name = f"Preset {preset}" + (f", changed: {', '.join(changed)}" if changed else "")
    n, n_test = trajectory["images"]
    data = f"n = {n:,} training and {n_test:,} test images of {Path(values['data']).name}"
    details = ", ".join([*words, f"seed {values['seed']}"])
    papers = credits.named(*experiment.load(trajectory.config["experiment"]).rests_on)
    return f"{name}. {data}; {details}. Papers: {papers}."
