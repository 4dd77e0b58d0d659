"""Writing the figures of a run; an error in drawing never costs the numbers of the run.

Drawing runs code of matplotlib, fonts, image formats and ffmpeg, which can fail in any way.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lnsim.figures.style import VERMILION, drawing, letters
from lnsim.references import credits
from lnsim.run import experiment
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("figure.png", "figure.pdf", "ledger.png", "ledger.pdf")
LONGEST = 300
"""Characters kept of an error message: LaTeX reports its whole log."""


class Undrawn(Exception):
    """A figure could not be drawn or written; the message says why."""


@contextmanager
def guarded(*others: type[Exception]) -> Iterator[None]:
    """Turns every exception raised inside into Undrawn, except those of the types `others`."""
    try:
        yield
    except others:
        raise
    except Exception as error:
        # Matplotlib, fonts, LaTeX and ffmpeg raise errors of any type, and a run's numbers are not
        # to be lost for a figure.  Nothing is hidden: Undrawn has the type, the text and the cause.
        text = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
        raise Undrawn(f"no figure, {': '.join(filter(None, (type(error).__name__, text)))}") from (
            error
        )


def write(trajectory: Record, folder: Path) -> str:
    """Draws and writes the figures of a run; returns why a figure could not be drawn, or "".

    Removes the figures of an earlier run from `folder`, as they could be taken for this run's.
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

    They are marked if the run, or an arm or a replica of it, did not reach its end.  Their labels,
    which their files keep, name the papers that the experiment rests on.
    """
    from lnsim.figures import networks

    chosen = experiment.load(str(trajectory.config["experiment"]))
    figures = chosen.figures(trajectory)
    papers = credits.named(*chosen.rests_on, *credits.used_by(trajectory.config))
    for figure in figures.values():
        figure.set_label(f"lnsim {chosen.name}. Papers: {papers}")
    if endings := "; ".join(networks.ending(trajectory)):
        with drawing():
            for figure in figures.values():
                figure.text(
                    0.99, 0.995, endings, color=VERMILION, fontsize=letters(8), ha="right", va="top"
                )
    return figures
