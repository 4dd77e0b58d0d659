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
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from lnsim.base.checks import FloatArray
from lnsim.base.config import nearest
from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    ONE_COLUMN,
    ORANGE,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    pt,
)
from lnsim.run import quantities
from lnsim.sweeps import points
from lnsim.sweeps.power_law import power_law
from lnsim.sweeps.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY_LABELS = {
    "lr": r"step $\eta$", "sigma": r"label noise $\sigma$", "rho": r"SAM radius $\rho$",
    "width": "width $m$", "dim": "input dimension $d$", "samples": "samples $n$",
    "theta_norm": r"$\|\theta^\star\|$", "momentum": "momentum", "weight_decay": "weight decay",
    "batch_size": "batch size $B$", "steps": "steps $T$",
}  # fmt: skip
COLUMN_LABELS = {
    "first_escape": "first neuron leaves the lazy regime at $t$",
    "last_escape": "last neuron leaves the lazy regime at $t$",
    "decay_time": r"$t$ at which $\|W\|_F^2$ has fallen by $e$",
    "decay_rate": r"decay rate of $\|W\|_F^2$ in Phase I",
    "alignment": "Phase II begins at $t$", "convergence": "Phase II has converged at $t$",
}  # fmt: skip
"""Axis labels of keys, and of columns that are not quantities; others appear by name."""

PREDICTION_OF = {
    "last_escape": ("predicted_last_escape", "$T_1$ (Theorem 2)"),
    "decay_time": ("predicted_decay_time", r"$1/(\eta\sigma)^2$"),
    "norm_squared": ("predicted_norm_squared", "stationary state"),
    "second_layer_norm": ("predicted_second_layer_norm", "stationary state"),
}
"""The prediction that a curve shows beside a measured column, and its label."""

BOUNDARIES = (
    ("predicted_last_escape", "steps", "-", r"$T_1 = T$ (Theorem 2)"),
    ("predicted_decay_time", "steps", "--", r"$1/(\eta\sigma)^2 = T$"),
    ("predicted_instability", None, ":", r"$(\eta/2)\,\mathrm{tr}\,A\Sigma = 1$"),
)
"""Lines in a map: where a prediction equals a key of the configuration (T = steps), or 1."""

DIVERGED, NO_VALUE = "#404040", "#F4F4F4"
"""Colours of cells that diverged, and of cells without a value."""

WORD_COLOURS = {
    "lazy": "#DDDDDD", "rich": SKY, "collapsed": ORANGE, "diverged": DIVERGED, "OK": SKY,
    "DIVERGED": DIVERGED, "trained": SKY,
}  # fmt: skip
SHORT_SPAN = 50
"""A logarithmic axis with a smaller ratio of its ends is labelled at 1, 2 and 5 of each decade."""

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


def _label(column: str) -> str:
    """The axis label of a column."""
    return COLUMN_LABELS.get(column) or quantities.last_label(column)


class _Axis:
    """A swept key along an axis: its values in order, their places, and the borders of cells."""

    def __init__(self, sweep: Table, key: str) -> None:
        self.key = key
        self.values = sorted({row[key] for row in sweep.rows})
        self.index = {value: i for i, value in enumerate(self.values)}
        self.words = not all(isinstance(value, int | float) for value in self.values)
        self.log = not self.words and _even_in_log(np.array(self.values, dtype=np.float64))
        places = range(len(self.values)) if self.words else self.values
        self.places: FloatArray = np.array(list(places), dtype=np.float64)

    @property
    def borders(self) -> FloatArray:
        """The borders of the cells, half way between neighbouring values, (count + 1,)."""
        at = np.log(self.places) if self.log else self.places
        if at.size == 1:
            at = at + np.array([-0.5, 0.5])
        else:
            ends = 1.5 * at[[0, -1]] - 0.5 * at[[1, -2]]
            at = np.concatenate([ends[:1], (at[1:] + at[:-1]) / 2, ends[1:]])
        return np.exp(at) if self.log else at

    def label(self, axis: Any, scale: Any) -> None:
        """Labels an axis, and makes it logarithmic or lists its words where the values need it."""
        if self.log:
            scale("log")
            axis.set_minor_formatter(NullFormatter())
            if self.places[-1] < SHORT_SPAN * self.places[0]:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter("{x:g}")
        if self.words:
            axis.set_ticks(self.places, [str(value) for value in self.values])
        axis.set_label_text(KEY_LABELS.get(self.key, self.key))


