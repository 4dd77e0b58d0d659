"""What is kept of every point of a sweep, and how a chunk of points is run.

Summary.  Times are in steps; what was not reached, or is not defined, is None and never a number.
Of a run that diverged nothing is measured but when.

    status, diverged_at    OK or DIVERGED, and the step
    regime                 the first of these that is so:
                           diverged   the run diverged
                           collapsed  |W|_F |a| < |theta_star|/2 at the end, and less than half of
                                      what it was: as |W^T a| <= |W|_F |a|, the network has become
                                      too small to come nearer than half way to the interpolator
                           rich       every neuron has left the lazy regime (Theorem 2's event)
                           lazy       some have not
    first_escape, last_escape, alignment, convergence, decay_rate     as phases.py measures them
    decay_time             when |W|_F^2 first is a factor e below its start; between two records
                           its logarithm is interpolated
    train_loss ... ntk_distance       quantities at the last step (run/quantities.py)

Predictions.  Where the statements cover the setting (label noise of +-sigma, one sample a step,
neither momentum nor weight decay), else None:

    predicted_last_escape        T_1 of Theorem 2
    predicted_decay_time         1/(lr sigma)^2, the leading order of the law of modes
    predicted_norm_squared       |W|_F^2 and
    predicted_second_layer_norm  |a| in the stationary state
    predicted_instability        (lr/2) tr(A Sigma) at the start, A = W^T W + |a|^2 I: from 1 on the
                                 noise in the loss feeds itself and no stationary loss exists
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.experiments._synthetic import LinearConfig
from lnsim.experiments.case import Case
from lnsim.run import quantities
from lnsim.run.experiment import load
from lnsim.run.quantities import TWO_LAYER
from lnsim.simulation.trajectory import Trajectory

SCALARS = ("lr", "sigma", "rho", "momentum", "weight_decay")
"""Keys in which the points of one chunk may differ."""

TIMES = ("first_escape", "last_escape", "alignment", "convergence", "decay_rate")
PREDICTED = (
    "predicted_last_escape", "predicted_decay_time", "predicted_norm_squared",
    "predicted_second_layer_norm", "predicted_instability",
)  # fmt: skip

Summary = dict[str, Any]


def columns() -> dict[str, str]:
    """The names in the summary of a point, with the types that SQLite stores."""
    numbers = (*TIMES, "decay_time", *quantities.names(TWO_LAYER), *PREDICTED)
    words = {"status": "TEXT", "diverged_at": "INTEGER", "regime": "TEXT"}
    return words | dict.fromkeys(numbers, "REAL")


def run_points(
    experiment: str, configs: Sequence[LinearConfig], backend: str = "numba"
) -> list[Summary]:
    """The summary of every configuration, in order; they agree in all but SCALARS.

    A point's numbers are those of its run alone, bit for bit, whatever it was run with.
    Raises ValueError or TypeError for values out of range.
    """
    first, seeds = configs[0], [config.seed for config in configs]
    values = {key: [vars(c)[key] for c in configs] for key in vars(first) if key in SCALARS}
    arrays: dict[str, Any] = {k: np.array(v) for k, v in values.items() if len(set(v)) > 1}
    ensemble = load(experiment).run(
        replace(first, **arrays),
        backend=backend,
        seed=seeds,
        linearized=False,
        tracked=0,
        clouds=False,
    )
    measured = summarize(ensemble)
    predicted = predictions(experiment, configs)
    return [{**m, **p} for m, p in zip(measured, predicted, strict=True)]


def shared(config: LinearConfig) -> tuple[Any, ...]:
    """What the points of one chunk must agree in."""
    return tuple(getattr(config, f.name) for f in fields(config) if f.name not in SCALARS)


def summarize(trajectory: Trajectory) -> list[Summary]:
    """What was measured, one summary per replica, of one run or of an ensemble."""
    phases = trajectory.phases()
    decay = np.atleast_1d(decay_time(trajectory))
    times = {name: np.atleast_1d(getattr(phases, name)) for name in TIMES}
    series = {name: np.atleast_2d(trajectory[name]) for name in quantities.names(TWO_LAYER)}
    half = 0.5 * float(np.linalg.norm(trajectory["theta_star"]))
    summaries = []
    for s, diverged_at in enumerate(trajectory["diverged_at"].tolist()):
        if diverged_at >= 0:
            empty = dict.fromkeys((*TIMES, "decay_time", *series))
            regime = "diverged"
            summaries.append(
                {"status": "DIVERGED", "diverged_at": diverged_at, "regime": regime, **empty}
            )
            continue
        row: Summary = {name: _plain(values[s]) for name, values in times.items()}
        row["decay_time"] = _plain(decay[s])
        row |= {name: _plain(values[s, -1]) for name, values in series.items()}
        size = np.sqrt(series["norm_squared"][s]) * series["second_layer_norm"][s]
        regime = "lazy" if row["last_escape"] is None else "rich"
        if size[-1] < min(half, 0.5 * size[0]):
            regime = "collapsed"
        summaries.append({"status": "OK", "diverged_at": None, "regime": regime, **row})
    return summaries


def decay_time(trajectory: Trajectory) -> FloatArray:
    """When |W|_F^2 first is |W(0)|_F^2/e or less, NaN where never; () or, of an ensemble, (S,)."""
    steps, squares = trajectory.steps.astype(np.float64), trajectory["norm_squared"]
    result = np.array([_first_fall(steps, row) for row in np.atleast_2d(squares)])
    return result.reshape(squares.shape[:-1])


def _first_fall(steps: FloatArray, squares: FloatArray) -> float:
    level = squares[0] / math.e
    below = np.flatnonzero(squares <= level)
    if not squares[0] > 0.0 or not below.size:
        return math.nan
    k = below[0]
    logs = np.log(np.maximum(squares[k - 1 : k + 1], np.finfo(float).tiny))
    share = (logs[0] - math.log(level)) / (logs[0] - logs[1])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))


def predictions(experiment: str, configs: Sequence[LinearConfig]) -> list[Summary]:
    """What the theory says of every configuration; they agree in all but SCALARS."""
    first = Case.of_keys(experiment, vars(configs[0]))
    return [_predicted(Case.of_keys(experiment, vars(c), first.start)) for c in configs]


def _predicted(case: Case) -> Summary:
    row: Summary = dict.fromkeys(PREDICTED)
    if case.covered_noise is None or case.config.lr >= 1:
        return row
    row["predicted_instability"] = case.instability
    if case.config.sigma == 0:
        return row
    row["predicted_last_escape"] = _plain(case.escape_bound)
    row["predicted_decay_time"] = _plain(case.decay_time)
    with suppress(ValueError):  # no input reaches theta_star
        first, second = case.stationary
        row["predicted_norm_squared"] = _plain(first)
        row["predicted_second_layer_norm"] = _plain(math.sqrt(second))
    return row


def decay_time_by_modes(experiment: str, config: Mapping[str, Any]) -> float:
    """`decay_time` as the law of modes has it (modes.py); NaN where it says nothing.

    Looked for until four times its leading order.  It takes tenths of a second, and so is no part
    of a point's summary.
    """
    case = Case.of_keys(experiment, config)
    if not case.covered_noise:
        return math.nan
    steps = np.linspace(0.0, min(case.config.steps, 4 * case.decay_time), 1001)
    try:
        return _first_fall(steps, case.modes_at(steps).norm_squared)
    except (ValueError, ArithmeticError):
        return math.nan


def _plain(value: Any) -> float | None:
    """A float that a table can hold: a number that is not finite becomes None."""
    number = float(value)
    return number if math.isfinite(number) else None
