"""Moves legends and notes away from the curves of their panel, once its limits are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Corner = Literal["lower left", "upper right", "lower right", "upper left"]

CORNERS: tuple[Corner, ...] = ("lower left", "upper right", "lower right", "upper left")
"""Places of a legend, in the order of preference."""
SHARES = np.linspace(0.05, 0.9, 18)
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
    for corner in CORNERS:
        legend.set_loc(corner)
        if not crosses(axes, legend.get_window_extent()):
            return
    legend.set_loc(CORNERS[0])
    low, high = axes.get_ylim()
    for share in SHARES:
        axes.set_ylim(low * (low / high) ** (share / (1 - share)), high)
        if not crosses(axes, legend.get_window_extent()):
            return


def place_notes(axes: Axes) -> None:
    """Puts each note that stands on the left of a line where no curve crosses it.

    It goes below the line, or to the right, or stays if there is no such place.
    """
    for note in axes.texts:
        if isinstance(note, Annotation):
            (left, y), (x, up) = note.xy, note.xyann
            for right, below in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)):
                note.xy = (1 - left if right else left, y)
                note.xyann = (x, -up if below else up)
                note.set_horizontalalignment("right" if right else "left")
                note.set_verticalalignment("top" if below else "bottom")
                if not crosses(axes, note.get_window_extent()):
                    break
