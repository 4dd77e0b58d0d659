"""The curves of a trajectory: arrays over the records, or over other times.

The values of a curve have shape (records,) in a single run, (S, records) in an ensemble, and
(arms, records) for networks trained at several tau.  Where the array's name begins with its arm,
as in clean_test_loss and noisy_test_loss, "test_loss" names the curves of all arms.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.run import quantities
from lnsim.run.quantities import ARMS, Axis, Quantity
from lnsim.run.quantity import NETWORKS
from lnsim.run.record import Record

ENDS = {"DIVERGED": "diverged at step {:,}", "STOPPED": "stopped at step {:,}"}
"""Short descriptions of the endings of runs that did not finish."""


class Curve(NamedTuple):
    """One curve, `values` : (replicas, times); `arm` names its arm where there are several."""

    arm: str
    times: NDArray[Any]
    values: FloatArray


def names(trajectory: Record) -> list[str]:
    """The names of the arrays of a trajectory that are curves."""
    return [name for name in trajectory.arrays if _is_curve(trajectory, name)]


def find(trajectory: Record, name: str) -> list[Curve]:
    """The curves of an array, or of a quantity in all arms, such as "test_loss".

    Raises ValueError, naming the nearest curve, if `name` is neither.
    """
    known = names(trajectory)
    if name in known:
        times, values = trajectory[axis(trajectory, name)], trajectory[name]
        if "tau" in trajectory.arrays:
            labels = [f"τ = {tau:g}" for tau in trajectory["tau"]]
            rows = zip(labels, values[:, None], strict=True)
            return [Curve(label, times, row) for label, row in rows]
        return [Curve("", times, np.atleast_2d(values))]
    arms = {known_name.removesuffix(f"_{name}"): known_name for known_name in known}
    matching = [
        curve._replace(arm=arm)
        for arm, array in arms.items()
        if arm in ARMS
        for curve in find(trajectory, array)
    ]
    if not matching:
        raise ValueError(f"no curve {name!r} in this trajectory: {nearest(name, known)}")
    return matching


def ends(trajectory: Record) -> dict[str, str]:
    """The endings of the arms that did not finish, by arm; a run without arms has the key "".

    An arm that never started because another diverged is left out: it has no curve.
    """
    endings = {"": (trajectory.status.code, trajectory.status.step)}
    arms = [name for name in trajectory.state if name.endswith(".status")]
    if arms:
        endings = {_arm(name): json.loads(str(trajectory.state[name])) for name in arms}
    words = {arm: ENDS[code].format(step) for arm, (code, step) in endings.items() if code in ENDS}
    diverged_at = trajectory.arrays.get("diverged_at", np.empty(0))
    diverged = diverged_at[diverged_at >= 0]
    if diverged_at.size > 1 and diverged.size:
        count = f"{diverged.size} of {diverged_at.size} replicas"
        return {"": f"{count} diverged, from step {diverged.min():,} on"}
    return words


def _arm(name: str) -> str:
    """The arm, named as in its curves, whose status is the entry `name` of the state."""
    arm, _, tau = name.removesuffix(".status").partition("tau = ")
    return arm or f"τ = {float(tau):g}"


def usual(trajectory: Record) -> list[str]:
    """The quantities of a trajectory that are drawn by default: those that have a finite value."""
    known, models = names(trajectory), models_of(trajectory)
    return [
        name
        for name in quantities.drawn(*models)
        if any(array == name or array.endswith(f"_{name}") for array in known)
        and any(np.isfinite(curve.values).any() for curve in find(trajectory, name))
    ]


def models_of(trajectory: Record) -> tuple[str, ...]:
    """The models, by their names in the table of quantities, one of which a run is of."""
    if "model" in trajectory.arrays:
        return (quantities.of_kernel(json.loads(str(trajectory["model"]))["model"]),)
    if "alignment_mean" in trajectory.arrays:
        return (quantities.TWO_LAYER,)
    return NETWORKS


def of_steps(trajectory: Record) -> bool:
    """Whether a run is of many small steps, drawn on a logarithmic axis: no network on images."""
    return models_of(trajectory) != NETWORKS


def _row(trajectory: Record, name: str) -> Quantity | None:
    """The row of an array; None for a user's own, even if other models record its name."""
    row, models = quantities.find(name), models_of(trajectory)
    if row is not None and of_steps(trajectory) and set(models).isdisjoint(row.models):
        return None
    return row


def axis(trajectory: Record, name: str) -> str:
    """The name of a curve's horizontal axis: an array of times or of shares of weights kept."""
    row = _row(trajectory, name)
    if row is not None and row.axis is Axis.CLOUD:
        return "cloud_step"
    if row is not None and row.axis is Axis.PERCENT:
        return "kept_percent"
    if row is not None and row.costly and row.over in trajectory.arrays:
        return row.over
    return "epoch" if "epoch" in trajectory.arrays else "step"


SCHEDULED = ("warm_up", "decay_steps", "drop_every")
"""Keys of experiments under which the learning rate changes."""


def stability_limit(trajectory: Record) -> float | None:
    """The sharpness above which gradient descent on a quadratic loss diverges, or None.

    2 (1 + momentum) / lr; there is none without one learning rate that holds for the whole run.
    """
    config = trajectory.config
    lr, momentum = config.get("lr"), config.get("momentum", 0.0)
    numbers = all(isinstance(value, int | float) for value in (lr, momentum))
    if not numbers or "epoch" in trajectory.arrays or any(config.get(key) for key in SCHEDULED):
        return None
    return 2.0 * (1.0 + momentum) / lr if lr else None


def table(trajectory: Record) -> dict[str, NDArray[Any]]:
    """All curves over time as columns, with replicas or arms stacked one below the other.

    A curve is NaN at the records where it was not measured.
    """
    steps, count = trajectory.steps, _count(trajectory)
    several: dict[str, NDArray[Any]] = {"replica": np.arange(count)} if count > 1 else {}
    if "tau" in trajectory.arrays:
        several = {"tau": trajectory["tau"]}
    columns = {name: np.repeat(values, steps.size) for name, values in several.items()}
    for name in ("step", "epoch"):
        if name in trajectory.arrays:
            columns[name] = np.tile(trajectory[name], count)
    for name in names(trajectory):
        over = axis(trajectory, name)
        if over == "kept_percent":
            continue
        at = slice(None) if over in ("step", "epoch") else np.isin(steps, trajectory[over])
        values = np.full((count, steps.size), np.nan)
        values[:, at] = trajectory[name]
        columns[name] = values.ravel()
    return columns


def _count(trajectory: Record) -> int:
    """The number of replicas, or of arms at several tau, of a trajectory."""
    several = trajectory.arrays.get("tau", trajectory.arrays.get("diverged_at"))
    return 1 if several is None else max(1, several.size)


def _is_curve(trajectory: Record, name: str) -> bool:
    values, row = trajectory[name], _row(trajectory, name)
    if values.dtype.kind != "f":
        return False
    if row is not None and (row.of_neurons or row.axis in (Axis.RUN, Axis.END)):
        return False
    over = trajectory.arrays.get(axis(trajectory, name), np.empty(0))
    if over.size == 0:  # it was never measured
        return False
    several = _count(trajectory) > 1 or "tau" in trajectory.arrays
    replicas = (_count(trajectory),) if several else ()
    return values.shape == (*replicas, over.size)
