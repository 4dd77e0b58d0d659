"""Figures of sweeps: a phase diagram over two swept keys, a curve and its power law over one.

A panel per sweep and column.  In a map a cell is the median over seeds, or the commonest word; the
lines are where a prediction equals what it is held against.  In a curve the line is the median over
seeds, the band reaches from the least to the largest, and the fit (power_law.py) is of all seeds'
values; its label says where they bend.  An x at which some seed has no value takes no part in any
of them: the others would be a selection.
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

KEYS = {
    "lr": r"step $\eta$", "sigma": r"label noise $\sigma$", "rho": r"SAM radius $\rho$",
    "width": "width $m$", "dim": "input dimension $d$", "samples": "samples $n$",
    "theta_norm": r"$\|\theta^\star\|$", "momentum": "momentum", "weight_decay": "weight decay",
    "batch_size": "batch size $B$", "steps": "steps $T$",
}  # fmt: skip
COLUMNS = {
    "first_escape": "first neuron leaves the lazy regime at $t$",
    "last_escape": "last neuron leaves the lazy regime at $t$",
    "decay_time": r"$t$ at which $\|W\|_F^2$ has fallen by $e$",
    "decay_rate": r"decay rate of $\|W\|_F^2$ in Phase I",
    "alignment": "Phase II begins at $t$", "convergence": "Phase II has converged at $t$",
}  # fmt: skip
"""What keys, and columns that are no quantity's, are called on an axis; others by their names."""

PREDICTED = {
    "last_escape": ("predicted_last_escape", "$T_1$ (Theorem 2)"),
    "decay_time": ("predicted_decay_time", r"$1/(\eta\sigma)^2$"),
    "norm_squared": ("predicted_norm_squared", "stationary state"),
    "second_layer_norm": ("predicted_second_layer_norm", "stationary state"),
}
"""The prediction that a measured column is held against in a curve, and its name."""

BOUNDARIES = (
    ("predicted_last_escape", "steps", "-", r"$T_1 = T$ (Theorem 2)"),
    ("predicted_decay_time", "steps", "--", r"$1/(\eta\sigma)^2 = T$"),
    ("predicted_instability", None, ":", r"$(\eta/2)\,\mathrm{tr}\,A\Sigma = 1$"),
)
"""Lines in a map: where a prediction equals a key of the configuration (T: steps), or 1."""

GONE, NOTHING = "#404040", "#F4F4F4"
"""Cells that diverged, and cells without a value."""

WORDS = {
    "lazy": "#DDDDDD", "rich": SKY, "collapsed": ORANGE, "diverged": GONE, "OK": SKY,
    "DIVERGED": GONE,
}  # fmt: skip
SHORT = 50
"""A logarithmic axis that spans less is labelled at 1, 2 and 5 of every decade."""

MODES_AT = 5
"""Values of a swept key at which the law of modes is integrated, at most."""


