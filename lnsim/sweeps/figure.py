"""Figures of sweeps: a phase diagram over two swept keys, or a curve with its power law over one.

There is one panel per sweep and column.  In a map a cell is the median over seeds, or the most
frequent word, and lines show where a prediction equals the level it is compared with.  In a curve
the line is the median over seeds, the band reaches from the minimum to the maximum, and the fit
(power_law.py) is of all seeds' values; its label says if they bend.  An x at which some seed has no
value is left out of all three: the other seeds would be a biased selection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    ONE_COLUMN,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    pt,
)
from lnsim.sweeps import points
from lnsim.sweeps.axis import Axis, name_of
from lnsim.sweeps.map import draw_map
from lnsim.sweeps.power_law import power_law
from lnsim.sweeps.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREDICTION_OF = {
    "last_escape": ("predicted_last_escape", "$T_1$ (Theorem 2)"),
    "decay_time": ("predicted_decay_time", r"$1/(\eta\sigma)^2$"),
    "norm_squared": ("predicted_norm_squared", "stationary state"),
    "second_layer_norm": ("predicted_second_layer_norm", "stationary state"),
}
"""The prediction that a curve shows beside a measured column, and its label."""

MODES_AT = 5
"""Largest number of values of a swept key at which the law of modes is integrated."""


def figure(sweeps: Sequence[Table], columns: Sequence[str] = ()) -> Figure:
    """One panel for each column (rows) of each sweep (side by side).

    The default column is "regime" over two swept keys and "last_escape" over one, and "test_loss"
    for models other than the two-layer network with one output.  Raises ValueError for another
    number of swept keys, an unknown column, or a column without a value.
    """
    rows, across = max(1, len(columns)), len(sweeps)
    with drawing():
        width = ONE_COLUMN if across == 1 else TWO_COLUMNS
        drawn = blank(width, 2.9 * rows, layout="constrained")
        grid = drawn.subplots(rows, across, squeeze=False)
        for i, line in enumerate(grid):
            for axes, sweep in zip(line, sweeps, strict=True):
                draw(axes, sweep, *columns[i : i + 1])
        if grid.size > 1:
            for axes, letter in zip(grid.flat, "abcdefghijklmnopqrstuvwxyz", strict=False):
                panels.letter(axes, letter)
    return drawn


def draw(axes: Axes, sweep: Table, column: str = "") -> None:
    """Draws one panel of a sweep; `column` and errors are as for `figure`."""
    _check(sweep, column)
    column = column or points.usual_column(sweep.experiment, len(sweep.swept))
    if len(sweep.swept) == 2:
        draw_map(axes, sweep, column)
    else:
        draw_curve(axes, sweep, column)
    if sweep.predicted:
        axes.set_title("predicted, nothing trained")


def _check(sweep: Table, column: str) -> None:
    if not sweep.rows:
        raise ValueError(f"{sweep.folder} has no points yet")
    if len(sweep.swept) not in (1, 2):
        keys = ", ".join(sweep.swept) or "none"
        raise ValueError(
            f"a figure has one or two swept keys, and {sweep.folder} leaves {keys}: "
            "fix the others with --where KEY=VALUE"
        )
    known = points.columns(sweep.experiment)
    if column and column not in known:
        raise ValueError(f"unknown column {column!r}: {nearest(column, known)}")
    if column and column not in sweep.rows[0]:
        raise ValueError(f"{sweep.folder} was begun without the column {column!r}")


def draw_curve(axes: Axes, sweep: Table, column: str) -> None:
    """Draws a column over one swept key: median, spread, fitted power law and prediction.

    Raises ValueError if the column holds words, or if no x has a value for every seed.
    """
    if points.columns(sweep.experiment)[column] == "TEXT":
        raise ValueError(f"{column} holds words: over one key choose a column of numbers")
    x = Axis(sweep, sweep.swept[0])
    values: list[list[Any]] = [[] for _ in x.values]
    for row in sweep.rows:
        values[x.index[row[x.key]]].append(row[column])
    complete = [i for i, of_seeds in enumerate(values) if None not in of_seeds]
    if not complete:
        raise ValueError(f"{column} has no value at any {x.key} for every seed")
    places = x.places[complete]
    samples = [np.array(values[i], dtype=np.float64) for i in complete]
    medians, low, high = ([f(v) for v in samples] for f in (np.median, np.min, np.max))
    axes.fill_between(places, low, high, color=BLUE, alpha=0.25, lw=0)
    axes.plot(places, medians, "o-", ms=pt(3), lw=pt(0.8), color=BLUE)
    x.label(axes.xaxis, axes.set_xscale)
    positive = min(low) > 0
    if x.log and positive:
        axes.set_yscale("log")
    axes.set_ylabel(name_of(column))
    if not x.words and positive and (x.log or points.has_theory(sweep.experiment)):
        _draw_power_law(axes, places, samples)
    if not x.words and not sweep.predicted:
        _draw_predicted(axes, sweep, x, column, places)
    _mark_missing(axes, sweep, x, set(range(len(values))) - set(complete))
    handles, names = axes.get_legend_handles_labels()
    if handles:
        _make_room(axes, 0.08 * (1 + sum(1 + name.count("\n") for name in names)))
        axes.legend(loc="upper right", title="exponent [95 %]", handlelength=1.6)


def _mark_missing(axes: Axes, sweep: Table, x: Axis, missing: set[int]) -> None:
    """Marks at the foot each x at which some seed has no value, or has diverged."""
    diverged = {x.index[row[x.key]] for row in sweep.rows if row["regime"] == "diverged"} & missing
    marks = (
        (missing - diverged, "|", "no value for some seed"),
        (diverged, "x", "diverged for some seed"),
    )
    for places, marker, label in marks:
        if places:
            axes.plot(
                x.places[sorted(places)], np.full(len(places), 0.02), marker, ms=pt(4),
                color=VERMILION, clip_on=False, transform=axes.get_xaxis_transform(), label=label,
            )  # fmt: skip


def _make_room(axes: Axes, share: float) -> None:
    """Extends the vertical axis upwards so that `share` of it is free."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(low, low * (high / low) ** (1 / (1 - share)))
    else:
        axes.set_ylim(low, low + (high - low) / (1 - share))


