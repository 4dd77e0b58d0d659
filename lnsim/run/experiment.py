"""The class of experiments, and how one is loaded by its name."""

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
    """An experiment, used by the command line, sweeps and `verify`; a module ends in one.

    `meaning` is the line that `lnsim list` prints.  `Config` is a dataclass of keys
    (base/config.py).  `run(config, *, backend, device, progress, resume, checkpoint,
    checkpoint_every, stop)` returns a Trajectory; its arguments are those of `lnsim.simulate`, and
    with `device` "" the backend chooses.  `figures` returns the figures of a record by file name,
    and `report` the lines of its summary.

    `presets` maps each preset's name to its changes of Config's defaults, and `default_preset(
    backend, device)` names the preset used when none is given; experiments without presets have
    neither.  `parallel(backend, device)`, where several processes may share a run, is a context
    that gives the device of this process and whether it leads.  `exact`: a run recomputed on the
    same machine repeats every record wherever it stops; if not, its arms stand at different steps
    when it is stopped.  `rests_on`: keys of papers, and names of the statements and methods that it
    shows (lnsim.references).
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
    rests_on: tuple[str, ...] = ()

    def with_preset(
        self, preset: str | None, values: Mapping[str, Any], backend: str, device: str | None
    ) -> dict[str, Any]:
        """`values`, completed by those of the preset; with None by that which `values` names.

        Raises ValueError for an unknown preset, for one that contradicts `values`, and for any
        preset of an experiment that has none.
        """
        if self.default_preset is None:
            if preset is not None:
                raise ValueError(f"this experiment has no presets, got {preset!r}")
            return dict(values)
        named = values.get("preset", preset)
        if preset not in (None, named):
            raise ValueError(f"the configuration has the preset {named!r}, not {preset!r}")
        if named is None:
            named = self.default_preset(backend, device)
        checks.choice("preset", named, self.presets)
        return {**self.presets[named], **values, "preset": named}


def names() -> tuple[str, ...]:
    """The names of all experiments, in the order of `lnsim list`."""
    known: tuple[str, ...] = plugins.load(PACKAGE, "lnsim").NAMES
    return known


def load(name: str) -> Experiment:
    """The experiment called `name`.  Raises ValueError, naming the nearest, for another name."""
    if name not in names():
        raise ValueError(f"unknown experiment {name!r}: {nearest(name, names())}")
    module = plugins.load(f"{PACKAGE}.{name.replace('-', '_')}", f"experiment {name!r}")
    experiment: Experiment = module.EXPERIMENT
    return experiment
