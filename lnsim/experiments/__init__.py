"""The experiments by name; each module has Config, run(), figure() and report().

Those with networks on images also have BACKEND, their backend unless another is named, PRESETS, by
name what a preset changes of Config, default_preset() and join(): see _images.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lnsim.base import checks
from lnsim.base.config import nearest

NAMES = {
    "label-noise": "two phases of label noise SGD (Figure 2)",
    "label-noise-periodic": "label noise SGD with the noise on and off in turn",
    "oscillation": "an oscillating second layer alone shrinks the first (Lemma 4)",
    "oscillation-periodic": "the same with the oscillation on and off in turn",
    "sam": "two phases of sharpness-aware minimisation (Figure 4)",
    "linearization": "label noise on images, beside the linearisation (notebook)",
    "wide-resnet": "a Wide ResNet with label noise, linearised (Figure 3)",
    "wide-resnet-sam": "the same with sharpness-aware minimisation (Figure 5)",
    "resnet": "ResNet-18 under label noise: accuracy, pruning (Figure 1)",
}


def load(name: str) -> ModuleType:
    """The module of experiment `name`.  Raises ValueError, naming the nearest, for another."""
    if name not in NAMES:
        raise ValueError(f"unknown experiment {name!r}: {nearest(name, NAMES)}")
    return importlib.import_module(f"lnsim.experiments.{name.replace('-', '_')}")


def with_preset(
    experiment: ModuleType,
    preset: str | None,
    values: Mapping[str, Any],
    backend: str,
    device: str | None,
) -> dict[str, Any]:
    """`values` and, where they say nothing, those of the preset; that of `values` if it is None.

    Raises ValueError for an unknown preset, one that contradicts `values`, and an experiment
    without presets.
    """
    if not hasattr(experiment, "PRESETS"):
        if preset is not None:
            raise ValueError(f"this experiment has no presets, got {preset!r}")
        return dict(values)
    named = values.get("preset", preset)
    if preset not in (None, named):
        raise ValueError(f"the configuration is of preset {named!r}, not {preset!r}")
    if named is None:
        named = experiment.default_preset(backend, device)
    checks.choice("preset", named, experiment.PRESETS)
    return {**experiment.PRESETS[named], **values, "preset": named}
