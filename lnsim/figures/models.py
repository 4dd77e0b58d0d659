"""The figure of a run of any model: what was recorded of it, without theory.

A panel for each of these that the run has, in this order: losses, accuracy, norms of the neurons
and their alignment with the target, their paths, all of them at the start and at the end, the
singular values of the predictor, the coordinates of beta and how many of them are not 0, the
distance from the target.  Of an ensemble the first replica is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.panels import Series
from lnsim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    pt,
)
from lnsim.run import quantities
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Draw = Callable[[Axes, Series], None]


def figure(trajectory: Record) -> Figure:
    """The figure of a run of any model (see above)."""
    series = panels.first_replica(trajectory)
    drawn = [(draw, timed) for has, draw, timed in PANELS if has(series)]
    across = 2 if len(drawn) in (2, 4) else 3
    rows = math.ceil(len(drawn) / across)
    height = 0.3 + 2.05 * rows
    # The alignment's axis, and the bar beside the paths, stand to the right of their panels.
    wide = "alignment_mean" in series
    right, between = {
        (2, True): (0.905, 0.5), (2, False): (0.972, 0.28),
        (3, True): (0.93, 0.72), (3, False): (0.972, 0.38),
    }[across, wide]  # fmt: skip
    with drawing():
        shown = blank(TWO_COLUMNS, height)
        place = {
            "left": 0.08, "right": right, "bottom": 0.42 / height, "top": 1 - 0.28 / height,
            "wspace": between, "hspace": 0.5,
        }  # fmt: skip
        places = shown.subplots(rows, across, squeeze=False, gridspec_kw=place).ravel()
        for axes in places[len(drawn) :]:
            axes.remove()
        for axes, (draw, timed), name in zip(places, drawn, "abcdefgh", strict=False):
            draw(axes, series)
            if timed:
                panels.time_axis(axes, series["step"])
                if wide and draw is not draw_spectrum:  # whose legend is where the names would be
                    panels.shade_phases(axes, trajectory, series["step"])
            panels.letter(axes, name, up=8)
    return shown


def _has(*names: str) -> Callable[[Series], bool]:
    """Whether a run has these arrays, with something in them."""
    return lambda series: all(name in series and np.size(series[name]) > 0 for name in names)


def draw_losses(axes: Axes, series: Series) -> None:
    """Training and test loss."""
    panels.draw_losses(axes, series)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="best")


def draw_accuracy(axes: Axes, series: Series) -> None:
    """Shares of the samples that are classified rightly, in percent."""
    for name, colour in (("train", BLUE), ("test", VERMILION)):
        values = series[f"{name}_accuracy"]
        if np.isfinite(values).any():
            panels.plot(axes, series["step"], 100 * values, color=colour, label=name)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0.0, 103.0)
    axes.legend(loc="lower right")


def draw_norms(axes: Axes, series: Series) -> None:
    """Norms, with the mean alignment where there is a target, else with those of single neurons."""
    if "alignment_mean" in series:
        panels.draw_norms(axes, series)
        return
    panels.draw_single_norms(axes, series)
    axes.legend(loc="lower left")


def draw_ends(axes: Axes, series: Series) -> None:
    """All neurons at the start and at the end, in the norm-alignment plane."""
    last = len(series["cloud_step"]) - 1
    panels.draw_cloud(axes, series, 0).set_color(SKY)
    panels.draw_cloud(axes, series, last).set_color(VERMILION)
    axes.set_title("")
    panels.cloud_axes(axes, series, np.array([0, last]))
    ends = zip((SKY, VERMILION), (0, last), strict=True)
    dots = [
        Line2D([], [], color=c, marker=".", ls="", label=panels.cloud_time(series, k))
        for c, k in ends
    ]
    axes.legend(
        handles=dots, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.1,
        columnspacing=1.0,
    )  # fmt: skip


def draw_spectrum(axes: Axes, series: Series) -> None:
    """The singular values of the predictor, those of the target dotted."""
    values = series["singular_values"]
    target = np.zeros(1)
    if "theta_star" in series:
        target = np.linalg.svd(np.atleast_2d(series["theta_star"]), compute_uv=False)
    for i, path in enumerate(values.T):
        name = r"of $\Theta$" if i == 0 else None
        panels.plot(axes, series["step"], path, color=BLUE, lw=pt(0.5), label=name)
    if "theta_star" in series:
        for i, level in enumerate(target[target > 1e-9 * target.max()]):
            name = r"of $\Theta^\star$" if i == 0 else None
            axes.axhline(level, color=BLACK, ls=":", lw=pt(0.9), label=name)
        axes.legend(loc="upper left", ncols=2, bbox_to_anchor=(0.0, 1.12), columnspacing=1.0)
    # The start is no part of a logarithmic axis of time, and may be far above all that follows.
    later = values[1:] if len(values) > 2 else values
    axes.set_ylim(0.0, panels.limit(np.append(later, target)))
    axes.set_ylabel("singular values")


def draw_coordinates(axes: Axes, series: Series) -> None:
    """All coordinates of beta at the records of clouds, those of the target's support darker."""
    steps, beta = series["cloud_step"], series["cloud_beta"]
    on = _support(series)
    for which, colour, width, name in (
        (~on, SKY, 0.4, r"$\theta^\star_j = 0$"),
        (on, BLUE, 1.1, r"$\theta^\star_j \neq 0$"),
    ):
        for i, path in enumerate(beta.T[which][: panels.MOST_POINTS]):
            label = name if i == 0 else None
            panels.plot(axes, steps, path, color=colour, lw=pt(width), label=label)
    axes.set_ylabel(quantities.label("tracked_beta"))
    axes.legend(loc="upper right")