def _draw_power_law(axes: Axes, places: FloatArray, values: list[FloatArray]) -> None:
    """Draws the fit through all values with x above 0, if there are at least three x."""
    counts = [v.size for v in values]
    x, y = np.repeat(places, counts), np.concatenate(values)
    x, y = x[x > 0], y[x > 0]
    if np.unique(x).size < 3:
        return
    law = power_law(x, y)
    label = f"fit {_number(law.exponent)} [{_number(law.low)}, {_number(law.high)}]"
    label += "\nbut the points bend" if law.bends else ""
    at = np.geomspace(x.min(), x.max(), 50)
    axes.plot(at, law(at), color=VERMILION, lw=pt(0.9), label=label)


def _draw_predicted(axes: Axes, sweep: Table, x: Axis, column: str, places: FloatArray) -> None:
    """Draws the predictions where there are measurements, labelled by their fitted exponents."""
    curves: list[tuple[str, str, FloatArray]] = []
    if column in PREDICTION_OF:
        name, label = PREDICTION_OF[column]
        medians = [_median_at(sweep, x.key, value, name) for value in x.values]
        curves.append((label, "--", np.array(medians)))
    if column == "decay_time":
        curves.append(("law of modes", ":", _by_law_of_modes(sweep, x, places)))
    for label, style, predicted in curves:
        known = np.isfinite(predicted) & np.isin(x.places, places[places > 0])
        if not known.any():
            continue
        if np.count_nonzero(known) > 2:
            label += f" {_number(power_law(x.places[known], predicted[known]).exponent)}"
        axes.plot(x.places[known], predicted[known], color=BLACK, lw=pt(1.0), ls=style, label=label)


def _number(value: float) -> str:
    """A number for a legend, with a minus sign rather than a hyphen."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _median_at(sweep: Table, key: str, value: Any, column: str) -> float:
    values = [r[column] for r in sweep.rows if r[key] == value and r[column] is not None]
    return float(np.median(values)) if values else math.nan


def _by_law_of_modes(sweep: Table, x: Axis, places: FloatArray) -> FloatArray:
    """The time in which |W|_F^2 falls by e by the law of modes, at MODES_AT places, first seed."""
    result = np.full(x.places.size, np.nan)
    shown = np.flatnonzero(np.isin(x.places, places))
    for i in np.unique(shown[np.linspace(0, shown.size - 1, MODES_AT).round().astype(int)]):
        row = next(r for r in sweep.rows if r[x.key] == x.values[i])
        result[i] = points.decay_time_by_modes(sweep.experiment, row)
    return result
