"""Sweeps: grids and seeds of one experiment, run on all cores or a cluster, in one results file.

grid.py makes the points, points.py runs and summarises them, or predicted.py predicts them without
a run, dispatch.py hands them to workers, and store.py keeps the results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from lnsim.base import files
from lnsim.base.progress import reports
from lnsim.figures import style as figures_style
from lnsim.figures.notebook import dataframe
from lnsim.run.experiment import load
from lnsim.run.folder import RunFolder, holds_something, locked
from lnsim.run.machine import provenance
from lnsim.sweeps import dispatch as sweep_workers
from lnsim.sweeps import grid as sweep_grid
from lnsim.sweeps import notebook, predicted
from lnsim.sweeps import points as sweep_points
from lnsim.sweeps.dispatch import Chunk, Crew
from lnsim.sweeps.grid import Values
from lnsim.sweeps.points import Point
from lnsim.sweeps.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lnsim.sweeps.store import Writer


@dataclass(frozen=True, repr=False)
class Sweep(Table):
    """A Table that can be loaded, saved, drawn, and displayed in a notebook."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Sweep:
        """Reads a sweep folder.  Raises ValueError for another folder or a damaged file."""
        from lnsim.sweeps import store as sweep_store  # with sqlite3, a slow import

        path = Path(folder)
        meta, rows = sweep_store.read(path / sweep_store.FILE)
        swept = tuple(meta["swept"])
        rows.sort(key=lambda row: tuple(row[key] for key in (*swept, "seed")))
        predicted = meta["backend"] == sweep_points.THEORY
        return cls(path, meta["experiment"], swept, meta["base"], rows, predicted=predicted)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes all columns as CSV, with floats to the last bit and empty cells for None."""
        files.write_text(Path(path), self.csv())

    def plot(self, *columns: str, ax: Axes | None = None, style: str | None = None) -> Figure:
        """The figure of the sweep (figure.py), in style "paper" or "screen".

        With `ax`, one column is drawn there and the figure of `ax` is returned.  Raises ValueError
        as `sweeps.figure.figure` does, and for an unknown style.
        """
        from lnsim.sweeps import figure

        if ax is not None:
            if len(columns) > 1:
                raise ValueError(f"ax takes one column, got {len(columns)}")
            figure.draw(ax, self, *columns)
            ax_figure: Any = ax.figure
            return ax_figure
        with figures_style.use(style):
            return figure.figure([self], columns)

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame of `table`.  Raises ValueError if pandas is not installed."""
        return dataframe(self.table())

    def _repr_html_(self) -> str:
        return notebook.of_table(self)


