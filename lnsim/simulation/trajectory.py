"""The result of a run: one type always, whatever made it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import DIVERGED_ABOVE
from lnsim.base import archive, files, threads
from lnsim.base import config as configs
from lnsim.models.two_layer import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lnsim.run.phases import Phases


SCHEMA = 2
"""The form of a trajectory's file; another is refused."""

ENDS = {
    "OK": "finished after {step} steps",
    "DIVERGED": f"diverged at step {{step}}: a loss or a residual not finite, or its square above"
    f" {DIVERGED_ABOVE:g}",
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
        replicas = self.arrays.get("diverged_at", self.steps[:1]).size
        of = f" of {replicas} replicas" if replicas > 1 else ""
        return f"<Trajectory of {name}: {self.status}, {self.steps.size:,} records{of}>"

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
        from lnsim.run import phases

        return phases.measure(self)

    def plot(
        self, *names: str, ax: Axes | None = None, style: str | None = None, **line: Any
    ) -> Figure:
        """The figure of the experiment that made this trajectory; else that of the two phases.

        With `names` a panel of each of these curves (curves.py), such as "norm_mean".  With `ax`
        the one curve is drawn there, with `line` (label, color, ...) for matplotlib; scales and
        limits stay as they are, and the axes' figure is returned.  `style` is "paper" or "screen".

        Raises ValueError for a name that is no curve, or a style that is none.
        """
        from lnsim.figures import curves as figures_curves
        from lnsim.figures import style as figures_style
        from lnsim.figures import two_phases

        if ax is not None:
            if len(names) != 1:
                raise ValueError(f"ax takes the name of one curve, got {len(names)}")
            figures_curves.draw(ax, self, names[0], **line)
            there: Any = ax.figure
            return there
        if line:
            raise TypeError(f"{', '.join(line)} is for a curve drawn on ax, which is not given")
        with figures_style.use(style):
            if names:
                return figures_curves.figure([self], [""], names)
            if "experiment" not in self.config:
                return two_phases.two_phases(self)
            return two_phases.of_run(self)["figure"]

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame of all curves, a row for each record, and each replica or tau.

        Raises ValueError where pandas is not installed.
        """
        from lnsim.figures import notebook
        from lnsim.run import curves

        return notebook.dataframe(curves.table(self))

    def _repr_html_(self) -> str:
        from lnsim.figures import notebook

        return notebook.of_trajectory(self)

    def summary(self) -> dict[str, Any]:
        """Plain numbers of how the run ended, as written to summary.json.

        Lists of them for an ensemble, and for networks trained at several tau, which stand beside.
        """
        from lnsim.run import curves

        ends = {name: (self[name][..., 0], self[name][..., -1]) for name in curves.names(self)}
        summary = {
            "status": self.status.code,
            "message": str(self.status),
            "step": self.status.step,
            "records": int(self.steps.size),
            "first_and_last": {name: [_plain(end) for end in both] for name, both in ends.items()},
        }
        if "tau" in self.arrays:
            summary["tau"] = _plain(self["tau"])
        if "lazy_escape" in self.arrays:
            phases = self.phases()
            for name, times in (("first", phases.first_escape), ("last", phases.last_escape)):
                summary[f"{name}_escape"] = _plain(times)
        return summary

    def save(self, folder: str | os.PathLike[str], file: str = "trajectory.npz") -> None:
        """Writes config.toml, summary.json, environment.json and the arrays, each atomically.

        The arrays' file says by itself what `load` gives back, all but the provenance.  Raises
        OSError where the folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = configs.to_toml(self.config)
        state = {f"state_{name}": value for name, value in self.state.items()}
        held = {**self.arrays, **state}
        about = {
            "schema": SCHEMA, "config": text, "status": [self.status.code, self.status.step],
            "sha256": archive.digest(held),
        }  # fmt: skip
        archive.write(path / file, {**held, "about": np.array(json.dumps(about))})
        files.write_text(path / "config.toml", text)
        files.write_json(path / "summary.json", self.summary())
        files.write_json(path / "environment.json", dict(self.provenance))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], file: str = "trajectory.npz") -> Trajectory:
        """Reads back what `save` wrote.  Raises ValueError for a folder that is no run folder."""
        path = Path(folder)
        if not (path / file).is_file():
            raise ValueError(f"{path} is no run folder, or nothing was kept yet: it has no {file}")
        arrays = archive.read(path / file)
        try:
            about = json.loads(str(arrays.pop("about")))
            schema = about["schema"]
            if schema != SCHEMA:
                raise ValueError(f"it has schema {schema}, and this lnsim reads {SCHEMA}")
            if about["sha256"] != archive.digest(arrays):
                raise ValueError("it is damaged: its arrays do not have their digest")
            status, config = Status(*about["status"]), tomllib.loads(about["config"])
            steps = arrays["step"]
            if status.code not in ENDS or not isinstance(status.step, int):
                raise ValueError(f"its status is {about['status']}")
            if steps.ndim != 1 or steps.size == 0 or steps.dtype.kind != "i":
                raise ValueError("its steps are none")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path / file} is not a trajectory of lnsim: {error}") from error
        state = {
            name.removeprefix("state_"): arrays.pop(name)
            for name in list(arrays)
            if name.startswith("state_")
        }
        environment = path / "environment.json"
        provenance = files.read_json(environment) if environment.exists() else {}
        return cls(arrays, config, status, state, provenance)


def check_continues(earlier: Trajectory, config: Mapping[str, Any]) -> None:
    """Refuses to go on from `earlier` under another configuration: only `steps` may change."""
    for key in earlier.config.keys() | config.keys():
        before, now = earlier.config.get(key), config.get(key)
        if key != "steps" and before != now:
            raise ValueError(f"cannot resume: {key} was {before!r} and is {now!r} now")


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a rerun needs to know of the machine and the software, and what to run."""
    text = json.dumps(dict(config), sort_keys=True, default=str)
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": _thread_counts(str(config.get("backend")).startswith("torch")),
        "seed": np.asarray(config.get("seed")).tolist(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


@functools.cache
def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _thread_counts(torch: bool) -> dict[str, int]:
    """How many threads compiled loops, the BLAS and, where it is used, torch may take."""
    libraries = threads._blas().info()
    blas = (found["num_threads"] for found in libraries if found["user_api"] == "blas")
    counts = {"numba": threads.number(), "blas": max(blas, default=1)}
    if torch and "torch" in sys.modules:
        counts["torch"] = sys.modules["torch"].get_num_threads()
    return counts


@functools.cache
def _versions() -> dict[str, str]:
    from importlib import metadata  # an eighth of the time that importing lnsim takes

    versions = {}
    for package in ("lnsim", "numpy", "numba", "scipy", "matplotlib", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _plain(value: Any) -> Any:
    """Floats that JSON can hold, in lists as in the array: one that is not finite becomes null."""
    if np.ndim(value):
        return [_plain(part) for part in value]
    number = float(value)
    return number if np.isfinite(number) else None
