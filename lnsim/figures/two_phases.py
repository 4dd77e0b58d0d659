"""The figures of the two phases, and of noise that is switched on and off."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lnsim.base.checks import FloatArray
from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    TWO_COLUMNS,
    drawing,
)
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def two_phases(
    trajectory: Record,
    *,
    law_of_modes: FloatArray | None = None,
    without: str = "",
    least_trace: float = math.nan,
) -> Figure:
    """Figures 2 and 4 of the paper: losses, norm and alignment, paths of neurons, their clouds.

    With `law_of_modes` : (records,), or `without`, the reason why there is none, a further panel
    shows |W|_F^2 and its prediction.  Where it was recorded another one shows the trace of the
    Hessian, and `least_trace`, its least value among interpolators.  Of an ensemble the first
    replica is shown.
    """
    series = panels.first_replica(trajectory)
    aside: list[Callable[[Axes], None]] = []
    if law_of_modes is not None or without:
        aside.append(lambda axes: panels.draw_law(axes, series, law_of_modes, without))
    if "hessian_trace" in series:
        aside.append(lambda axes: panels.draw_trace(axes, series, least_trace))
    with drawing():
        figure = blank(TWO_COLUMNS, 4.6)
        top = {"left": 0.08, "right": 0.93, "bottom": 0.6, "top": 0.95, "wspace": 0.72}
        losses, norms, path = figure.subplots(1, 3, gridspec_kw=top)
        right = 0.715 if aside else 0.985
        bottom = {"left": 0.08, "right": right, "bottom": 0.09, "top": 0.44, "wspace": 0.12}
        clouds = figure.subplots(1, 4, sharex=True, sharey=True, gridspec_kw=bottom)
        panels.draw_losses(losses, series)
        panels.draw_norms(norms, series)
        over_time = [losses, norms]
        panels.draw_path(path, series)
        panels.draw_clouds(clouds, series)
        if aside:
            place = {"left": 0.8, "right": 0.985, "bottom": 0.09, "top": 0.44, "hspace": 0.18}
            column = figure.subplots(len(aside), 1, squeeze=False, gridspec_kw=place)[:, 0]
            for axes, draw in zip(column, aside, strict=True):
                draw(axes)
                over_time.append(axes)
        for axes in over_time:
            panels.time_axis(axes, series["step"])
            panels.shade_phases(axes, trajectory, series["step"], named=axes not in over_time[3:])
        if len(aside) == 2:
            over_time[2].set_xlabel("")
            over_time[2].tick_params(labelbottom=False)
        for axes, name in zip(
            (losses, norms, path, clouds[0], *over_time[2:]), "abcdef", strict=False
        ):
            panels.letter(axes, name)
    return figure


def windows(trajectory: Record, period: int, *, most: int = 3) -> Figure:
    """A run in windows of `period` steps; the windows in which the noise is on are shaded.

    Shows losses with those of the linearised twin, neuron norms, and the second-layer weights of
    `most` neurons.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 5.2)
        place = {"left": 0.09, "right": 0.84, "bottom": 0.08, "top": 0.96, "hspace": 0.2}
        rows = figure.subplots(3, 1, sharex=True, gridspec_kw=place)
        panels.draw_losses(rows[0], series)
        panels.draw_single_norms(rows[1], series)
        panels.draw_second_layer(rows[2], series, most)
        for axes, name in zip(rows, "abc", strict=True):
            panels.time_axis(axes, series["step"], log=False)
            panels.shade_windows(axes, period, int(series["step"][-1]))
            panels.letter(axes, name)
            handles = axes.get_legend_handles_labels()
            axes.legend(*handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.0)
            if name != "c":
                axes.set_xlabel("")
    return figure
