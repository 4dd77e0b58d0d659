"""Moves legends and notes away from the curves of their panel, once its limits are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Corner = Literal["lower left", "upper right", "lower right", "upper left"]

CORNERS: dict[Corner, tuple[int, int]] = {
    "lower left": (0, 0), "upper right": (1, 1), "lower right": (1, 0), "upper left": (0, 1),
}  # fmt: skip
"""Places of a legend in the order of preference, each as shares of the free width and height."""
STEPS = np.linspace(0.05, 0.9, 18)
"""Shares of the height that are tried for a legend below the curves."""


def crosses(axes: Axes, box: Bbox) -> bool:
    """Whether a line of `axes` crosses `box`, in pixels."""
    paths = (line.get_transform().transform_path(line.get_path()) for line in axes.get_lines())
    return any(path.intersects_bbox(box, filled=False) for path in paths)


def place_legend(axes: Axes) -> None:
    """Puts the legend of `axes`, whose scale is logarithmic, into a corner without curves.

    If there is none, makes room for it below the curves.
    """
    legend = axes.get_legend()
    assert legend is not None
    panel = axes.get_window_extent()
    size = np.array(legend.get_window_extent().size)
    for corner, shares in CORNERS.items():
        place = panel.p0 + (panel.size - size) * shares
        if not crosses(axes, Bbox([place, place + size])):
            legend.set_loc(corner)
            return
    legend.set_loc("lower left")
    low, high = axes.get_ylim()
    for share in STEPS:
        axes.set_ylim(low * (low / high) ** (share / (1 - share)), high)
        if not crosses(axes, Bbox([panel.p0, panel.p0 + size])):
            return


def place_notes(axes: Axes) -> None:
    """Puts a note that stands on a line under it, if a curve crosses the note."""
    for note in axes.texts:
        if isinstance(note, Annotation) and crosses(axes, note.get_window_extent()):
            x, up = note.xyann
            note.xyann = (x, -up)
            note.set_verticalalignment("top")
