"""The summary of each point of a sweep by theory alone, without a step of training.

The law of the cloud (theory/cloud.py) gives the recorded quantities of a run, and points.py makes
the summary of these series as it does of a run's, so the columns mean the same.  What differs:

    status     PREDICTED; or "REFUSED: " and the reason, where a premise of theory does not hold.
               Such a point has no values, and no regime
    regime     diverged where the noise of the steps amplifies itself, so that the mean loss has no
               bound; the step is not predicted.  Just above that lr a run may be saved by what it
               loses of its norm: at the default sizes (4 seeds at each of sigma = 0, 1, 4, 8) no
               run diverged up to 1.04 times it, some between 1.05 and 1.16, all from 1.17 on

The recorded quantities are expectations over the draws.  A long run is predicted at MOST_RECORDS of
its records, and the cosine of the neurons at COSINES of them.  The escapes are those of the root
mean square of a neuron's displacement, in closed form, not the first passages of theory/escape.py,
which take ten times as long as the rest together: a run passes 1/sqrt(m) earlier, where it
fluctuates.  Of 174 last escapes (default sizes, 200,000 steps, sigma 0.5 to 16) the median is 4 %
late, and 5 % of them are more than 66 % late, where the noise is strong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.experiments.case import Case
from lnsim.run import measures, quantities
from lnsim.run.quantities import TWO_LAYER
from lnsim.run.record import Ending, Status
from lnsim.simulation.snapshots import watch_steps
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps import points
from lnsim.sweeps.points import Point, Summary
from lnsim.theory import course
from lnsim.theory.cloud import Prediction
from lnsim.theory.interpolation import pchip
from lnsim.theory.manifold import NoStationaryState

PREDICTED, REFUSED = "PREDICTED", "REFUSED"
"""How the status of a predicted point begins."""

MOST_RECORDS = 401
"""Largest number of records at which a series is predicted."""
COSINES = 24
"""Number of records at which the neurons' mean cosine is computed; a smooth curve joins them."""

LEFT_OUT = ("lazy_fraction",)
"""Quantities whose prediction takes ten times as long as all the others (theory/escape.py)."""

SUMMED = ("ntk_distance",)
"""Quantities that add up along the course, for which SUMMANDS of its times are enough."""
SUMMANDS = 12

AT_ONCE = 4
"""Times at which all displacements are computed at once: they stay in the cache."""

POINT_SECONDS, SAM_SECONDS = 0.05, 0.5
"""Usual time of a point on one core; that of SAM."""


def seconds(config: Point) -> float:
    """A rough estimate of the time of one point on one core."""
    return SAM_SECONDS if getattr(config, "rho", 0.0) else POINT_SECONDS


def check(experiment: str, point: Point) -> None:
    """Raises ValueError if theory predicts no point of this experiment."""
    if not points.has_theory(experiment):
        raise ValueError(
            f"theory predicts two-layer linear networks with one output, not {experiment!r}"
        )
    _ = Case.of_keys(experiment, vars(point)).dynamics


def predict_points(experiment: str, configs: Sequence[Point]) -> list[Summary]:
    """The predicted summary of every configuration, in order; they agree in all but SCALARS.

    A point's numbers do not depend on the others.
    """
    first = Case.of_keys(experiment, vars(configs[0]))
    statements = points.predictions(experiment, configs)
    rows = []
    with course.many():
        for config, statement in zip(configs, statements, strict=True):
            case = Case.of_keys(experiment, vars(config), first.start)
            row = dict.fromkeys(points.columns(experiment)) | summary(case, config.measures)
            rows.append(row | statement)
    return rows


def summary(case: Case, measured: str = "") -> Summary:
    """What theory says of a case, as points.summarize says it of a run."""
    try:
        return _summary(case, measured)
    except NoStationaryState:
        return {"status": PREDICTED, "regime": "diverged"}
    except (ValueError, ArithmeticError) as error:
        return {"status": f"{REFUSED}: {error}", "regime": None}


def _summary(case: Case, measured: str) -> Summary:
    config = case.config
    records = _records(config.steps, config.record_every)
    times = np.union1d(records, looks(config.steps))
    prediction = case.predict(times.astype(np.float64))
    series = prediction.at(np.searchsorted(times, records))
    last = prediction.at(np.array([-1]))
    along = prediction.at(_spread(len(times), SUMMANDS))
    arrays: dict[str, NDArray[Any]] = {
        "step": records,
        "diverged_at": np.array([-1]),
        "theta_star": case.start.theta_star,
        "lazy_escape": np.nan_to_num(escapes(prediction), nan=-1.0, posinf=-1.0),
        "norm_squared": series["norm_squared"],
        "second_layer_norm": series["second_layer_norm"],
        "cosine_mean": _cosine(series),
    }
    recorded = {*quantities.names(TWO_LAYER), *measures.chosen(TWO_LAYER, measured)}
    for name in recorded.intersection(prediction.names) - {*arrays, *LEFT_OUT}:
        arrays[name] = (along if name in SUMMED else last)[name]
    run = Trajectory(arrays, {}, Status(Ending.OK, config.steps))
    return {**points.summarize(run)[0], "status": PREDICTED}


