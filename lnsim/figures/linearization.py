"""The figure of the experiment `linearization`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import BLACK, BLUE, TWO_COLUMNS, VERMILION, drawing
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CURVE_STYLES = (
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
"""Suffix of the arrays' names, and label of the axis."""


def four_panels(trajectory: Record) -> Figure:
    """Training loss, test loss, and mean and standard deviation over neurons of |w_i(t)|.

    The norms change by about 1e-4 of their size, so their change since the start is drawn.
    """
    with drawing():
        figure = blank(TWO_COLUMNS, 4.2)
        margins = {"left": 0.085, "right": 0.98, "bottom": 0.1, "top": 0.94}
        spaces = {"wspace": 0.25, "hspace": 0.42}
        axes = figure.subplots(2, 2, gridspec_kw={**margins, **spaces}).flat
        for panel, letter, (quantity, label) in zip(axes, "abcd", PANELS, strict=True):
            _draw(panel, trajectory, quantity)
            panel.set_ylabel(label)
            panels.letter(panel, letter)
        axes[0].legend(loc="best")
    return figure


def _draw(axes: Axes, trajectory: Record, quantity: str) -> None:
    """Draws the quantity `quantity` of every curve that has it."""
    steps = trajectory["step"]
    names = {curve: f"{curve}_{quantity}" for curve, *_ in CURVE_STYLES}
    of_all = {k: trajectory[name] for k, name in names.items() if name in trajectory.arrays}
    for curve, label, colour, style in CURVE_STYLES:
        if curve in of_all:
            values = of_all[curve] - (0.0 if quantity.endswith("loss") else of_all[curve][0])
            panels.plot(axes, steps, values, color=colour, ls=style, label=label)
    panels.time_axis(axes, steps)
    if quantity.endswith("loss"):
        shown = slice(1 if axes.get_xscale() == "log" else 0, None)  # a log axis has no 0
        panels.network_losses_axis(axes, {k: values[shown] for k, values in of_all.items()})
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
