"""The summary of each point of a sweep, and the run of a chunk of points.

Summary.  Times are in steps; a value that was not reached or is not defined is None.  Of a run that
diverged only the step is recorded.

    status, diverged_at    OK or DIVERGED, and the step; of a point without a run see predicted.py
    regime                 the first of these that applies:
                           diverged   the run diverged
                           collapsed  |W|_F |a| < |theta_star|/2 at the end, and less than half of
                                      its start: as |W^T a| <= |W|_F |a|, the network is then too
                                      small to get more than half way to the interpolator
                           rich       every neuron has left the lazy regime (Theorem 2's event)
                           lazy       some neuron has not
                           trained    the model has no neurons
    first_escape, last_escape, alignment, convergence, decay_rate     as phases.py measures them
    decay_time             first time at which |W|_F^2 is at most 1/e of its start, by linear
                           interpolation of its logarithm between records
    train_loss ... ntk_distance       quantities at the last step (run/quantities.py)
    sharpness ... batch_sharpness     measures at the last step (run/measures.py); those off by
                                      default where the sweep's key `measures` names them

Models other than the two-layer network with one output have their own recorded quantities, the
times if they have neurons, and no predictions.

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
from lnsim.experiments._models import ModelConfig
from lnsim.experiments._synthetic import LinearConfig
from lnsim.experiments.case import Case
from lnsim.run import quantities
from lnsim.run.experiment import load
from lnsim.run.measures import NEEDS
from lnsim.run.quantities import TWO_LAYER
from lnsim.simulation.trajectory import Trajectory

Point = LinearConfig | ModelConfig
"""The configurations that can be swept."""

THEORY = "theory"
"""What a results file names in place of a backend where its points are predicted."""

SCALARS = ("lr", "sigma", "rho", "momentum", "weight_decay", "tau", "rate")
"""Keys in which the points of one chunk may differ."""

TIMES = ("first_escape", "last_escape", "alignment", "convergence", "decay_rate")
PREDICTED = (
    "predicted_last_escape", "predicted_decay_time", "predicted_norm_squared",
    "predicted_second_layer_norm", "predicted_instability",
)  # fmt: skip

Summary = dict[str, Any]


def columns(experiment: str = "label-noise") -> dict[str, str]:
    """The columns of the summary of a point, with their SQLite types."""
    model = load(experiment).Config.model  # type: ignore[attr-defined]
    words = {"status": "TEXT", "diverged_at": "INTEGER", "regime": "TEXT"}
    return words | dict.fromkeys(_numbers(model), "REAL")


def _numbers(model: str) -> tuple[str, ...]:
    """The columns of numbers in the summary of a point of this model."""
    times = (*TIMES, "decay_time") if model in quantities.HIDDEN else ()
    predicted = PREDICTED if model == TWO_LAYER else ()
    return (*times, *recorded(model), *predicted)


def recorded(model: str) -> tuple[str, ...]:
    """The quantities of this model whose last value is in a summary."""
    measures = quantities.names(model, needs=NEEDS)
    return (*quantities.names(model), *measures)


def has_theory(experiment: str) -> bool:
    """Whether an experiment is of the two-layer network with one output, which has the theory."""
    return bool(load(experiment).Config.model == TWO_LAYER)  # type: ignore[attr-defined]


def usual_column(experiment: str, keys: int) -> str:
    """The default column of a sweep over this number of keys."""
    if not has_theory(experiment):
        return "test_loss"
    return "regime" if keys == 2 else "last_escape"


def run_points(experiment: str, configs: Sequence[Point], backend: str = "numba") -> list[Summary]:
    """The summary of every configuration, in order; they differ only in SCALARS.

    A point's numbers equal those of a sweep of that point alone, bit for bit, and those of a run up
    to the rounding of |W|_F^2.
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
        summary=True,
    )
    measured = summarize(ensemble, first.model)
    predicted = predictions(experiment, configs)
    return [{**m, **p} for m, p in zip(measured, predicted, strict=True)]


def shared(config: Point) -> tuple[Any, ...]:
    """The values that the points of one chunk must have in common."""
    scalars = (getattr(config, f.name) for f in fields(config) if f.name not in SCALARS)
    return (*scalars, *config.apart)


def summarize(trajectory: Trajectory, model: str = TWO_LAYER) -> list[Summary]:
    """What was measured, one summary per replica, of one run or of an ensemble."""
    measured = _measured(trajectory, model)
    words = regimes(trajectory, measured)
    summaries = []
    for s, diverged_at in enumerate(trajectory["diverged_at"].tolist()):
        if diverged_at >= 0:
            row: Summary = {"status": "DIVERGED", "diverged_at": diverged_at, "regime": "diverged"}
            row |= dict.fromkeys(measured)
        else:
            row = {"status": "OK", "diverged_at": None, "regime": words[s]}
            row |= {name: _plain(values[s]) for name, values in measured.items()}
        summaries.append(row)
    return summaries


def _measured(trajectory: Trajectory, model: str) -> dict[str, FloatArray]:
    """The numbers of every replica, (S,), NaN for what this run has not."""
    replicas = trajectory["diverged_at"].size
    values: dict[str, Any] = {}
    if "lazy_escape" in trajectory.arrays:
        values = {**vars(trajectory.phases()), "decay_time": decay_time(trajectory)}
    for name in recorded(model):
        if name in trajectory.arrays:
            values[name] = trajectory[name][..., -1]
    return {
        name: np.atleast_1d(values.get(name, np.full(replicas, np.nan)))
        for name in _numbers(model)
        if name not in PREDICTED
    }


def regimes(trajectory: Trajectory, measured: Mapping[str, FloatArray]) -> list[str]:
    """The regime of every replica, as if it had not diverged."""
    if "lazy_escape" not in trajectory.arrays:
        return ["trained"] * trajectory["diverged_at"].size
    escaped = np.isfinite(measured["last_escape"])
    squares, second = (
        np.atleast_2d(trajectory[name]) for name in ("norm_squared", "second_layer_norm")
    )
    size = np.sqrt(squares) * second
    target = float(np.linalg.norm(trajectory.arrays.get("theta_star", np.zeros(1))))
    collapsed = size[:, -1] < np.minimum(0.5 * target, 0.5 * size[:, 0])
    return [
        "collapsed" if small else "rich" if out else "lazy"
        for small, out in zip(collapsed, escaped, strict=True)
    ]


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


def predictions(experiment: str, configs: Sequence[Point]) -> list[Summary]:
    """What the theory says of every configuration; they agree in all but SCALARS."""
    if configs[0].model != TWO_LAYER:
        return [{} for _ in configs]
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
