"""How far rounding may separate two runs of a network, and which records can be compared.

Another number of processes, another processor or version rounds differently, and training amplifies
the difference: with batch norm on small batches tenfold in a few steps, elsewhere not at all.  The
amplification is measured: the run is recomputed a second time, from weights moved by their last
bit.  If this changes a number by a share d, rounding may change it by FACTOR d; from the record
where that exceeds LOOSEST on, nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.run import curves, quantities
from lnsim.run.record import Ending
from lnsim.simulation.trajectory import Trajectory

CLOSE_FLOAT32 = 1e-3
"""The difference allowed in single precision without amplification, relative to the array's
largest number."""

FACTOR = 100.0
"""The allowed ratio of the effect of all rounding in a run to that of one last bit; 80 was seen."""

LOOSEST = 0.05
"""The largest tolerance at which records are compared."""

FLIPS = 2
"""The number of images of a set whose class rounding may change."""


class Allowed(NamedTuple):
    """The last step up to which a run is compared, and the tolerance : (records,) shares.

    `amplified`: the comparison ends before the last record because of rounding, not of time.
    """

    tolerance: FloatArray
    last_step: int
    at_the_end: bool
    amplified: bool

    def __str__(self) -> str:
        if self.amplified:
            return f"is amplified in training, as expected: compared up to step {self.last_step:,}"
        largest = np.max(self.tolerance, initial=0.0, where=self.tolerance <= LOOSEST)
        return f"may have changed numbers by {largest:.1%} up to step {self.last_step:,}"


class Pair(NamedTuple):
    """An array as recorded and as recomputed; `steps` are those of its rows, if rows are records.

    They may differ by `tolerance` times the largest number plus `margin`.
    """

    name: str
    recorded: NDArray[Any]
    again: NDArray[Any]
    steps: NDArray[Any] | None = None
    tolerance: float | FloatArray = 0.0
    margin: float = 0.0


def moved_by_a_bit(again: Trajectory, run: Callable[..., Trajectory]) -> Trajectory:
    """The run of `again` at step 0 with every weight moved by its last bit, to be resumed.

    `run` takes the keywords of an experiment's run.
    """
    at_start = run(stop=lambda: True)
    arms = [name.removesuffix(".status") for name in again.state if name.endswith(".status")]
    first = next(arm for arm in arms if f"{arm}.status" in at_start.state)
    state = {name: value for name, value in at_start.state.items() if "." not in name}
    rng = np.random.default_rng(0)
    for arm in arms:  # all arms start from the state of the first
        for name, value in at_start.state.items():
            if not name.startswith(f"{first}."):
                continue
            if ".state.network." in name and value.dtype.kind == "f":
                signs = rng.choice([-1.0, 1.0], value.shape)
                value = (value * (1.0 + np.finfo(value.dtype).eps * signs)).astype(value.dtype)
            state[arm + name.removeprefix(first)] = value
    return replace(at_start, state=state)


def allowed(again: Trajectory, moved: Trajectory) -> Allowed:
    """The tolerance of each record, from the departure of `moved` from `again`."""
    departure = np.zeros(again.steps.size)
    reached = np.zeros(again.steps.size, dtype=bool)
    ended = [run.status.code != Ending.STOPPED for run in (again, moved)]
    for name in _trained(again):
        ours, others = (np.atleast_2d(run[name]) for run in (again, moved))
        finite = np.isfinite(ours), np.isfinite(others)
        both = finite[0] & finite[1]
        reached |= (both | ~(finite[0] | finite[1]) & all(ended)).any(axis=0)
        scale = np.max(np.abs(ours), initial=0.0, where=finite[0]) or 1.0
        distance = np.where(both, np.abs(ours - others), 0.0) / scale
        # Infinite where one has diverged and the other has not.
        diverged = finite[1] & ~finite[0] & ended[0], finite[0] & ~finite[1] & ended[1]
        distance[diverged[0] | diverged[1]] = np.inf
        departure = np.maximum(departure, distance.max(axis=0))
    departure[~reached] = np.inf
    tolerance = CLOSE_FLOAT32 + FACTOR * np.maximum.accumulate(departure)
    records = int((tolerance <= LOOSEST).sum())
    last_step = int(again.steps[records - 1]) if records else -1
    at_the_end = records == again.steps.size
    amplified = not at_the_end and (bool(reached[records]) or all(ended))
    return Allowed(tolerance, last_step, at_the_end, amplified)


def _trained(run: Trajectory) -> list[str]:
    """The curves that depend smoothly on the trained weights."""
    return [
        name
        for name in curves.names(run)
        if curves.axis(run, name) in ("step", "epoch")
        and not _of_images(name)
        and not name.startswith("linearized_")
    ]


def pairs(trajectory: Trajectory, again: Trajectory, limit: Allowed) -> Iterator[Pair]:
    """The recorded and recomputed arrays that can be compared, with their tolerances."""
    steps = trajectory.steps
    over_time = set(curves.names(trajectory)) & set(curves.names(again))
    for name in sorted(again.arrays.keys() & trajectory.arrays.keys()):
        recorded, recomputed = trajectory[name], again[name]
        margin = _margin(trajectory, name)
        if name not in over_time or recorded.shape != recomputed.shape:
            yield Pair(name, recorded, recomputed, None, CLOSE_FLOAT32)
        elif (over := curves.axis(trajectory, name)) != "kept_percent":
            times = steps if over == "epoch" else trajectory[over]
            compared = times <= limit.last_step
            tolerance = limit.tolerance[np.searchsorted(steps, times[compared])]
            rows = times[compared] if recorded.ndim == 1 else None
            values = recorded[..., compared], recomputed[..., compared]
            yield Pair(name, *values, rows, tolerance, margin)
        elif limit.at_the_end:
            yield Pair(name, recorded, recomputed, None, limit.tolerance[-1], margin)
    for name in sorted(again.state.keys() & trajectory.state.keys()):
        if "." not in name:  # the images, which belong to no arm
            yield Pair(f"state {name}", trajectory.state[name], again.state[name])
        elif limit.at_the_end and again.status == trajectory.status:
            yield Pair(
                f"state {name}", trajectory.state[name], again.state[name], None,
                limit.tolerance[-1], _margin(trajectory, name),
            )  # fmt: skip


def _margin(trajectory: Trajectory, name: str) -> float:
    """FLIPS as a share of the set of images, if the array is a share of images, else 0."""
    if not _of_images(name):
        return 0.0
    training, test = (int(n) for n in trajectory["images"])
    measured = int(trajectory.config.get("train_measured", 0)) or training
    return FLIPS / (min(measured, training) if "train_accuracy" in name else test)


def _of_images(name: str) -> bool:
    """Whether an array, or an entry of the state such as "noisy.records.test_accuracy", is a share
    of images, which jumps when the class of one changes."""
    row = quantities.find(name.rpartition(".")[2])
    return row is not None and row.unit == quantities.IMAGES
