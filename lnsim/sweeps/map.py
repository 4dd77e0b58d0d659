"""The map of a sweep over two swept keys: its cells, and the lines of theory over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from lnsim.base.checks import FloatArray
from lnsim.figures.style import BLACK, ORANGE, SKY, pt
from lnsim.sweeps import boundary, points
from lnsim.sweeps.axis import Axis, name_of
from lnsim.sweeps.predicted import PREDICTED
from lnsim.sweeps.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOUNDARIES = (
    ("predicted_decay_time", "steps", "-.", r"$1/(\eta\sigma)^2 = T$"),
    ("predicted_instability", None, ":", r"$(\eta/2)\,\mathrm{tr}\,A\Sigma = 1$"),
)
"""Lines in a map: where a column equals a key of the configuration (T = steps), or 1."""

DIVERGED, NO_VALUE = "#404040", "#F4F4F4"
"""Colours of cells that diverged, and of cells without a value."""

NOT_PREDICTED = "not predicted"
"""What stands for the reason of a cell that theory refuses."""

WORD_COLOURS = {
    "lazy": "#DDDDDD", "rich": SKY, "collapsed": ORANGE, "diverged": DIVERGED, "OK": SKY,
    "DIVERGED": DIVERGED, "trained": SKY, PREDICTED: SKY, NOT_PREDICTED: NO_VALUE,
}  # fmt: skip


def draw_map(axes: Axes, sweep: Table, column: str) -> None:
    """Draws a map of a column over two swept keys, with theory's lines; `axes` has a figure."""
    x, y = (Axis(sweep, key) for key in sweep.swept)
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
    if not sweep.predicted:
        legend += _draw_predicted(axes, sweep, x, y, cells)
    legend += _draw_boundaries(axes, sweep, x, y, cells)
    if legend:
        drawn = axes.legend(
            handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2,
            handlelength=1.8, columnspacing=1.0,
        )  # fmt: skip
        for text in drawn.get_texts():
            text.set_linespacing(1.0)


def _draw_words(axes: Axes, x: Axis, y: Axis, cells: Any, column: str) -> list[Any]:
    """Draws the most frequent word of every cell."""
    order = list(WORD_COLOURS)
    image = np.full((y.places.size, x.places.size), np.nan)
    for place, rows in cells.items():
        words = (row[column] if row[column] in order else NOT_PREDICTED for row in rows)
        image[place] = order.index(boundary.usual(words))
    axes.pcolormesh(
        x.borders, y.borders, image, cmap=ListedColormap(list(WORD_COLOURS.values())),
        vmin=-0.5, vmax=len(order) - 0.5, rasterized=True,
    )  # fmt: skip
    shown = [word for i, word in enumerate(order) if (image == i).any()]
    return [
        Patch(fc=colour, ec=BLACK if colour == NO_VALUE else None, lw=pt(0.4), label=word)
        for word, colour in ((word, WORD_COLOURS[word]) for word in shown)
    ]


def _draw_numbers(axes: Axes, x: Axis, y: Axis, cells: Any, column: str) -> list[Any]:
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
    drawn.colorbar(colours, ax=axes, pad=0.02, aspect=30, label=name_of(column))
    states = ((0.0, NO_VALUE, "no value"), (1.0, DIVERGED, "diverged"))
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


def _draw_boundaries(axes: Axes, sweep: Table, x: Axis, y: Axis, cells: Any) -> list[Any]:
    """Draws where each prediction equals its level, if that is within the map; returns a legend."""
    legend: list[Any] = []
    shape = (y.places.size, x.places.size)
    boundaries = BOUNDARIES if points.has_theory(sweep.experiment) else ()
    for column, level_key, style, name in boundaries:
        predicted = _medians(cells, column, shape)
        level = _medians(cells, level_key, shape) if level_key else np.ones(shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.ma.masked_invalid(np.log(predicted / level))
        if _draw_line(axes, x.places, y.places, ratio, style):
            legend.append(Line2D([], [], color=BLACK, ls=style, label=name))
    return legend


def _draw_predicted(axes: Axes, sweep: Table, x: Axis, y: Axis, cells: Any) -> list[Any]:
    """Draws the boundary between lazy and rich that theory predicts; returns a legend.

    The legend has the agreement of the two maps, or why there is no prediction.
    """
    if x.words or y.words:
        return []
    theory = boundary.predict(sweep.experiment, cells, (y.places.size, x.places.size))
    if theory.without:
        return [Line2D([], [], lw=0, label=f"no prediction {theory.without}")]
    across, up = x.places[theory.columns], y.places[theory.rows]
    drawn = _draw_line(axes, across, up, np.ma.masked_invalid(theory.delay), "--")
    share = f"agreement {100 * theory.agreement:.0f} %, {theory.count:,} points"
    label = f"predicted\n({share})"
    return [Line2D([], [], color=BLACK, ls="--" if drawn else "", lw=pt(1.1), label=label)]


def _draw_line(axes: Axes, across: FloatArray, up: FloatArray, values: Any, style: str) -> bool:
    """Draws where the masked values : (Y, X) are 0, if that is in the map; returns whether it is.

    A white border keeps the line legible over any colour.
    """
    if min(values.shape) < 2 or not values.count() or not values.min() < 0 < values.max():
        return False
    lines = axes.contour(across, up, values, [0.0], colors=BLACK, linestyles=style,
                         linewidths=pt(1.1))  # fmt: skip
    lines.set_path_effects([withStroke(linewidth=pt(2.2), foreground="white")])
    return True
