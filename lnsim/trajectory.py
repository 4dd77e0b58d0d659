"""The result of a run: one type always, whatever made it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim import archive, store
from lnsim import config as configs
from lnsim.backend import DIVERGED_ABOVE
from lnsim.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lnsim.phases import Phases


SCHEMA = 1
"""The form of a trajectory's file; another is refused."""

ENDS = {
    "OK": "finished after {step} steps",
    "DIVERGED": f"diverged at step {{step}}: squared residual above {DIVERGED_ABOVE:g}",
    "STOPPED": "stopped at step {step} before its end",
}
"""How a run can end."""


@dataclass(frozen=True)
class Status:
    """How a run ended: `code` is "OK", "DIVERGED" or "STOPPED", `step` where it ended."""

    code: str
    step: int

    def __str__(self) -> str:
        return ENDS[self.code].format(step=self.step)


@dataclass(frozen=True)
class Trajectory:
    """Recorded arrays, and what is needed to read, repeat or continue the run.

    `trajectory[name]` is an array over records, or (S, records) for an ensemble; `arrays` holds
    them all (design of the file: README, "The run folder").  `state` holds the reduced weights at
    the last step, from which the run can go on bit for bit.  After a replica of an ensemble has
    diverged its records are NaN, and `trajectory["diverged_at"]` (S,) tells the step, or -1.
    """

    arrays: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    status: Status
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays))
            raise KeyError(f"no array {name!r} in this trajectory; there are {known}") from None

    def __repr__(self) -> str:
        name = self.config.get("experiment", "simulation")
        return f"<Trajectory of {name}: {self.status}, {self.steps.size} records>"

    @property
    def steps(self) -> NDArray[np.int64]:
        """The recorded steps, shape (records,)."""
        return self["step"]

    @property
    def final(self) -> Network:
        """The network at the last step; for an ensemble of S replicas, of the first of them."""
        W, a = self["final_W"], self["final_a"]
        return Network(W, a) if W.ndim == 2 else Network(W[0], a[0])

    def phases(self) -> Phases:
        """Measured phase times (phases.py)."""
        from lnsim import phases

        return phases.measure(self)

    def plot(self) -> Figure:
        """The figure of the experiment that made this trajectory; else that of the two phases."""
        from lnsim import experiments, figures

        if "experiment" not in self.config:
            return figures.two_phases(self)
        figure: Figure = experiments.load(str(self.config["experiment"])).figure(self)
        return figure

    def summary(self) -> dict[str, Any]:
        """Plain numbers of how the run ended, as written to summary.json."""
        first_and_last = {
            name: [_plain(value[..., 0]), _plain(value[..., -1])]
            for name, value in self.arrays.items()
            if value.dtype.kind == "f" and value.shape[-1:] == self.steps.shape and value.ndim == 1
        }
        return {
            "status": self.status.code,
            "message": str(self.status),
            "step": self.status.step,
            "records": int(self.steps.size),
            "first_and_last": first_and_last,
        }

    def save(self, folder: str | os.PathLike[str], file: str = "trajectory.npz") -> None:
        """Writes config.toml, summary.json, environment.json and the arrays, each atomically.

        The arrays' file says by itself what `load` gives back, all but the provenance.  Raises
        OSError where the folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = configs.to_toml(self.config)
        about = {"schema": SCHEMA, "config": text, "status": [self.status.code, self.status.step]}
        state = {f"state_{name}": value for name, value in self.state.items()}
        archive.write(path / file, {**self.arrays, **state, "about": np.array(json.dumps(about))})
        store.write_text(path / "config.toml", text)
        store.write_json(path / "summary.json", self.summary())
        store.write_json(path / "environment.json", dict(self.provenance))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], file: str = "trajectory.npz") -> Trajectory:
        """Reads back what `save` wrote.  Raises ValueError for a folder that is no run folder."""
        path = Path(folder)
        if not (path / file).is_file():
            raise ValueError(f"{path} is no run folder: it has no {file}")
        arrays = archive.read(path / file)
        try:
            about = json.loads(str(arrays.pop("about")))
            schema = about["schema"]
            if schema != SCHEMA:
                raise ValueError(f"it has schema {schema}, and this lnsim reads {SCHEMA}")
            status, config = Status(*about["status"]), tomllib.loads(about["config"])
            if status.code not in ENDS or arrays["step"].ndim != 1:
                raise ValueError("its status or its steps are none")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / file} is not a trajectory of lnsim: {error!r}") from error
        state = {
            name.removeprefix("state_"): arrays.pop(name)
            for name in list(arrays)
            if name.startswith("state_")
        }
        environment = path / "environment.json"
        provenance = store.read_json(environment) if environment.exists() else {}
        return cls(arrays, config, status, state, provenance)


def check_continues(earlier: Trajectory, config: Mapping[str, Any]) -> None:
    """Refuses to go on from `earlier` under another configuration: only `steps` may change."""
    for key in earlier.config.keys() | config.keys():
        before, now = earlier.config.get(key), config.get(key)
        if key != "steps" and before != now:
            raise ValueError(f"cannot resume: {key} was {before!r} and is {now!r} now")


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a rerun needs to know of the machine and the software."""
    text = json.dumps(dict(config), sort_keys=True, default=str)
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in ("lnsim", "numpy", "numba", "scipy", "matplotlib", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _plain(value: Any) -> float | None:
    """A float that JSON can hold: a number that is not finite becomes null."""
    number = float(value)
    return number if np.isfinite(number) else None