def _even_in_log(values: FloatArray) -> bool:
    """Whether ascending values are spaced more evenly on a logarithmic than on a linear axis."""
    if values.size < 2 or values[0] <= 0.0:
        return False
    if values.size == 2:
        return bool(values[1] > 10 * values[0])
    spread = [np.std(np.diff(v)) / np.mean(np.diff(v)) for v in (np.log(values), values)]
    return bool(spread[0] < spread[1])


def draw_map(axes: Axes, sweep: Table, column: str) -> None:
    """Draws a map of a column over two swept keys, with theory's lines; `axes` has a figure."""
    x, y = (_Axis(sweep, key) for key in sweep.swept)
    cells: dict[tuple[int, int], list[Any]] = {}
    for row in sweep.rows:
        cells.setdefault((y.index[row[y.key]], x.index[row[x.key]]), []).append(row)
    legend: list[Any] = []
    if points.columns(sweep.experiment)[column] == "TEXT":
        legend += _draw_words(axes, x, y, cells, column)
    else:
        legend += _draw_numbers(axes, x, y, cells, column)
    if len(cells) < len(x.values) * len(y.values):
        legend.append(Patch(fc="white", ec=BLACK, lw=pt(0.4), label="not run"))
    for key, scale, axis in ((x, axes.set_xscale, axes.xaxis), (y, axes.set_yscale, axes.yaxis)):
        key.label(axis, scale)
    axes.set_xlim(*x.borders[[0, -1]])
    axes.set_ylim(*y.borders[[0, -1]])
    legend += _draw_boundaries(axes, sweep, x, y, cells)
    if legend:
        axes.legend(
            handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2,
            handlelength=1.8, columnspacing=1.0,
        )  # fmt: skip


def _draw_words(axes: Axes, x: _Axis, y: _Axis, cells: Any, column: str) -> list[Any]:
    """Draws the most frequent word of every cell; of a tie the first in WORD_COLOURS."""
    order = list(WORD_COLOURS)
    image = np.full((y.places.size, x.places.size), np.nan)
    for place, rows in cells.items():
        words = [row[column] for row in rows]
        image[place] = order.index(max(order, key=words.count))
    axes.pcolormesh(
        x.borders, y.borders, image, cmap=ListedColormap(list(WORD_COLOURS.values())),
        vmin=-0.5, vmax=len(order) - 0.5, rasterized=True,
    )  # fmt: skip
    shown = [word for i, word in enumerate(order) if (image == i).any()]
    return [Patch(fc=WORD_COLOURS[word], label=word) for word in shown]


def _draw_numbers(axes: Axes, x: _Axis, y: _Axis, cells: Any, column: str) -> list[Any]:
    """Draws the median of every cell, and in two other colours cells that diverged or have none."""
    image = _medians(cells, column, (y.places.size, x.places.size))
    state = np.full(image.shape, np.nan)
    for place, rows in cells.items():
        diverged = sum(row["regime"] == "diverged" for row in rows)
        if np.isnan(image[place]):
            state[place] = 1.0 if 2 * diverged > len(rows) else 0.0
    state_colours = ListedColormap([NO_VALUE, DIVERGED])
    axes.pcolormesh(
        x.borders, y.borders, state, cmap=state_colours, vmin=0, vmax=1, rasterized=True
    )
    known = image[np.isfinite(image)]
    if not known.size:
        raise ValueError(f"{column} has no value at any point")
    wide = known.min() > 0 and known.max() > 30 * known.min()
    colours = axes.pcolormesh(
        x.borders, y.borders, image, cmap="viridis", rasterized=True,
        norm=LogNorm(known.min(), known.max()) if wide else None,
    )  # fmt: skip
    drawn = axes.get_figure()
    assert drawn is not None
    drawn.colorbar(colours, ax=axes, pad=0.02, aspect=30, label=_label(column))
    states = ((0.0, NO_VALUE, "not reached"), (1.0, DIVERGED, "diverged"))
    return [
        Patch(fc=colour, ec=BLACK, lw=pt(0.4), label=name)
        for value, colour, name in states
        if (state == value).any()
    ]


