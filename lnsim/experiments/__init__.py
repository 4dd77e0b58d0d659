"""The experiments by name; each module has Config, run(), figure() and report()."""

from __future__ import annotations

import importlib
from types import ModuleType

from lnsim.config import nearest

NAMES = {
    "label-noise": "two phases of label noise SGD (Figure 2)",
    "label-noise-periodic": "label noise SGD with the noise on and off in turn",
    "oscillation": "an oscillating second layer alone shrinks the first (Lemma 4)",
    "oscillation-periodic": "the same with the oscillation on and off in turn",
    "sam": "two phases of sharpness-aware minimisation (Figure 4)",
    "linearization": "label noise on real images, beside the linearised network (the notebook)",
}


def load(name: str) -> ModuleType:
    """The module of experiment `name`.  Raises ValueError, naming the nearest, for another."""
    if name not in NAMES:
        raise ValueError(f"unknown experiment {name!r}: {nearest(name, NAMES)}")
    return importlib.import_module(f"lnsim.experiments.{name.replace('-', '_')}")
