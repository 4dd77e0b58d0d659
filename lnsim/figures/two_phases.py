"""The figures of the two phases, and of noise that is switched on and off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lnsim.figures import panels, predicted
from lnsim.figures.canvas import blank
from lnsim.figures.style import TWO_COLUMNS, drawing
from lnsim.run.record import Record

if TYPE_CHECKING:
    from lnsim.theory.cloud import Prediction


LEFT = 0.08
"""Left edge of the panels, as a share of the width."""


def two_phases(
    trajectory: Record, *, prediction: Prediction | str = "", least_trace: float = math.nan
) -> Figure:
    """Figures 2 and 4 of the paper: losses, norm and alignment, paths of neurons, their clouds.

    Further panels show |W|_F^2 and, where it was recorded, the trace of the Hessian, with
    `least_trace`, its least value among interpolators.  `prediction` is over all panels; its times
    hold the steps of the clouds.  A text says in the figure why there is none.  Of an ensemble the
    first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 4.75)
        top = {"left": LEFT, "right": 0.93, "bottom": 0.58, "top": 0.92, "wspace": 0.72}
        losses, norms, path = figure.subplots(1, 3, gridspec_kw=top)
        bottom = {"left": LEFT, "right": 0.715, "bottom": 0.09, "top": 0.43, "wspace": 0.12}
        clouds = figure.subplots(1, 4, sharex=True, sharey=True, gridspec_kw=bottom)
        aside = {"left": 0.8, "right": 0.985, "bottom": 0.09, "top": 0.43, "hspace": 0.18}
        rows = 2 if "hessian_trace" in series else 1
        squares, *traces = figure.subplots(rows, 1, squeeze=False, gridspec_kw=aside)[:, 0]
        loss_names = panels.draw_losses(losses, series)
        alignments = panels.draw_norms(norms, series)
        panels.draw_path(path, series)
        shown = panels.draw_clouds(clouds, series)
        panels.draw_norm_squared(squares, series)
        for axes in traces:
            panels.draw_trace(axes, series, least_trace)
            squares.tick_params(labelbottom=False)
        if not isinstance(prediction, str):
            predicted.draw(losses, prediction, *loss_names)
            predicted.draw(norms, prediction, "norm_mean")
            predicted.draw(alignments, prediction, "alignment_mean")
            predicted.draw_paths(path, prediction, series["tracked_neurons"])
            predicted.draw_clouds(clouds, prediction, shown)
            predicted.draw(squares, prediction, "norm_squared")
            for axes in traces:
                predicted.draw(axes, prediction, "hessian_trace")
        if prediction:
            predicted.legend(figure, prediction, LEFT)
        for axes in (losses, norms, squares, *traces):
            panels.time_axis(axes, series["step"])
            panels.shade_phases(axes, trajectory, series["step"], named=axes not in traces)
        if traces:
            squares.set_xlabel("")
        lettered = (losses, norms, path, clouds[0], squares, *traces)
        for axes, name in zip(lettered, "abcdef", strict=False):
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
