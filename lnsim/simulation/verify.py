"""Recomputes a random segment of a run and compares it, number by number, with the records.

A run of the two-layer linear network keeps its state at records 1, 2, 4, 8, ... (recorder.py).  A
segment begins at one of them, or at the start, and ends at the next, or at the end.  Other runs are
recomputed from their start until the time is up.

The same software on the same processor gives the same bits.  Elsewhere, on a GPU, and in a run of
several processes, sums have another order, and numbers agree within a tolerance; those of image
networks only while training does not amplify rounding too far (rounding.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lnsim.base import config as configs
from lnsim.run import experiment, quantities
from lnsim.run.experiment import Experiment
from lnsim.run.machine import provenance
from lnsim.run.quantities import Axis
from lnsim.run.record import Ending, Status
from lnsim.simulation import rounding
from lnsim.simulation.rounding import CLOSE_FLOAT32, Allowed, Pair
from lnsim.simulation.snapshots import waypoint, waypoint_records
from lnsim.simulation.trajectory import Trajectory

CLOSE = 1e-6
"""The largest difference allowed where bits may differ, relative to the array's largest number."""

TIMES = ("kernel_step", "curvature_step")
"""The arrays of steps at which a part of the quantities was measured."""

SHOWN = 10
"""The number of differences that are listed; those of the records come first."""


@dataclass(frozen=True)
class Verification:
    """`lines` report the comparison and its result, `same` is whether all numbers agreed."""

    lines: list[str]
    same: bool


def verify(
    trajectory: Trajectory, *, seed: int | None = None, seconds: float = 60.0
) -> Verification:
    """Recomputes the segment drawn by `seed` (None: at random), and compares it.

    Stops at the first record after `seconds`.  Raises ValueError for a trajectory that was not
    made by an experiment.
    """
    if "experiment" not in trajectory.config:
        raise ValueError(
            "only a run of an experiment can be verified: its configuration can be run again"
        )
    made_by = experiment.load(str(trajectory.config["experiment"]))
    if not seconds >= 0.0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    first, last = _segment(trajectory, seed)
    run = _repeated(trajectory, made_by)
    again = _recompute(trajectory, made_by, run, first, last, seconds)
    environment = provenance(trajectory.config)
    reasons = _reasons(trajectory, environment, again)
    limit = _limit(again, run, seconds) if reasons and not made_by.exact else None
    if limit is None:
        tolerance = _tolerance(trajectory, bool(reasons))
        pairs = [pair._replace(tolerance=tolerance) for pair in _pairs(trajectory, again, first)]
    else:
        pairs = list(rounding.pairs(trajectory, again, limit))
    differences = _missing(trajectory, again) + _other_run(trajectory, again, environment, limit)
    for pair in pairs:
        differences += _difference(pair, not made_by.exact, trajectory.status.code == Ending.OK)
    numbers = sum(pair.again.size for pair in pairs)
    how = f"within a tolerance, as {', '.join(reasons)}" if reasons else "bit for bit"
    begin = 0 if first is None else int(trajectory.steps[first])
    part = "" if limit is None or limit.at_the_end else f" up to step {limit.last_step:,}"
    lines = [
        f"recomputed    steps {begin:,} to {again.status.step:,}, a segment drawn by seed {seed}",
        f"compared      {len(pairs)} arrays, {numbers:,} numbers, {how}",
        *([] if limit is None else [f"rounding      {limit}"]),
        *(f"differs       {text}" for text in differences[:SHOWN]),
        *([f"differs       {len(differences) - SHOWN:,} more"] if len(differences) > SHOWN else []),
        *([] if differences else [f"result        all the same{part}"]),
    ]
    return Verification(lines, not differences)


def _segment(trajectory: Trajectory, seed: int) -> tuple[int | None, int | None]:
    """The records at which the segment begins (None: the start) and ends (None: the end)."""
    count = trajectory.steps.size
    waypoints = [
        record
        for record in waypoint_records(count - 1)
        if any(name.startswith(waypoint(record)) for name in trajectory.state)
    ]
    borders = [None, *waypoints, None]
    drawn = int(np.random.default_rng(seed).integers(len(borders) - 1))
    return borders[drawn], borders[drawn + 1]


def _repeated(trajectory: Trajectory, made_by: Experiment) -> Callable[..., Trajectory]:
    """The experiment's run with the configuration of `trajectory`."""
    values = {k: v for k, v in trajectory.config.items() if k not in ("experiment", "backend")}
    config: Any = configs.build(made_by.Config, configs.completed(made_by.Config, values))
    return partial(made_by.run, config, backend=str(trajectory.config["backend"]))