def figure(sweeps: Sequence[Table], columns: Sequence[str] = ()) -> Figure:
    """A panel for each of the `columns` (rows) of each of the `sweeps` (side by side).

    Left out, the column is "regime" over two swept keys and "last_escape" over one.  Raises
    ValueError for another number of swept keys, an unknown column, or one that has no value.
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
    """A panel of a sweep, its column as for `figure`; raises ValueError as that does."""
    _check(sweep, column)
    if len(sweep.swept) == 2:
        draw_map(axes, sweep, column or "regime")
    else:
        draw_curve(axes, sweep, column or "last_escape")


def _check(sweep: Table, column: str) -> None:
    if not sweep.rows:
        raise ValueError(f"{sweep.folder} has no points yet")
    if len(sweep.swept) not in (1, 2):
        keys = ", ".join(sweep.swept) or "none"
        raise ValueError(
            f"a figure has one or two swept keys, and {sweep.folder} leaves {keys}: "
            "fix the others with --where KEY=VALUE"
        )
    known = points.columns()
    if column and column not in known:
        raise ValueError(f"unknown column {column!r}: {nearest(column, known)}")
    if column and column not in sweep.rows[0]:
        raise ValueError(f"{sweep.folder} was begun without the column {column!r}")


def _label(column: str) -> str:
    """What a column is called on an axis."""
    return COLUMNS.get(column) or quantities.last_label(column)


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
        """Half way between neighbours, (count + 1,)."""
        at = np.log(self.places) if self.log else self.places
        if at.size == 1:
            at = at + np.array([-0.5, 0.5])
        else:
            ends = 1.5 * at[[0, -1]] - 0.5 * at[[1, -2]]
            at = np.concatenate([ends[:1], (at[1:] + at[:-1]) / 2, ends[1:]])
        return np.exp(at) if self.log else at

    def label(self, axis: Any, scale: Any) -> None:
        """Names an axis and, where its values ask for it, makes it logarithmic or lists words."""
        if self.log:
            scale("log")
            axis.set_minor_formatter(NullFormatter())
            if self.places[-1] < SHORT * self.places[0]:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter("{x:g}")
        if self.words:
            axis.set_ticks(self.places, [str(value) for value in self.values])
        axis.set_label_text(KEYS.get(self.key, self.key))


def _even_in_log(values: FloatArray) -> bool:
    """Whether ascending values are spaced more evenly in their logarithm."""
    if values.size < 2 or values[0] <= 0.0:
        return False
    if values.size == 2:
        return bool(values[1] > 10 * values[0])
    spread = [np.std(np.diff(v)) / np.mean(np.diff(v)) for v in (np.log(values), values)]
    return bool(spread[0] < spread[1])


def draw_map(axes: Axes, sweep: Table, column: str) -> None:
    """A map of a column over two swept keys, with theory's lines; `axes` has a figure."""
    x, y = (_Axis(sweep, key) for key in sweep.swept)
    cells: dict[tuple[int, int], list[Any]] = {}
    for row in sweep.rows:
        cells.setdefault((y.index[row[y.key]], x.index[row[x.key]]), []).append(row)
    legend: list[Any] = []
    if points.columns()[column] == "TEXT":
        legend += _draw_words(axes, x, y, cells, column)
    else:
        legend += _draw_numbers(axes, x, y, cells, column)
    if len(cells) < len(x.values) * len(y.values):
        legend.append(Patch(fc="white", ec=BLACK, lw=pt(0.4), label="not run"))
    for key, scale, axis in ((x, axes.set_xscale, axes.xaxis), (y, axes.set_yscale, axes.yaxis)):
        key.label(axis, scale)
    axes.set_xlim(*x.borders[[0, -1]])
    axes.set_ylim(*y.borders[[0, -1]])
    legend += _draw_boundaries(axes, x, y, cells)
    if legend:
        axes.legend(
            handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2,
            handlelength=1.8, columnspacing=1.0,
        )  # fmt: skip


def _draw_words(axes: Axes, x: _Axis, y: _Axis, cells: Any, column: str) -> list[Any]:
    """The commonest word of every cell, the first in the order of WORDS where two are."""
    order = list(WORDS)
    image = np.full((y.places.size, x.places.size), np.nan)
    for place, rows in cells.items():
        words = [row[column] for row in rows]
        image[place] = order.index(max(order, key=words.count))
    axes.pcolormesh(
        x.borders, y.borders, image, cmap=ListedColormap(list(WORDS.values())),
        vmin=-0.5, vmax=len(order) - 0.5, rasterized=True,
    )  # fmt: skip
    return [Patch(fc=WORDS[word], label=word) for i, word in enumerate(order) if (image == i).any()]