def sweep(
    experiment: str,
    grid: Mapping[str, Values],
    *,
    out: str | os.PathLike[str],
    seeds: int = 1,
    base: Mapping[str, Any] | None = None,
    backend: str = "numba",
    executor: Executor | None = None,
    scheduler: str | None = None,
    predict: bool = False,
    progress: bool | Callable[[int], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Sweep:
    """Runs an experiment at every point of a grid, once per seed, and keeps a summary of each.

    `grid` maps each swept key to its values, or to a text such as "1e-4:1e-2:25:log" (grid.py);
    `base` sets the other keys of the configuration.  Seeds are base["seed"] and the `seeds` - 1
    after it.  Results are written to out/sweep.sqlite as they arrive (store.py).  Points already in
    the file are not run again: the same call continues an earlier one, and a larger grid or more
    seeds add to it.

    The points run in one process per core, in `executor`, any concurrent.futures.Executor whose
    tasks can be pickled, or on the Dask cluster of `scheduler`, an address or "local"
    (dispatch.py).  The stored results do not depend on this choice.  A script that uses the
    processes needs `if __name__ == "__main__":`, as always with multiprocessing.

    With `predict` no point is run: theory fills the same table (predicted.py), in a file of its
    own, and the backend only checks the values.

    `progress`: True for a bar over points on a terminal, or a function called with the number of
    points that arrived.  `stop` is called several times a second; when it returns true the sweep
    ends with the points that have arrived.  Raises ValueError or TypeError for bad input, before
    anything is written, and for a folder of another sweep; ChildProcessError if points were lost
    because their workers died.
    """
    from lnsim.sweeps import store as sweep_store  # with sqlite3, a slow import

    cls = sweep_grid.configuration(experiment)
    swept = sweep_grid.axes(cls, grid)
    points = sweep_grid.points(cls, base or {}, swept, seeds)
    _check_values(experiment, backend, points[0], swept)
    task, seconds = partial(sweep_workers.run_chunk, experiment, backend), sweep_workers.seconds
    if predict:
        predicted.check(experiment, points[0])
        task, seconds = partial(sweep_workers.predict_chunk, experiment), predicted.seconds
        backend = sweep_points.THEORY
    meta = _meta(experiment, backend, swept, points)
    folder = Path(out)
    path = folder / sweep_store.FILE
    if folder.is_dir() and not path.exists() and holds_something(folder):
        raise ValueError(f"output folder {folder} is not empty and holds no sweep: choose another")
    with RunFolder(folder, reuse=True), locked(folder, "sweep"):
        earlier, rows = _earlier(path, meta) if path.exists() else ({}, [])
        stored = {row["key"] for row in rows}
        keys = {point: sweep_store.key_of(experiment, backend, vars(point)) for point in points}
        todo = {point: key for point, key in keys.items() if key not in stored}
        new = 0
        if todo:
            with (
                reports(
                    progress,
                    lambda bar, count: bar.update(count),
                    total=len(points),
                    initial=len(points) - len(todo),
                    unit="point",
                ) as report,
                sweep_workers.crew(executor, scheduler) as workers,
            ):
                _prepare_file(path, cls, meta, earlier)
                work = sweep_workers.chunks(list(todo), workers.size, seconds)
                new = _run(path, todo, workers, work, task, stop or (lambda: False), report)
    return replace(Sweep.load(folder), missing=len(todo) - new, new=new)


def _run(
    path: Path,
    todo: Mapping[Point, str],
    workers: Crew,
    work: Sequence[Chunk],
    task: Callable[[list[Point]], list[dict[str, Any]]],
    stop: Callable[[], bool],
    report: Callable[[int], object],
) -> int:
    """Runs the chunks of `work` and stores each point under its key; returns the number stored.

    Raises ChildProcessError, at the end, if some points were lost.
    """
    from lnsim.sweeps import store as sweep_store  # with sqlite3, a slow import

    dispatch = sweep_workers.Dispatch(workers, task)
    new = 0
    with closing(sweep_store.Writer(path)) as writer:
        for arrived in dispatch.results(work, stop):
            rows = [
                {"key": todo[point], **vars(point), **summary}
                for chunk, summaries in arrived
                for point, summary in zip(chunk, summaries, strict=True)
            ]
            # A file made before a quantity was added to the table has no column for it.
            writer.add([{k: v for k, v in row.items() if k in writer.columns} for row in rows])
            new += len(rows)
            report(len(rows))
        _flush(writer)
    if dispatch.lost:
        raise ChildProcessError(
            f"{sum(map(len, dispatch.lost))} points were lost, as their workers died; "
            "the rest is kept, and the same sweep tries them again"
        )
    return new


def _flush(writer: Writer) -> None:
    """Writes the waiting points.  Raises OSError if another program still holds the file."""
    try:
        writer.flush()
    except BlockingIOError as error:
        raise OSError(
            f"{error}; {writer.waiting:,} points are lost, the rest is kept, "
            "and the same sweep goes on"
        ) from error


def _check_values(
    experiment: str, backend: str, point: Point, swept: Mapping[str, Sequence[Any]]
) -> None:
    """Runs each value for 0 steps at size 1, so that the experiment refuses one out of range."""
    run = load(experiment).run
    for key, values in swept.items():
        for value in values:
            trial = replace(point, **{key: value})
            sizes = {name: min(getattr(trial, name), 1) for name in trial.at_least_one}
            small = replace(trial, steps=min(trial.steps, 0), **sizes)
            run(small, backend=backend, linearized=False)


def _meta(
    experiment: str,
    backend: str,
    swept: Mapping[str, Sequence[Any]],
    points: Sequence[Point],
) -> dict[str, Any]:
    """The table meta of the results file: see store.py."""
    # A default that follows a swept key (experiments/_chain.py) is not common to all points.
    base = {
        key: value
        for key, value in asdict(points[0]).items()
        if key not in (*swept, "seed") and all(getattr(p, key) == value for p in points)
    }
    return {
        "experiment": experiment,
        "backend": backend,
        "swept": list(swept),
        "base": base,
        "grid": {**swept, "seed": sorted({point.seed for point in points})},
    }


def _earlier(path: Path, meta: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The table meta and the points of the file.  Raises ValueError for another sweep's file."""
    from lnsim.sweeps import store as sweep_store  # with sqlite3, a slow import

    earlier, rows = sweep_store.read(path)
    of_theory = [m["backend"] == sweep_points.THEORY for m in (earlier, meta)]
    if of_theory[0] != of_theory[1]:
        holds, given = ("predicted", "run") if of_theory[0] else ("run", "predicted")
        raise ValueError(
            f"{path} holds points that were {holds}, and these are to be {given}:"
            " choose another folder"
        )
    for name in ("experiment", "backend"):
        if earlier[name] != meta[name]:
            raise ValueError(f"{path} is of {name} {earlier[name]!r}, not {meta[name]!r}")
    earlier_keys, keys = (", ".join(sorted(m["swept"])) for m in (earlier, meta))
    if earlier_keys != keys:
        raise ValueError(f"{path} sweeps {earlier_keys}, not {keys}: choose another folder")
    for key in earlier["base"].keys() | meta["base"].keys():
        old, new = (m["base"].get(key, sweep_store.ADDED.get(key)) for m in (earlier, meta))
        if old != new:
            raise ValueError(f"{path} has {key} = {old!r}, not {new!r}: choose another folder")
    return earlier, rows


def _prepare_file(
    path: Path, cls: type[Point], meta: Mapping[str, Any], earlier: Mapping[str, Any]
) -> None:
    """Creates the results file, or updates its meta with the present grid and environment."""
    from lnsim.sweeps import store as sweep_store  # with sqlite3, a slow import

    environment = {name: value for name, value in provenance({}).items() if name != "config_sha256"}
    known = earlier.get("environments", [])
    complete = {**meta, "environments": known if environment in known else [*known, environment]}
    if not earlier:
        types = get_type_hints(cls)
        columns = {field.name: sweep_store.SQL_TYPES[types[field.name]] for field in fields(cls)}
        sweep_store.create(path, columns | sweep_points.columns(meta["experiment"]), complete)
    elif complete != earlier:
        with closing(sweep_store.Writer(path)) as writer:
            writer.put_meta({**complete, "swept": earlier["swept"]})
