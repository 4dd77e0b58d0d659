"""The figures of the two phases, and of noise that is switched on and off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lnsim.figures import clear, networks, panels, predicted
from lnsim.figures.canvas import blank
from lnsim.figures.style import TWO_COLUMNS, drawing
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        places = _lay_out(figure, "hessian_trace" in series)
        losses, norms, squares, traces = places.losses, places.norms, places.squares, places.traces
        shown = _Shown(
            losses=panels.draw_losses(losses, series),
            alignments=panels.draw_norms(norms, series),
            clouds=panels.draw_clouds(places.clouds, series),
            neurons=series["tracked_neurons"],
        )
        panels.draw_path(places.path, series)
        panels.draw_norm_squared(squares, series)
        for axes in traces:
            panels.draw_trace(axes, series, least_trace)
        if not isinstance(prediction, str):
            _draw_prediction(places, shown, prediction)
        if prediction:
            ended = "; ".join(networks.ending(trajectory))
            predicted.legend(figure, prediction, LEFT, beside=ended)
        over_time = (losses, norms, squares, *traces)
        for axes in over_time:
            panels.time_axis(axes, series["step"])
        clear.place_legend(losses)
        for axes in traces:
            clear.place_notes(axes)
            squares.tick_params(labelbottom=False)
            squares.set_xlabel("")
        for axes in over_time:
            panels.shade_phases(axes, trajectory, series["step"], named=axes not in traces)
        lettered = (losses, norms, places.path, places.clouds[0], squares, *traces)
        for axes, name in zip(lettered, "abcdef", strict=False):
            panels.letter(axes, name)
    return figure


@dataclass(frozen=True)
class _Places:
    """The panels of two_phases."""

    losses: Axes
    norms: Axes
    path: Axes
    clouds: Sequence[Axes]
    squares: Axes
    traces: Sequence[Axes]  # one, or none


@dataclass(frozen=True)
class _Shown:
    """What the panels of two_phases show: names of losses, axes of alignments, steps, neurons."""

    losses: Sequence[str]
    alignments: Axes
    clouds: Sequence[int]
    neurons: NDArray[np.int64]


def _lay_out(figure: Figure, with_trace: bool) -> _Places:
    """The empty panels; above them is room for a line of text."""
    top = {"left": LEFT, "right": 0.93, "bottom": 0.58, "top": 0.92, "wspace": 0.72}
    bottom = {"left": LEFT, "right": 0.715, "bottom": 0.09, "top": 0.43, "wspace": 0.12}
    aside = {"left": 0.8, "right": 0.985, "bottom": 0.09, "top": 0.43, "hspace": 0.18}
    losses, norms, path = figure.subplots(1, 3, gridspec_kw=top)
    clouds = figure.subplots(1, 4, sharex=True, sharey=True, gridspec_kw=bottom)
    column = figure.subplots(1 + with_trace, 1, squeeze=False, gridspec_kw=aside)[:, 0]
    return _Places(losses, norms, path, clouds, column[0], list(column[1:]))


def _draw_prediction(places: _Places, shown: _Shown, prediction: Prediction) -> None:
    """Draws the prediction over all panels, beneath the points of the clouds."""
    predicted.draw(places.losses, prediction, *shown.losses)
    predicted.draw(places.norms, prediction, "norm_mean")
    predicted.draw(shown.alignments, prediction, "alignment_mean")
    predicted.draw_paths(places.path, prediction, shown.neurons)
    predicted.draw_clouds(places.clouds, prediction, shown.clouds)
    predicted.draw(places.squares, prediction, "norm_squared")
    for axes in places.traces:
        predicted.draw(axes, prediction, "hessian_trace")


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