def _medians(cells: Any, column: str, shape: tuple[int, int]) -> FloatArray:
    """The median over seeds of every cell, NaN where fewer than half of them have a value."""
    image = np.full(shape, np.nan)
    for place, rows in cells.items():
        values = [row[column] for row in rows if row[column] is not None]
        if 2 * len(values) >= len(rows):
            image[place] = np.median(values)
    return image


def _draw_boundaries(axes: Axes, sweep: Table, x: _Axis, y: _Axis, cells: Any) -> list[Any]:
    """Draws where each prediction equals its level, if that is within the map; returns a legend."""
    legend: list[Any] = []
    shape = (y.places.size, x.places.size)
    if min(shape) < 2:
        return legend
    outline: list[Any] = [withStroke(linewidth=pt(2.2), foreground="white")]
    boundaries = BOUNDARIES if points.has_theory(sweep.experiment) else ()
    for column, level_key, style, name in boundaries:
        predicted = _medians(cells, column, shape)
        level = _medians(cells, level_key, shape) if level_key else np.ones(shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.ma.masked_invalid(np.log(predicted / level))
        if ratio.count() and ratio.min() < 0 < ratio.max():
            lines = axes.contour(
                x.places, y.places, ratio, [0.0], colors=BLACK, linestyles=style, linewidths=pt(1.1)
            )
            lines.set_path_effects(outline)
            legend.append(Line2D([], [], color=BLACK, ls=style, label=name))
    return legend


def draw_curve(axes: Axes, sweep: Table, column: str) -> None:
    """Draws a column over one swept key: median, spread, fitted power law and prediction.

    Raises ValueError if the column holds words, or if no x has a value for every seed.
    """
    if points.columns(sweep.experiment)[column] == "TEXT":
        raise ValueError(f"{column} holds words: over one key choose a column of numbers")
    x = _Axis(sweep, sweep.swept[0])
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
    axes.set_ylabel(_label(column))
    if not x.words and positive and (x.log or points.has_theory(sweep.experiment)):
        _draw_power_law(axes, places, samples)
    if not x.words:
        _draw_predicted(axes, sweep, x, column, places)
    _mark_missing(axes, sweep, x, set(range(len(values))) - set(complete))
    handles, names = axes.get_legend_handles_labels()
    if handles:
        _make_room(axes, 0.08 * (1 + sum(1 + name.count("\n") for name in names)))
        axes.legend(loc="upper right", title="exponent [95 %]", handlelength=1.6)


def _mark_missing(axes: Axes, sweep: Table, x: _Axis, missing: set[int]) -> None:
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


def _draw_predicted(axes: Axes, sweep: Table, x: _Axis, column: str, places: FloatArray) -> None:
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


def _by_law_of_modes(sweep: Table, x: _Axis, places: FloatArray) -> FloatArray:
    """The time in which |W|_F^2 falls by e by the law of modes, at MODES_AT places, first seed."""
    result = np.full(x.places.size, np.nan)
    shown = np.flatnonzero(np.isin(x.places, places))
    for i in np.unique(shown[np.linspace(0, shown.size - 1, MODES_AT).round().astype(int)]):
        row = next(r for r in sweep.rows if r[x.key] == x.values[i])
        result[i] = points.decay_time_by_modes(sweep.experiment, row)
    return result
