"""An empty figure, and rendering a figure to a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lnsim.base import files
from lnsim.figures.style import drawing, pt, rc

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase


_ABOUT = {"png": "Description", "pdf": "Subject", "svg": "Description"}
"""The word for what a file is about, in its metadata."""


def render(figure: Figure, kind: str, **options: Any) -> bytes:
    """The figure as a file of `kind` "png", "pdf" or "svg", the same bytes every time.

    The figure's label, if it has one, is kept in the file as what it is about.
    """
    options["metadata"] = {_ABOUT[kind]: figure.get_label() or None}
    if kind == "pdf":
        options["metadata"]["CreationDate"] = None
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


class StyledFigure(Figure):
    """A figure that is always drawn in the style it was created in, and displays in a notebook."""

    def __init__(self, **options: Any) -> None:
        self._style = rc()
        with drawing(self._style):
            super().__init__(**options)
        FigureCanvasAgg(self)

    def draw(self, renderer: RendererBase) -> None:
        with drawing(self._style):
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        with drawing(self._style):
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        return render(self, "png", dpi=100)


def blank(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of `width` x `height` inches on paper, to be drawn inside `drawing()`.

    Set margins by hand where possible: a layout engine takes a second.
    """
    return StyledFigure(figsize=(pt(width), pt(height)), **options)


def save(figure: Figure, folder: Path, name: str = "figure") -> None:
    """Writes `name`.png and `name`.pdf into `folder`, each atomically."""
    for kind in ("png", "pdf"):
        files.write_bytes(folder / f"{name}.{kind}", render(figure, kind))
