"""What theory predicts, over what was measured: thin dashed lines, and grey points for a cloud.

A figure is given a prediction, or the reason why there is none.  The reason is written where the
legend entry of the prediction would be.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from lnsim.figures import panels
from lnsim.figures.style import BLACK, letters, pt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lnsim.theory.cloud import Prediction


LABEL = "predicted"
ROUGH = 0.2
"""The small parameter above which the legend entry has it (docs/predictions.md)."""
GREY = "#ABABAB"
BENEATH = 1.5
"""Height of the grey points: above shades, below the measured points and lines."""
ACROSS = 130
"""Characters of a legend's letters across a figure of two columns."""
MOST_BEYOND = 3.0
"""An axis is extended for a prediction up to this factor; beyond, the prediction leaves it."""


def draw(axes: Axes, prediction: Prediction, *names: str) -> None:
    """Draws these quantities, unless they are not predicted, and extends the axis to hold them."""
    for name in names:
        if name in prediction.names:
            values = prediction[name]
            low, high = axes.get_ylim()  # of what was measured
            axes.plot(prediction.times, values, scalex=False, scaley=False, **_dashes())
            seen = values[(values > 0) & (values < panels.LARGEST)]
            if seen.size:
                low = min(low, max(seen.min() / 1.05, low / MOST_BEYOND))
                high = max(high, min(1.05 * seen.max(), MOST_BEYOND * high))
            axes.set_ylim(low, high)


def draw_paths(axes: Axes, prediction: Prediction, neurons: Any) -> None:
    """Draws the paths of these neurons in the norm-alignment plane."""
    if np.size(neurons):
        paths = prediction.paths(neurons)
        axes.plot(paths["tracked_norm"], paths["tracked_alignment"], **_dashes())


def draw_clouds(clouds: Any, prediction: Prediction, steps: Sequence[int]) -> None:
    """Draws all neurons at each of `steps`, times of the prediction, beneath the measured ones."""
    for axes, step in zip(clouds, steps, strict=True):
        k = int(np.flatnonzero(prediction.times == step)[0])
        shown = [values[: panels.MOST_POINTS] for values in prediction.cloud(k)]
        size = pt(3.0 if len(shown[0]) > 100 else 6)
        axes.plot(*shown, ".", ms=size, mew=0, color=GREY, zorder=BENEATH, rasterized=True)


def entry(prediction: Prediction | str, across: int) -> tuple[Line2D, str]:
    """The legend entry of a prediction, or of the reason why there is none, with its label.

    The reason is broken into lines of at most `across` characters.
    """
    if isinstance(prediction, str):
        return Line2D([], [], ls=""), textwrap.fill(f"no prediction: {prediction}", across)
    expansion = float(prediction.expansion.max())
    label = LABEL if expansion <= ROUGH else f"{LABEL}, roughly: small parameter {expansion:.2g}"
    return Line2D([], [], **_dashes()), label


def legend(figure: Figure, prediction: Prediction | str, left: float, beside: str = "") -> None:
    """The one legend entry of a figure, or the reason, in the upper left corner, at `left`.

    `beside` is the text in the upper right corner, for which the reason leaves room.
    """
    line, label = entry(prediction, 1000)
    if isinstance(prediction, str):
        label = textwrap.shorten(label, ACROSS - len(beside), placeholder=" ...")
        figure.text(left, 0.995, label, fontsize=letters(8), ha="left", va="top")
        return
    line.set(marker="o", ms=pt(3.0), mew=0, mfc=GREY)
    figure.legend(
        [line], [label], loc="upper left", bbox_to_anchor=(left, 1.0), handlelength=2.6,
        borderpad=0.0, borderaxespad=0.3,
    )  # fmt: skip


def _dashes() -> dict[str, Any]:
    return {"color": BLACK, "ls": (0, (4, 2.5)), "lw": pt(0.7)}  # gaps show what is beneath