def _records(steps: int, every: int) -> NDArray[np.int64]:
    """The steps recorded by a run, (T,), or MOST_RECORDS of them."""
    last = -(-steps // every)
    chosen = np.unique(np.linspace(0, last, min(last + 1, MOST_RECORDS)).round().astype(np.int64))
    return np.minimum(chosen * every, steps)


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """About `count` of the indices below `size`, the ends included, half of them early ones."""
    early, even = (
        np.geomspace(1, max(size - 1, 1), count // 2),
        np.linspace(0, size - 1, count // 2),
    )
    chosen = np.concatenate([early, even]).round().astype(np.int64)
    return np.unique(np.minimum(chosen, size - 1))


def looks(steps: int) -> NDArray[np.int64]:
    """The steps from 0 to the last at which a run of this length looks at its neurons, (T,)."""
    watched = [step for step in watch_steps(steps) if 0 < step < steps]
    return np.unique(np.array([0, *watched, steps], dtype=np.int64))


def escapes(prediction: Prediction) -> FloatArray:
    """When each neuron leaves the lazy regime, (m,), inf if it does not by the last time.

    Neuron i has left when the root mean square of its displacement exceeds 1/sqrt(m):

        E|w_i(t) - w_i(0)|^2 = |mean displacement|^2 + a_i(t)^2 tr Z(t) > 1/m,

    the time interpolated between those of the prediction.
    """
    mean, times = prediction.mean, prediction.times
    width, size = mean.M.shape
    moves = mean.G - np.eye(size)
    fast = np.trace(mean.course.Z, axis1=1, axis2=2)
    escapes = np.full(width, np.inf)
    left, before = np.arange(width), np.zeros((width, 1))
    # No neuron moves further than the largest |(w_i, a_i)| times the norms of what moves it.
    reach = np.sum(moves[:, :, :-1] ** 2, axis=(1, 2)) + fast * np.sum(
        mean.G[:, :, -1] ** 2, axis=1
    )
    near = np.flatnonzero(reach * np.sum(mean.M**2, axis=1).max() > 1 / width)
    if not near.size:
        return escapes
    for first in range(max(int(near[0]) - 1, 0), len(times), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        start = mean.M[left]
        moved = (start @ np.hstack(list(moves[some]))).reshape(len(left), -1, size)
        second = moved[:, :, -1]
        square = np.einsum("mtr,mtr->mt", moved, moved) - second**2
        moved = np.sqrt(np.maximum(square, 0.0) + (second + start[:, -1:]) ** 2 * fast[some])
        path = np.hstack([before, moved])  # from the last time of the part before
        at = np.append(times[max(first - 1, 0)], times[some])
        out = moved > 1 / math.sqrt(width)
        escaped = out.any(axis=1)
        rows, k = np.flatnonzero(escaped), out[escaped].argmax(axis=1)
        share = (1 / math.sqrt(width) - path[rows, k]) / (path[rows, k + 1] - path[rows, k])
        escapes[left[escaped]] = at[k] + share * (at[k + 1] - at[k])
        left, before = left[~escaped], moved[~escaped, -1:]
        if not left.size:
            break
    return escapes


def regime(ends: Prediction, rich: bool) -> str:
    """The regime (points.py) of a prediction at the start and at the end of a run."""
    arrays = {
        "lazy_escape": np.zeros(1),
        "norm_squared": ends["norm_squared"],
        "second_layer_norm": ends["second_layer_norm"],
        "theta_star": ends.mean.target,
    }
    run = Trajectory(arrays, {}, Status(Ending.OK, int(ends.times[-1])))
    return points.regimes(run, {"last_escape": np.array([0.0 if rich else np.nan])})[0]


def _cosine(series: Prediction) -> FloatArray:
    """The mean cosine at every time, computed at COSINES of them."""
    if len(series.times) <= COSINES:
        return series["cosine_mean"]
    for count in (COSINES // 4, COSINES):
        few = series.at(_spread(len(series.times), count))
        cosines = few["cosine_mean"]
        if cosines.max() < cosines[0] + 0.4 * (1 - cosines[0]):  # Phase II does not begin
            break
    return pchip(few.times, cosines, series.times)
