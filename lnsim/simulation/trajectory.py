"""The result of a run, which has one type for all experiments."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lnsim.base import archive, files
from lnsim.base import config as configs
from lnsim.figures import notebook, output
from lnsim.figures import style as figures_style
from lnsim.models.saved import model_of
from lnsim.run import curves, phases
from lnsim.run.phases import Phases
from lnsim.run.record import Record, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SCHEMA = 2
"""The schema number of a trajectory's file; `load` refuses any other."""


@dataclass(frozen=True, repr=False)
class Trajectory(Record):
    """A Record that can be saved, loaded and drawn, and knows its networks and its phases."""

    @property
    def final(self) -> Any:
        """The model at the last step; for an ensemble, that of the first replica.

        It is a Network, Diagonal, DeepLinear or ReLUNetwork, like the model the run began with.
        """
        weights = {
            name.removeprefix("final_"): array
            for name, array in self.arrays.items()
            if name.startswith("final_")
        }
        if not weights:
            raise KeyError("no final weights in this trajectory: it was run with clouds=False")
        if self.arrays.get("diverged_at", self.steps[:1]).size > 1:
            weights = {name: array[0] for name, array in weights.items()}
        description = json.loads(str(self.arrays.get("model", '{"model": "two-layer"}')))
        return model_of(description, weights)

    def phases(self) -> Phases:
        """Measured phase times (phases.py)."""
        return phases.measure(self)

    def plot(
        self, *names: str, ax: Axes | None = None, style: str | None = None, **line: Any
    ) -> Figure:
        """Draws the figure of the trajectory's experiment.

        Without one it is that of the two phases, or of any model (figures/models.py).

        With `names` the figure has a panel for each of these curves (curves.py), such as
        "norm_mean".  With `ax` the one curve is drawn there, with `line` (label, color, ...) for
        matplotlib; scales and limits stay as they are, and the axes' figure is returned.  `style`
        is "paper" or "screen".

        Raises ValueError for an unknown curve or style.
        """
        from lnsim.figures import curves as figures_curves
        from lnsim.figures import models, two_phases

        if ax is not None:
            if len(names) != 1:
                raise ValueError(f"ax takes the name of one curve, got {len(names)}")
            figures_curves.draw(ax, self, names[0], **line)
            parent: Any = ax.figure
            return parent
        if line:
            raise TypeError(f"{', '.join(line)} is for a curve drawn on ax, which is not given")
        with figures_style.use(style):
            if names:
                return figures_curves.figure([self], [""], names)
            if "experiment" in self.config:
                return output.of_run(self)["figure"]
            if "model" in self.arrays:
                return models.figure(self)
            return two_phases.two_phases(self)

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame of all curves, with a row for each record of each replica or tau.

        Raises ValueError if pandas is not installed.
        """
        return notebook.dataframe(curves.table(self))

    def _repr_html_(self) -> str:
        return notebook.of_trajectory(self)

    def summary(self) -> dict[str, Any]:
        """The numbers of summary.json: status, steps, first and last values, escape times.

        They are lists for an ensemble, and for networks trained at several tau, with "tau" added.
        """
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

        The arrays' file alone holds all that `load` returns, except the provenance.  Raises
        OSError if the folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = configs.to_toml(self.config)
        state = {f"state_{name}": value for name, value in self.state.items()}
        contents = {**self.arrays, **state}
        about = {
            "schema": SCHEMA, "config": text, "status": [self.status.code, self.status.step],
            "sha256": archive.digest(contents),
        }  # fmt: skip
        archive.write(path / file, {**contents, "about": np.array(json.dumps(about))})
        files.write_text(path / "config.toml", text)
        files.write_json(path / "summary.json", self.summary())
        files.write_json(path / "environment.json", dict(self.provenance))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], file: str = "trajectory.npz") -> Trajectory:
        """Reads a folder that `save` wrote.  Raises ValueError for any other folder."""
        path = Path(folder)
        if not (path / file).is_file():
            raise ValueError(
                f"{path} is not a run folder, or nothing is saved in it yet: it has no {file}"
            )
        arrays = archive.read(path / file)
        try:
            about = json.loads(str(arrays.pop("about")))
            schema = about["schema"]
            if schema != SCHEMA:
                raise ValueError(f"it has schema {schema}, and this lnsim reads {SCHEMA}")
            if about["sha256"] != archive.digest(arrays):
                raise ValueError("it is damaged: its arrays do not match their digest")
            status, config = Status(*about["status"]), tomllib.loads(about["config"])
            steps = arrays["step"]
            if not isinstance(status.step, int):
                raise ValueError(f"its status is {about['status']}")
            if steps.ndim != 1 or steps.size == 0 or steps.dtype.kind != "i":
                raise ValueError(
                    "step must be a one-dimensional integer array that is not empty,"
                    f" got {steps.dtype} of shape {steps.shape}"
                )
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


def _plain(value: Any) -> Any:
    """An array as nested lists of floats, in which NaN and infinity become None (JSON's null)."""
    if np.ndim(value):
        return [_plain(part) for part in value]
    number = float(value)
    return number if np.isfinite(number) else None
