"""The figure of the experiment `linearization`; drawn with matplotlib as those of two_phases.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import BLACK, BLUE, TWO_COLUMNS, VERMILION, drawing
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CURVES = (
    ("clean", "clean labels", BLUE, "-"),
    ("noisy", "label noise", VERMILION, "-"),
    ("linearized", "linearised", BLACK, "--"),
)
PANELS = (
    ("train_loss", "training loss (clean labels)"),
    ("test_loss", "test loss"),
    ("norm_mean", r"mean of $\|w_i(t)\|$, change"),
    ("norm_std", r"deviation of $\|w_i(t)\|$, change"),
)
"""The end of the arrays' names, and the axis's label."""


def four_panels(trajectory: Record) -> Figure:
    """Training loss, test loss, and mean and standard deviation over neurons of |w_i(t)|.

    The norms change by parts in ten thousand: what is drawn is their change since the start.
    """
    with drawing():
        figure = blank(TWO_COLUMNS, 4.2)
        margins = {"left": 0.085, "right": 0.98, "bottom": 0.1, "top": 0.94}
        spaces = {"wspace": 0.25, "hspace": 0.42}
        axes = figure.subplots(2, 2, gridspec_kw={**margins, **spaces}).flat
        for place, letter, (what, label) in zip(axes, "abcd", PANELS, strict=True):
            _draw(place, trajectory, what)
            place.set_ylabel(label)
            panels.letter(place, letter)
        axes[0].legend(loc="best")
    return figure


def _draw(axes: Axes, trajectory: Record, what: str) -> None:
    """One quantity of all curves that have it."""
    steps = trajectory["step"]
    names = {curve: f"{curve}_{what}" for curve, *_ in CURVES}
    of_all = {k: trajectory[name] for k, name in names.items() if name in trajectory.arrays}
    for curve, label, colour, style in CURVES:
        if curve in of_all:
            values = of_all[curve] - (0.0 if what.endswith("loss") else of_all[curve][0])
            panels.plot(axes, steps, values, color=colour, ls=style, label=label)
    panels.time_axis(axes, steps)
    if what.endswith("loss"):
        shown = slice(1 if axes.get_xscale() == "log" else 0, None)  # 0 has no place on it
        panels.network_losses_axis(axes, {k: values[shown] for k, values in of_all.items()})
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
