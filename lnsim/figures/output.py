"""A run's figures beside its numbers, which no fault of a figure may lose or fail.

To draw is to run the code of matplotlib, of fonts, image formats and ffmpeg, under settings and
on a disk that are not ours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lnsim.figures.style import VERMILION, drawing, letters
from lnsim.run import experiment
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("figure.png", "figure.pdf", "ledger.png", "ledger.pdf")
LONGEST = 300
"""Characters of a reason that are told: LaTeX gives its whole log."""


class Undrawn(Exception):
    """A figure could not be drawn or written; the text says why."""


@contextmanager
def guarded(*others: type[Exception]) -> Iterator[None]:
    """Inside, whatever goes wrong raises Undrawn, but for the exceptions `others`."""
    try:
        yield
    except others:
        raise
    except Exception as error:  # foreign code ran, and may raise anything: it is told, not hidden
        text = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
        raise Undrawn(f"no figure, {': '.join(filter(None, (type(error).__name__, text)))}") from (
            error
        )


def write(trajectory: Record, folder: Path) -> str:
    """Draws and writes the figures of a run; returns why one could not be, or nothing.

    What an earlier run left in `folder` would pass for this one's, and is taken away.
    """
    try:
        with guarded():
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            from lnsim.figures import canvas

            for stem, figure in of_run(trajectory).items():
                canvas.save(figure, folder, stem)
    except Undrawn as error:
        return str(error)
    return ""


def of_run(trajectory: Record) -> dict[str, Figure]:
    """The figures of the experiment that made `trajectory`, by file name.

    Those of a run that did not reach its end, or an arm or replicas of it, say so.
    """
    from lnsim.figures import networks

    drawn = experiment.load(str(trajectory.config["experiment"])).figures(trajectory)
    if words := "; ".join(networks.ending(trajectory)):
        with drawing():
            for figure in drawn.values():
                figure.text(
                    0.99, 0.995, words, color=VERMILION, fontsize=letters(8), ha="right", va="top"
                )
    return drawn
