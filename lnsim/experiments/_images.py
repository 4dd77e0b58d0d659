"""What the experiments with networks on images share: presets, the images, the processes."""

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
from lnsim.simulation.trajectory import Trajectory

BACKEND = "torch"
"""The backend of these experiments, unless another is named."""

# A purpose of numpy.random.default_rng([seed, purpose]): that of images/erf_network.py, so that all
# experiments choose the same images.
_CHOICE_OF_IMAGES = 5

MOST_THREADS = 1024

_NO_CHANGE = ("preset", "data", "data_root", "seed", "threads")
"""Keys that do not make a run another than its preset's."""


@dataclass(frozen=True)
class ImageConfig:
    """What all have.  `preset` names where the other values come from, but for those changed.

    `data` is the path of an .npz file, or "cifar10", downloaded below `data_root`.  Of `samples`
    and `test_samples` images 0 are all there are.  `threads`, of the CPU, are those of each network
    in training: sums shared among threads are rounded otherwise, so they are part of the run.
    """

    preset: str = key("small", "small or paper: where the other values come from")
    data: str = key("", "FILE.npz of images, or cifar10, which is downloaded")
    data_root: str = key("data", "where cifar10 is kept")
    samples: int = key(0, "n, training samples; of images, 0: all")
    test_samples: int = key(0, "samples of the test set; of images, 0: all")
    seed: int = key(0, "of the data, the network and the noise")
    threads: int = key(1, "of the CPU, for each network; they change the last bits")


def default_preset(backend: str, device: str | None) -> str:
    """ "paper" on CUDA, "small" elsewhere; `device` None is the one there is."""
    device = device or load_networks(backend).default_device()
    return "paper" if device.startswith("cuda") else "small"


@contextmanager
def join(backend: str, device: str | None) -> Iterator[tuple[str, bool]]:
    """Around a run, alone or started by torchrun: the device of this process, and if it leads."""
    engine = load_networks(backend)
    with engine.joined(device or engine.default_device()) as own:
        yield own, engine.group().rank == 0


def choose(config: ImageConfig) -> Images:
    """The images that `config` asks for, chosen at random.  Raises ValueError where they are not.

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
    """What stands below a figure: which preset made it, what was changed of it, on what data.

    `words` say what else the run was of class `cls`.
    """
    given = {k: v for k, v in trajectory.config.items() if k not in ("experiment", "backend")}
    preset = given["preset"]
    made = vars(cls(**presets[preset]))
    changed = [
        f"{key} = {value}"
        for key, value in given.items()
        if key not in _NO_CHANGE and value != made[key]
    ]
    name = f"Preset {preset}" + (f", changed: {', '.join(changed)}" if changed else "")
    n, n_test = trajectory["images"]
    data = f"n = {n:,} training and {n_test:,} test images of {Path(given['data']).name}"
    rest = ", ".join([*words, f"seed {given['seed']}"])
    return f"{name}. {data}; {rest}."
