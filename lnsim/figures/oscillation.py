"""The figure of the oscillation simulation, with Lemma 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    pt,
)
from lnsim.run.record import Record
from lnsim.theory.paper import Lemma4

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def oscillation(trajectory: Record, early: Record, lemma: Lemma4 | None) -> Figure:
    """The oscillation simulation: losses, norms, alignment, and the chains at the start.

    `early` is the same run with every step recorded.  `lemma` has the level and the time bound of
    Lemma 4, or is None if it does not apply.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 4.6)
        margins = {"left": 0.08, "right": 0.93, "bottom": 0.1, "top": 0.95, "hspace": 0.5}
        (losses, norms), (aligned, chains) = figure.subplots(
            2, 2, gridspec_kw={**margins, "wspace": 0.45}
        )
        panels.draw_losses(losses, series)
        panels.draw_norms(aligned, series)
        for axes in (losses, aligned):
            panels.time_axis(axes, series["step"])
        _draw_small_norms(norms, series, lemma)
        early_series = panels.first_replica(early)
        panels.draw_chains(chains, early_series)
        panels.time_axis(chains, early_series["step"], log=False)
        for axes, name in zip((losses, norms, aligned, chains), "abcd", strict=True):
            panels.letter(axes, name)
    return figure


def _draw_small_norms(axes: Axes, series: dict[str, Any], lemma: Lemma4 | None) -> None:
    """The mean norm and the mean squared norm, with the level and the time bound of Lemma 4."""
    steps, width = series["step"], series["cloud_norm"].shape[1]
    panels.plot(axes, steps, series["norm_mean"], color=SKY, label=r"mean $\|w_i\|$")
    squared = series["norm_squared"] / width
    panels.plot(axes, steps, squared, color=BLUE, label=r"mean $\|w_i\|^2$")
    panels.time_axis(axes, steps)
    panels.log_values(axes)
    if lemma is not None:
        _draw_lemma_4(axes, int(steps[-1]), lemma)
    axes.set_ylim(top=6 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("norm of the neurons")
    axes.legend(loc="upper left", ncols=2, columnspacing=1.0)


def _draw_lemma_4(axes: Axes, last: int, lemma: Lemma4) -> None:
    """The level and the time bound of Lemma 4, labelled where they lie within the axes."""
    axes.axhline(lemma.level, color=BLACK, ls="--", lw=pt(0.8))
    axes.axvline(lemma.latest, color=VERMILION, ls=":", lw=pt(1.2))
    if axes.get_xscale() == "log" and last < 1.5 * lemma.latest < 1e3 * last:
        axes.set_xlim(right=1.5 * lemma.latest)
    annotation: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": True}
    axes.annotate(
        r"$\sqrt{\eta}$", (0.01, lemma.level), (4, 2), va="bottom",
        xycoords=("axes fraction", "data"), **annotation,
    )  # fmt: skip
    axes.annotate(
        r"$t_0 \leq 1/\eta^2$", (lemma.latest, 0.99), (-3, -2), ha="right", va="top",
        color=VERMILION, xycoords=("data", "axes fraction"), **annotation,
    )  # fmt: skip