def _draw_numbers(axes: Axes, x: _Axis, y: _Axis, cells: Any, column: str) -> list[Any]:
    """The median of every cell, and apart from it what diverged and what has no value."""
    image = _medians(cells, column, (y.places.size, x.places.size))
    state = np.full(image.shape, np.nan)
    for place, rows in cells.items():
        gone = sum(row["regime"] == "diverged" for row in rows)
        if np.isnan(image[place]):
            state[place] = 1.0 if 2 * gone > len(rows) else 0.0
    apart = ListedColormap([NOTHING, GONE])
    axes.pcolormesh(x.borders, y.borders, state, cmap=apart, vmin=0, vmax=1, rasterized=True)
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
    kinds = ((0.0, NOTHING, "not reached"), (1.0, GONE, "diverged"))
    return [
        Patch(fc=colour, ec=BLACK, lw=pt(0.4), label=name)
        for value, colour, name in kinds
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


def _draw_boundaries(axes: Axes, x: _Axis, y: _Axis, cells: Any) -> list[Any]:
    """Where a prediction crosses what it is held against; lines that miss the map are left out."""
    legend: list[Any] = []
    shape = (y.places.size, x.places.size)
    if min(shape) < 2:
        return legend
    outline: list[Any] = [withStroke(linewidth=pt(2.2), foreground="white")]
    for column, against, style, name in BOUNDARIES:
        predicted = _medians(cells, column, shape)
        level = _medians(cells, against, shape) if against else np.ones(shape)
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
    """A column over one swept key: median, spread, fitted power law and theory's.

    Raises ValueError where the column is one of words, or no x has a value for every seed.
    """
    if points.columns()[column] == "TEXT":
        raise ValueError(f"{column} is a word: over one key a column of numbers can be drawn")
    x = _Axis(sweep, sweep.swept[0])
    values: list[list[Any]] = [[] for _ in x.values]
    for row in sweep.rows:
        values[x.index[row[x.key]]].append(row[column])
    whole = [i for i, found in enumerate(values) if None not in found]
    if not whole:
        raise ValueError(f"{column} has no value at which all seeds have one")
    places = x.places[whole]
    kept = [np.array(values[i], dtype=np.float64) for i in whole]
    medians, low, high = ([f(v) for v in kept] for f in (np.median, np.min, np.max))
    axes.fill_between(places, low, high, color=BLUE, alpha=0.25, lw=0)
    axes.plot(places, medians, "o-", ms=pt(3), lw=pt(0.8), color=BLUE)
    x.label(axes.xaxis, axes.set_xscale)
    positive = min(low) > 0
    if x.log and positive:
        axes.set_yscale("log")
    axes.set_ylabel(_label(column))
    if not x.words and positive:
        _draw_power_law(axes, places, kept)
    if not x.words:
        _draw_predicted(axes, sweep, x, column, places)
    _mark_missing(axes, sweep, x, set(range(len(values))) - set(whole))
    handles, names = axes.get_legend_handles_labels()
    if handles:
        _make_room(axes, 0.08 * (1 + sum(1 + name.count("\n") for name in names)))
        axes.legend(loc="upper right", title="exponent [95 %]", handlelength=1.6)


def _mark_missing(axes: Axes, sweep: Table, x: _Axis, missing: set[int]) -> None:
    """Marks, at the foot, where some seed has no value, and apart where one diverged."""
    gone = {x.index[row[x.key]] for row in sweep.rows if row["regime"] == "diverged"} & missing
    kinds = ((missing - gone, "|", "no value for some seed"), (gone, "x", "diverged for some seed"))
    for places, marker, label in kinds:
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
    """The fit through all values whose x is above 0, where there are enough."""
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
    """Theory's curves where there are measurements, with the exponents of a fit through them."""
    curves: list[tuple[str, str, FloatArray]] = []
    if column in PREDICTED:
        name, label = PREDICTED[column]
        found = [_median_at(sweep, x.key, value, name) for value in x.values]
        curves.append((label, "--", np.array(found)))
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
    """When the law of modes has |W|_F^2 fall by e, for the first seed, at MODES_AT `places`."""
    result = np.full(x.places.size, np.nan)
    shown = np.flatnonzero(np.isin(x.places, places))
    for i in np.unique(shown[np.linspace(0, shown.size - 1, MODES_AT).round().astype(int)]):
        row = next(r for r in sweep.rows if r[x.key] == x.values[i])
        result[i] = points.decay_time_by_modes(sweep.experiment, row)
    return result
