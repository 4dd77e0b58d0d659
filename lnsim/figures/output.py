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

if TYPE_CHECKING:
    from lnsim.simulation.trajectory import Trajectory

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


def write(trajectory: Trajectory, folder: Path) -> str:
    """Draws and writes the figures of a run; returns why one could not be, or nothing.

    What an earlier run left in `folder` would pass for this one's, and is taken away.
    """
    try:
        with guarded():
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            from lnsim.figures import two_phases

            for stem, figure in two_phases.of_run(trajectory).items():
                two_phases.save(figure, folder, stem)
    except Undrawn as error:
        return str(error)
    return ""