def _support(series: Series) -> NDArray[np.bool_]:
    """Which coordinates of the target are not 0; without one, all."""
    count = series["cloud_beta"].shape[1]
    if "theta_star" not in series:
        return np.ones(count, dtype=bool)
    return np.asarray(np.ravel(series["theta_star"]) != 0.0)


def draw_nonzeros(axes: Axes, series: Series) -> None:
    """The effective number of coordinates of beta that are not 0; that of the target dotted."""
    panels.plot(axes, series["step"], series["effective_nonzeros"], color=GREEN)
    axes.set_ylabel(quantities.label("effective_nonzeros"))
    axes.set_ylim(bottom=0.0)
    if "theta_star" in series:
        target = np.abs(np.ravel(series["theta_star"]))
        level = target.sum() ** 2 / np.square(target).sum()
        axes.axhline(level, color=BLACK, ls=":", lw=pt(0.8), label=r"of $\theta^\star$")
        axes.legend(loc="upper right")


def draw_distance(axes: Axes, series: Series) -> None:
    """The distance of the predictor from the target."""
    distance = series["interpolator_distance"]
    panels.plot(axes, series["step"], distance, color=ORANGE)
    panels.loss_axis(axes, distance[(distance > 0) & (distance < panels.LARGEST)])
    axes.set_ylabel(quantities.label("interpolator_distance"))


PANELS: tuple[tuple[Callable[[Series], bool], Draw, bool], ...] = (
    (_has("train_loss"), draw_losses, True),
    (_has("train_accuracy", "test_accuracy"), draw_accuracy, True),
    (_has("norm_mean", "tracked_norm"), draw_norms, True),
    (_has("tracked_norm", "tracked_alignment"), panels.draw_path, False),
    (_has("cloud_norm", "cloud_alignment"), draw_ends, False),
    (_has("singular_values"), draw_spectrum, True),
    (_has("cloud_beta"), draw_coordinates, True),
    (_has("effective_nonzeros"), draw_nonzeros, True),
    (lambda series: "interpolator_distance" in series and "norm_mean" not in series,
     draw_distance, True),
)  # fmt: skip
"""What a run must have for a panel, what draws it, and whether it is over the steps."""
