"""What an experiment is, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lnsim.base import checks, plugins
from lnsim.base.config import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = "lnsim.experiments"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment of the command line, of sweeps and of `verify`; a module ends in one.

    `meaning` is what `lnsim list` says of it.  `Config` is a dataclass of keys (base/config.py).
    `run(config, *, backend, device, progress, resume, checkpoint, checkpoint_every, stop)` gives a
    Trajectory; these mean what they mean for `lnsim.simulate`, and `device` "" is the backend's
    own choice.  `figures` draws a record, by file name, and `report` says in lines what a person
    wants to know first.

    `presets` holds by name what each changes of Config's defaults, and `default_preset(backend,
    device)` names the one that is taken where none is; experiments without presets have neither.
    `parallel(backend, device)`, where several processes may share a run, is a context that gives
    this one's device and whether it leads.  `exact`: a run recomputed on one machine repeats every
    record however far it gets; if not, its arms stand at different steps when it is stopped.
    """

    name: str
    meaning: str
    Config: type
    run: Callable[..., Any]
    figures: Callable[[Any], dict[str, Figure]]
    report: Callable[[Any], list[str]]
    backend: str = "numba"
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default_preset: Callable[[str, str | None], str] | None = None
    parallel: Callable[[str, str | None], AbstractContextManager[tuple[str, bool]]] | None = None
    exact: bool = True

    def with_preset(
        self, preset: str | None, values: Mapping[str, Any], backend: str, device: str | None
    ) -> dict[str, Any]:
        """`values` and, where they say nothing, those of the preset; that of `values` if None.

        Raises ValueError for an unknown preset, one that contradicts `values`, and an experiment
        without presets.
        """
        if self.default_preset is None:
            if preset is not None:
                raise ValueError(f"this experiment has no presets, got {preset!r}")
            return dict(values)
        named = values.get("preset", preset)
        if preset not in (None, named):
            raise ValueError(f"the configuration is of preset {named!r}, not {preset!r}")
        if named is None:
            named = self.default_preset(backend, device)
        checks.choice("preset", named, self.presets)
        return {**self.presets[named], **values, "preset": named}


def names() -> tuple[str, ...]:
    """The experiments there are, in the order in which they are listed."""
    known: tuple[str, ...] = plugins.load(PACKAGE, "lnsim").NAMES
    return known


def load(name: str) -> Experiment:
    """The experiment called `name`.  Raises ValueError, naming the nearest, for another."""
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}: {nearest(name, names())}")
    module = plugins.load(f"{PACKAGE}.{name.replace('-', '_')}", f"experiment {name!r}")
    experiment: Experiment = module.EXPERIMENT
    return experiment