def _limit(again: Trajectory, run: Callable[..., Trajectory], seconds: float) -> Allowed:
    """The records and tolerances with which a run of image networks is compared with `again`."""
    start = rounding.moved_by_a_bit(again, run)
    deadline = time.monotonic() + seconds
    return rounding.allowed(again, run(resume=start, stop=lambda: time.monotonic() > deadline))


def _recompute(
    trajectory: Trajectory,
    made_by: Experiment,
    run: Callable[..., Trajectory],
    first: int | None,
    last: int | None,
    seconds: float,
) -> Trajectory:
    """Runs again from record `first`, until record `last` or for `seconds`."""
    end = np.inf if last is None else trajectory.steps[last]
    if trajectory.status.code == Ending.STOPPED and made_by.exact:
        end = min(end, trajectory.status.step)
    deadline = time.monotonic() + seconds
    done = 0

    def note(step: int) -> None:
        nonlocal done
        done = step

    def stop() -> bool:
        return done >= end or time.monotonic() > deadline

    resume = None if first is None else _at(trajectory, first)
    return run(resume=resume, progress=note, stop=stop)


def _at(trajectory: Trajectory, record: int) -> Trajectory:
    """The run as it was at a record that has a saved state."""
    prefix = waypoint(record)
    state = {
        name.removeprefix(prefix): value
        for name, value in trajectory.state.items()
        if name.startswith(prefix)
    }
    steps = trajectory.steps[: record + 1]
    return replace(
        trajectory,
        arrays={**trajectory.arrays, "step": steps},
        state={**trajectory.state, **state},
        status=Status(Ending.STOPPED, int(steps[-1])),
    )


def _reasons(trajectory: Trajectory, environment: dict[str, Any], again: Trajectory) -> list[str]:
    """Why bits may differ: software or hardware that changed, and CUDA devices."""
    recorded = trajectory.provenance
    if not isinstance(recorded.get("versions"), dict):
        return ["environment.json does not say where it ran"]
    torch = str(trajectory.config["backend"]).startswith("torch")
    packages = ("lnsim", "numpy", "numba", "scipy", *(("torch",) if torch else ()))
    pairs = [
        (name, recorded["versions"].get(name), environment["versions"][name]) for name in packages
    ]
    pairs += [
        (name, recorded.get(name), environment.get(name)) for name in ("python", "machine", "cpu")
    ]
    pairs.append(("processes", recorded.get("processes", 1), again.provenance.get("processes", 1)))
    reasons = [f"{name} was {old} and is {new}" for name, old, new in pairs if old != new]
    devices = [trajectory.config["backend"], recorded.get("device"), again.provenance.get("device")]
    return reasons + (["it ran on cuda"] if any("cuda" in str(name) for name in devices) else [])


def _tolerance(trajectory: Trajectory, elsewhere: bool) -> float:
    """The difference allowed from a recorded array, relative to its largest number."""
    if not elsewhere:
        return 0.0
    return CLOSE if trajectory.config.get("dtype", "float64") == "float64" else CLOSE_FLOAT32


def _other_run(
    trajectory: Trajectory, again: Trajectory, environment: dict[str, Any], limit: Allowed | None
) -> list[str]:
    """Differences in configuration, and in the ending unless rounding may have changed it."""
    differences = []
    if trajectory.provenance.get("config_sha256", "") not in ("", environment["config_sha256"]):
        differences.append("environment.json belongs to another configuration")
    codes = (trajectory.status.code, again.status.code)
    end = min(again.status.step, trajectory.status.step)
    comparable = "STOPPED" not in codes and (limit is None or end <= limit.last_step)
    if comparable and again.status != trajectory.status:
        differences.append(f"the run {trajectory.status}; recomputed, it {again.status}")
    return differences


def _missing(trajectory: Trajectory, again: Trajectory) -> list[str]:
    """A line for each array that only one of the two runs has."""
    recorded, recomputed = trajectory.arrays.keys(), again.arrays.keys()
    return [f"{name} is not recorded" for name in sorted(recomputed - recorded)] + [
        f"{name} is not one of this experiment's arrays" for name in sorted(recorded - recomputed)
    ]


