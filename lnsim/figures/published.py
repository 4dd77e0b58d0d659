"""Figures of published results, in the form that several papers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.figures import canvas, panels
from lnsim.figures.panels import LOSS_FLOOR
from lnsim.figures.style import BLACK, BLUE, COLOURS, ONE_COLUMN, drawing, pt
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def over_steps(runs: Mapping[str, Record], values: Mapping[str, FloatArray], label: str) -> Figure:
    """A curve for each arm, `values` (T,) or (S, T) by its name, on a logarithmic axis.

    Of seeds it is the median, with their middle 90 % shaded; a seed that diverged is left out from
    there on.
    """
    with drawing():
        figure = canvas.blank(ONE_COLUMN, 2.5)
        axes = figure.add_axes((0.17, 0.17, 0.79, 0.79))
        for (name, of), colour in zip(values.items(), COLOURS * 3, strict=False):
            curves = np.atleast_2d(of)
            known = np.isfinite(curves).any(axis=0)
            steps, curves = runs[name].steps[known].astype(float), curves[:, known]
            middle, low, high = np.nanquantile(curves, [0.5, 0.05, 0.95], axis=0)
            panels.plot(axes, steps, middle, color=colour, label=name)
            if len(curves) > 1:
                axes.fill_between(steps[1:], low[1:], high[1:], color=colour, alpha=0.2, lw=0)
        axes.set(yscale="log", ylabel=label)
        low, high = axes.get_ylim()
        first = max(np.atleast_2d(of)[:, 0].max() for of in values.values())
        axes.set_ylim(max(low, LOSS_FLOOR), min(high, first / LOSS_FLOOR**0.5))
        panels.time_axis(
            axes, max((runs[name].steps.astype(float) for name in values), key=lambda s: s[-1])
        )
        axes.legend()
    return figure


def beside(x: FloatArray, y: FloatArray, of_x: str, of_y: str, label: str) -> Figure:
    """Measured `y` : (S, n) or (n,) beside predicted `x` : (n,), and the line y = x."""
    with drawing():
        figure = canvas.blank(ONE_COLUMN, 2.5)
        axes = figure.add_axes((0.17, 0.17, 0.79, 0.79))
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color=BLACK, lw=pt(0.6), zorder=1)
        rows = np.atleast_2d(y)
        axes.plot(np.tile(x, len(rows)), rows.ravel(), "o", ms=pt(2), color=BLUE, label=label)
        axes.set(xlabel=of_x, ylabel=of_y)
        axes.legend()
    return figure
