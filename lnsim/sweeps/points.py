"""The summary of each point of a sweep, and the run of a chunk of points.

Summary.  Times are in steps; a value that was not reached or is not defined is None.  Of a run that
diverged only the step is recorded.

    status, diverged_at    OK or DIVERGED, and the step
    regime                 the first of these that applies:
                           diverged   the run diverged
                           collapsed  |W|_F |a| < |theta_star|/2 at the end, and less than half of
                                      its start: as |W^T a| <= |W|_F |a|, the network is then too
                                      small to get more than half way to the interpolator
                           rich       every neuron has left the lazy regime (Theorem 2's event)
                           lazy       some neuron has not
    first_escape, last_escape, alignment, convergence, decay_rate     as phases.py measures them
    decay_time             first time at which |W|_F^2 is at most 1/e of its start, by linear
                           interpolation of its logarithm between records
    train_loss ... ntk_distance       quantities at the last step (run/quantities.py)

Predictions.  None unless the statements cover the setting (label noise of +-sigma, one sample per
step, no momentum, no weight decay):

    predicted_last_escape        T_1 of Theorem 2
    predicted_decay_time         1/(lr sigma)^2, the leading order of the law of modes
    predicted_norm_squared       |W|_F^2 and
    predicted_second_layer_norm  |a| in the stationary state
    predicted_instability        (lr/2) tr(A Sigma) at the start, A = W^T W + |a|^2 I: from 1 on
                                 the loss noise amplifies itself and no stationary loss exists
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
    """The columns of the summary of a point, with their SQLite types."""
    numbers = (*TIMES, "decay_time", *quantities.names(TWO_LAYER), *PREDICTED)
    words = {"status": "TEXT", "diverged_at": "INTEGER", "regime": "TEXT"}
    return words | dict.fromkeys(numbers, "REAL")


def run_points(
    experiment: str, configs: Sequence[LinearConfig], backend: str = "numba"
) -> list[Summary]:
    """The summary of every configuration, in order; the configurations differ only in SCALARS.

    A point's numbers equal those of a run of that point alone, bit for bit.
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
    """The values that the points of one chunk must have in common."""
    return tuple(getattr(config, f.name) for f in fields(config) if f.name not in SCALARS)


def summarize(trajectory: Trajectory) -> list[Summary]:
    """The measured part of the summary, one per replica, of one run or of an ensemble."""
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
    """The first time with |W|_F^2 <= |W(0)|_F^2/e, NaN if never; () or, of an ensemble, (S,)."""
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
    """The predicted part of every summary; the configurations differ only in SCALARS."""
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
    with suppress(ValueError):  # raised if theta_star is orthogonal to every input
        first, second = case.stationary
        row["predicted_norm_squared"] = _plain(first)
        row["predicted_second_layer_norm"] = _plain(math.sqrt(second))
    return row


def decay_time_by_modes(experiment: str, config: Mapping[str, Any]) -> float:
    """`decay_time` as predicted by the law of modes (modes.py); NaN where it predicts nothing.

    The law is integrated up to four times the leading order.  This takes tenths of a second, so it
    is not part of a point's summary.
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
    """The value as a float for a table; a number that is not finite becomes None."""
    number = float(value)
    return number if math.isfinite(number) else None
