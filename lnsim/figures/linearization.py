"""The figure of the experiment `linearization`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import BLACK, BLUE, TWO_COLUMNS, VERMILION, drawing
from lnsim.run import quantities
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
CURVATURE_PANELS = (
    ("sharpness", quantities.label("sharpness")),
    ("hessian_trace", "trace of the Hessian"),
)
"""The same of what is recorded over `curvature_step`."""


def of_arms(trajectory: Record) -> Figure:
    """Losses, mean and standard deviation over neurons of |w_i(t)|, sharpness and trace.

    The norms change by about 1e-4 of their size, so their change since the start is drawn.  Leaves
    out the curvature where it was never measured.
    """
    measured = trajectory.arrays.get("curvature_step", np.empty(0))
    shown = [*PANELS, *(CURVATURE_PANELS if measured.size else ())]
    rows, columns = panels.grid(len(shown))
    with drawing():
        figure = blank(TWO_COLUMNS, 4.2)
        margins = {"left": 0.085, "right": 0.98, "bottom": 0.1, "top": 0.94}
        spaces = {"wspace": 0.25 if columns == 2 else 0.42, "hspace": 0.42}
        axes = figure.subplots(rows, columns, gridspec_kw={**margins, **spaces}).flat
        for panel, letter, (quantity, label) in zip(axes, "abcdef", shown, strict=False):
            _draw(panel, trajectory, quantity)
            panel.set_ylabel(label)
            panels.letter(panel, letter)
        axes[0].legend(loc="best")
    return figure


def _draw(axes: Axes, trajectory: Record, quantity: str) -> None:
    """Draws the quantity `quantity` of every curve that has it."""
    over = "curvature_step" if quantity in dict(CURVATURE_PANELS) else "step"
    steps = trajectory[over]
    names = {curve: f"{curve}_{quantity}" for curve, *_ in CURVE_STYLES}
    of_all = {k: trajectory[name] for k, name in names.items() if name in trajectory.arrays}
    changes = quantity.startswith("norm")
    panels.time_axis(axes, trajectory["step"])
    # On a logarithmic axis a line from step 0 is flat up to the next record, which may be far.
    first = 1 if over == "curvature_step" and axes.get_xscale() == "log" else 0
    for curve, label, colour, style in CURVE_STYLES:
        if curve in of_all:
            values = of_all[curve] - (of_all[curve][0] if changes else 0.0)
            panels.plot(axes, steps[first:], values[first:], color=colour, ls=style, label=label)
    if quantity.endswith("loss"):
        shown = slice(1 if axes.get_xscale() == "log" else 0, None)  # a log axis has no 0
        panels.network_losses_axis(axes, {k: values[shown] for k, values in of_all.items()})
    elif changes:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    elif quantity == "sharpness":
        values = np.concatenate([np.empty(0), *of_all.values()])
        panels.sharpness_axis(axes, values, float(trajectory.config["lr"]))