def _pairs(trajectory: Trajectory, again: Trajectory, first: int | None) -> Iterator[Pair]:
    """Every recomputed array, paired with the recorded one."""
    begin = 0 if first is None else first + 1
    count = min(trajectory.steps.size, again.steps.size)
    steps = trajectory.steps[begin:count]
    ended = _ended_alike(trajectory, again)
    for name in sorted(again.arrays.keys() & trajectory.arrays.keys()):
        ours, theirs = trajectory[name], again[name]
        row = quantities.find(name)
        axis = Axis.RECORD if row is None else row.axis
        if axis is Axis.CLOUD:
            yield _of_clouds(trajectory, again, name, steps[0] if steps.size else 0)
        elif name in TIMES or (row is not None and row.over in again.arrays and row.costly):
            yield _of_some_steps(trajectory, again, name)
        elif axis is not Axis.RECORD or ours.shape[:1] != trajectory.steps.shape:
            if ended or axis is not Axis.END:
                yield Pair(name, ours, theirs)
        else:
            yield Pair(name, ours[begin:count], theirs[begin:count], steps)
    taken = tuple(waypoint(record) for record in waypoint_records(count) if record >= begin)
    for name in sorted(again.state.keys() & trajectory.state.keys()):
        if name.startswith(taken) or (ended and not name.startswith("at ")):
            yield Pair(f"state {name}", trajectory.state[name], again.state[name])


def _ended_alike(trajectory: Trajectory, again: Trajectory) -> bool:
    """Whether both runs, and every network of a run of several, ended alike at the same step."""
    names = [name for name in trajectory.state if name.endswith(".status")]
    return again.status == trajectory.status and all(
        np.array_equal(trajectory.state[name], again.state.get(name, "")) for name in names
    )


def _of_some_steps(trajectory: Trajectory, again: Trajectory, name: str) -> Pair:
    """What was measured at some steps, or these steps, as far as both runs have come."""
    row = quantities.find(name)
    over = name if name in TIMES or row is None else row.over
    both = (trajectory, again)
    arrays = [run[name] for run in both]
    times = [run.arrays.get(over, np.empty(0)) for run in both]
    if any(a.shape[-1:] != t.shape for a, t in zip(arrays, times, strict=True)):
        return Pair(name, arrays[0], arrays[1])
    last = min(run.steps.max(initial=-1) for run in both)
    ours, theirs = (a[..., t <= last] for a, t in zip(arrays, times, strict=True))
    return Pair(name, ours, theirs, times[0][times[0] <= last] if ours.ndim == 1 else None)


def _of_clouds(trajectory: Trajectory, again: Trajectory, name: str, first_step: int) -> Pair:
    """The clouds that both runs have, from `first_step` on."""
    steps, ours, theirs = np.intersect1d(
        trajectory["cloud_step"], again["cloud_step"], return_indices=True
    )
    compared = steps >= first_step
    return Pair(
        name, trajectory[name][ours[compared]], again[name][theirs[compared]], steps[compared]
    )


def _difference(pair: Pair, unfinished: bool, complete: bool) -> list[str]:
    """A line on the first difference of the two arrays, or an empty list.

    `unfinished`: `again` is NaN where recomputing did not arrive; `complete`: in `recorded` NaN
    never means this.
    """
    recorded, again = pair.recorded, pair.again
    if recorded.shape != again.shape or recorded.dtype != again.dtype:
        return [
            f"{pair.name} has {recorded.dtype} {recorded.shape}, not {again.dtype} {again.shape}"
        ]
    same = recorded == again
    if recorded.dtype.kind == "f":
        nan_again, nan_recorded = np.isnan(again), np.isnan(recorded)
        same |= nan_again & nan_recorded
        if unfinished:
            same |= nan_again if complete else nan_again | nan_recorded
        if np.any(pair.tolerance):
            largest = np.max(np.abs(again), initial=0.0, where=np.isfinite(again))
            with np.errstate(all="ignore"):
                same |= np.abs(recorded - again) <= pair.tolerance * largest + pair.margin
    if np.all(same):
        return []
    index = tuple(int(i) for i in np.argwhere(~np.atleast_1d(same))[0])
    values = (np.atleast_1d(array)[index].item() for array in (recorded, again))
    record = "" if pair.steps is None else f" at the record of step {pair.steps[index[0]]:,}"
    entry = f"{pair.name}{list(index[1:] if pair.steps is not None else index) or ''}"
    return ["{}{}: recorded {!r}, recomputed {!r}".format(entry, record, *values)]
