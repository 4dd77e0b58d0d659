"""The cloud of neurons in the norm-alignment plane, from record to record.

Each frame is one recorded cloud, without interpolation.  Clouds are recorded at steps that grow by
a factor of about sqrt(2) (recorder.py), so the animation runs in logarithmic time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rcParams
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.figure import Figure

from lnsim.base import files
from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import ONE_COLUMN, drawing, rc
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from lnsim.figures.panels import Series

KINDS = (".gif", ".mp4")
FRAMES_PER_SECOND = 4
LAST = 8
"""Number of frames that show the last cloud, before the animation starts again."""


def write(trajectory: Record, path: str | os.PathLike[str]) -> int:
    """Writes the animation of a run to `path`, a .gif or .mp4, atomically; returns its cloud count.

    Of an ensemble the first replica is shown.  Raises ValueError for another file extension, for a
    trajectory without clouds, and for an .mp4 without ffmpeg; OSError if `path` cannot be written.
    """
    target = Path(path)
    # The user's path to ffmpeg is kept: it does not change the look.
    settings = {**rc(), "animation.ffmpeg_path": rcParams["animation.ffmpeg_path"]}
    with drawing(settings):
        writer = _writer(target.suffix.lower())
    if not {"cloud_norm", "cloud_alignment"} <= trajectory.arrays.keys():
        raise ValueError("this run has no clouds of neurons with a target to animate")
    series = panels.first_replica(trajectory)
    count = len(series["cloud_step"])
    with tempfile.TemporaryDirectory() as folder, drawing(settings):
        temporary = Path(folder) / target.name
        figure, axes, points = _stage(series)
        with writer.saving(figure, str(temporary), dpi=150):
            for k in [*range(count), *[count - 1] * (LAST - 1)]:
                points.set_data(*panels.cloud(series, k))
                axes.set_title(panels.cloud_time(series, k))
                writer.grab_frame()
        files.write_bytes(target, temporary.read_bytes())
    return count


def _writer(extension: str) -> AbstractMovieWriter:
    if extension not in KINDS:
        raise ValueError(f"an animation must end in {' or '.join(KINDS)}, got {extension!r}")
    if extension == ".gif":
        return PillowWriter(fps=FRAMES_PER_SECOND)
    if not FFMpegWriter.isAvailable():
        raise ValueError("an .mp4 needs ffmpeg, which is not found: install it, or write a .gif")
    return FFMpegWriter(fps=FRAMES_PER_SECOND)


def _stage(series: Series) -> tuple[Figure, Axes, Line2D]:
    """The figure, its axes, and the points that move; the axis limits hold all clouds."""
    figure = blank(ONE_COLUMN, 2.8)
    margins = {"left": 0.15, "right": 0.96, "bottom": 0.16, "top": 0.9}
    axes = figure.subplots(gridspec_kw=margins)
    points = panels.draw_cloud(axes, series, 0)
    points.set_markersize(2 * points.get_markersize())  # larger: one panel instead of four
    panels.cloud_axes(axes, series, slice(None))
    return figure, axes, points
