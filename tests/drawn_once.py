"""Cheaper figures for tests that make many of them and look into no PDF file."""

from contextlib import contextmanager

import pytest

from lnsim.figures import canvas


@contextmanager
def drawn_once():
    """Inside, figures are drawn into their PNG files alone; their PDF files are empty."""
    render = canvas.render

    def png_alone(figure, kind, **options):
        return b"" if kind == "pdf" else render(figure, kind, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "render", png_alone)
        yield
