"""How far rounding may take two runs of one network apart, and what of them can be compared.

Another number of processes, another processor or version rounds otherwise, and training amplifies
it: with batch norm on small batches tenfold in a few steps, elsewhere not at all.  How fast is
measured: the run is recomputed once more from weights that are moved by their last bit.  What moved
it by a share d lets rounding move it by FACTOR d, and where that is more than LOOSEST, nothing can
be compared any more.
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
"""How far numbers of single precision may differ without amplification, as a share of the largest
of their array."""

FACTOR = 100.0
"""How much farther than one last bit all the rounding of a run may take it; 80 has been seen."""

LOOSEST = 0.05

FLIPS = 2
"""Images of a set whose class rounding may change."""


class Allowed(NamedTuple):
    """Up to which record, and how far, a run may be compared.  tolerance : (records,) shares.

    `amplified`: rounding is why it ends before the last record; if not, it is the time.
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
    """An array as recorded and as recomputed; `steps` of its rows, if it has rows for records.

    They may differ by `tolerance` times the largest number, and by `margin` more.
    """

    name: str
    recorded: NDArray[Any]
    again: NDArray[Any]
    steps: NDArray[Any] | None = None
    tolerance: float | FloatArray = 0.0
    margin: float = 0.0


def moved_by_a_bit(again: Trajectory, run: Callable[..., Trajectory]) -> Trajectory:
    """The run of `again` at step 0, with every weight moved by its last bit, to go on from.

    `run` takes the keywords of an experiment's run.
    """
    begun = run(stop=lambda: True)
    arms = [name.removesuffix(".status") for name in again.state if name.endswith(".status")]
    first = next(arm for arm in arms if f"{arm}.status" in begun.state)
    state = {name: value for name, value in begun.state.items() if "." not in name}
    rng = np.random.default_rng(0)
    for arm in arms:  # all begin as the first does
        for name, value in begun.state.items():
            if not name.startswith(f"{first}."):
                continue
            if ".state.network." in name and value.dtype.kind == "f":
                signs = rng.choice([-1.0, 1.0], value.shape)
                value = (value * (1.0 + np.finfo(value.dtype).eps * signs)).astype(value.dtype)
            state[arm + name.removeprefix(first)] = value
    return replace(begun, state=state)


def allowed(again: Trajectory, moved: Trajectory) -> Allowed:
    """What the departure of `moved` from `again` says of each record."""
    departure = np.zeros(again.steps.size)
    seen = np.zeros(again.steps.size, dtype=bool)
    ended = [run.status.code != Ending.STOPPED for run in (again, moved)]
    for name in _trained(again):
        ours, others = (np.atleast_2d(run[name]) for run in (again, moved))
        known = np.isfinite(ours), np.isfinite(others)
        both = known[0] & known[1]
        seen |= (both | ~(known[0] | known[1]) & all(ended)).any(axis=0)
        scale = np.max(np.abs(ours), initial=0.0, where=known[0]) or 1.0
        apart = np.where(both, np.abs(ours - others), 0.0) / scale
        # Where one has diverged and the other has not.
        apart[(known[1] & ~known[0] & ended[0]) | (known[0] & ~known[1] & ended[1])] = np.inf
        departure = np.maximum(departure, apart.max(axis=0))
    departure[~seen] = np.inf
    tolerance = CLOSE_FLOAT32 + FACTOR * np.maximum.accumulate(departure)
    records = int((tolerance <= LOOSEST).sum())
    last_step = int(again.steps[records - 1]) if records else -1
    at_the_end = records == again.steps.size
    amplified = not at_the_end and (bool(seen[records]) or all(ended))
    return Allowed(tolerance, last_step, at_the_end, amplified)


def _trained(run: Trajectory) -> list[str]:
    """The curves that depend on training, and smoothly."""
    return [
        name
        for name in curves.names(run)
        if curves.axis(run, name) in ("step", "epoch")
        and not _of_images(name)
        and not name.startswith("linearized_")
    ]


def pairs(trajectory: Trajectory, again: Trajectory, limit: Allowed) -> Iterator[Pair]:
    """All that can be compared."""
    steps = trajectory.steps
    over_time = set(curves.names(trajectory)) & set(curves.names(again))
    for name in sorted(again.arrays.keys() & trajectory.arrays.keys()):
        recorded, recomputed = trajectory[name], again[name]
        margin = _margin(trajectory, name)
        if name not in over_time or recorded.shape != recomputed.shape:
            yield Pair(name, recorded, recomputed, None, CLOSE_FLOAT32)
        elif (over := curves.axis(trajectory, name)) != "kept_percent":
            times = trajectory[over] if over == "kernel_step" else steps
            kept = times <= limit.last_step
            tolerance = limit.tolerance[np.searchsorted(steps, times[kept])]
            rows = times[kept] if recorded.ndim == 1 else None
            values = recorded[..., kept], recomputed[..., kept]
            yield Pair(name, *values, rows, tolerance, margin)
        elif limit.at_the_end:
            yield Pair(name, recorded, recomputed, None, limit.tolerance[-1], margin)
    for name in sorted(again.state.keys() & trajectory.state.keys()):
        if "." not in name:  # of no arm: the images
            yield Pair(f"state {name}", trajectory.state[name], again.state[name])
        elif limit.at_the_end and again.status == trajectory.status:
            yield Pair(
                f"state {name}", trajectory.state[name], again.state[name], None,
                limit.tolerance[-1], _margin(trajectory, name),
            )  # fmt: skip


def _margin(trajectory: Trajectory, name: str) -> float:
    """The share of a set that FLIPS images are, where an array is a share of images."""
    if not _of_images(name):
        return 0.0
    training, test = (int(n) for n in trajectory["images"])
    measured = int(trajectory.config.get("train_measured", 0)) or training
    return FLIPS / (min(measured, training) if "train_accuracy" in name else test)


def _of_images(name: str) -> bool:
    """Whether an array, or a part of the state such as "noisy.records.test_accuracy", jumps where
    the class of an image changes."""
    row = quantities.find(name.rpartition(".")[2])
    return row is not None and row.unit == quantities.IMAGES
