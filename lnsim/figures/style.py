"""The style of all figures: palette, fonts and widths, for a paper or for a screen.

"paper" is print size: a figure one or two columns wide, with letters of 8 to 9 points.  "screen" is
1.5 times as large, with sans-serif letters, for slides and web pages.  The style in use is that of
the innermost `use`; a figure keeps the style it was created in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from lnsim.base import checks

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
"""Colours of curves, in order."""

ONE_COLUMN, TWO_COLUMNS = 3.35, 7.0
"""Widths of a one-column and a two-column figure on paper, in inches."""

STYLES = {"paper": (1.0, 1.0), "screen": (1.5, 1.3)}
"""The styles, each with its scale of lengths and its scale of letters, relative to paper.

Letters are scaled less, as the screen font looks larger than the paper font at the same size.
"""

_FONTS: dict[str, dict[str, Any]] = {
    "paper": {"font.family": "STIXGeneral", "mathtext.fontset": "stix"},
    "screen": {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"},
}
_LETTERS = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
_LENGTHS = {
    "axes.linewidth": 0.6,
    "axes.labelpad": 4,
    "axes.titlepad": 6,
    "lines.linewidth": 1.1,
    **{f"{x}tick.{part}": value for x in "xy" for part, value in (
        ("major.size", 3.5), ("minor.size", 2.0), ("major.width", 0.8), ("minor.width", 0.6),
        ("major.pad", 3.5), ("minor.pad", 3.4),
    )},
}  # fmt: skip
"""Sizes of letters and lengths on paper, in points."""

_SHARED: dict[str, Any] = {
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.labelspacing": 0.25,
    "legend.borderaxespad": 0.2,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}

_in_use: ContextVar[str] = ContextVar("style", default="paper")


@contextmanager
def use(style: str | None) -> Iterator[None]:
    """Figures created inside have the style `style`; None leaves the style as it is.

    Raises ValueError for a style that is not in STYLES.
    """
    token = _in_use.set(_in_use.get() if style is None else checks.choice("style", style, STYLES))
    try:
        yield
    finally:
        _in_use.reset(token)


def pt(points: float) -> float:
    """A length on paper, in points or inches, scaled to the style in use."""
    return points * STYLES[_in_use.get()][0]


def letters(points: float) -> float:
    """A font size on paper, in points, scaled to the style in use."""
    return points * STYLES[_in_use.get()][1]


def drawing(settings: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """Inside, matplotlib draws with its defaults changed by `settings`, by default `rc()`.

    The user's own settings of matplotlib are restored afterwards.
    """
    from matplotlib import style  # a slow import, needed only to draw

    return style.context(dict(rc() if settings is None else settings), after_reset=True)


def rc() -> dict[str, Any]:
    """The matplotlib settings of the style in use, on top of the defaults."""
    lengths = {name: pt(value) for name, value in _LENGTHS.items()}
    sizes = {name: letters(value) for name, value in _LETTERS.items()}
    return {**_SHARED, **_FONTS[_in_use.get()], **lengths, **sizes}
