"""The figure of large steps: a few learning rates over time, and what became of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    letters,
    pt,
)
from lnsim.theory.catapult import DIVERGES, RISES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (1.5, 2.2, 2.8, 4.2)
"""Values of eta lambda_0 to which the learning rates over time are the nearest ones."""
COLOURS = (BLUE, GREEN, ORANGE, VERMILION)
SHADES = ("#EDEDED", "#FFF4DC", "#F9E0D6")
KINDS = ("monotone", "catapult", "diverged")
"""Regions of the map from small to large steps."""
SETTLED = 1e-6
"""Share of its start below which a loss is not followed further."""
ETA = r"$\eta\,\lambda_0$"


class Law(NamedTuple):
    """What theory says of learning rates on a fine grid: as `Ends`, over lambda_0 and the start."""

    multiples: FloatArray
    last: FloatArray
    peak: FloatArray


class Ends(Protocol):
    """What the figure is drawn from; arrays are in the order of the learning rates, (S,)."""

    @property
    def multiples(self) -> FloatArray: ...
    @property
    def cell(self) -> float: ...
    @property
    def kinds(self) -> NDArray[Any]: ...
    @property
    def curvature(self) -> float: ...
    @property
    def loss(self) -> FloatArray: ...
    @property
    def sharpness(self) -> FloatArray | None: ...
    @property
    def last_sharpness(self) -> FloatArray: ...
    @property
    def peak(self) -> FloatArray: ...
    @property
    def law(self) -> Law | None: ...


def large_steps(steps: NDArray[Any], ends: Ends) -> Figure:
    """Loss and sharpness over `steps` at a few learning rates; sharpness and largest loss over all.

    Without a measured sharpness its panels are empty and say so.
    """
    shown = _shown(ends.multiples)
    with drawing():
        figure = blank(TWO_COLUMNS, 4.5)
        margins = {"left": 0.085, "right": 0.985, "bottom": 0.1, "top": 0.925}
        axes = figure.subplots(2, 2, gridspec_kw={**margins, "wspace": 0.25, "hspace": 0.5})
        (losses, sharpness), (last, peaks) = axes
        _draw_losses(losses, steps, ends, shown)
        _draw_sharpness(sharpness, steps, ends, shown)
        _draw_last(last, ends)
        _draw_peaks(peaks, ends)
        for panel, name in zip(axes.flat, "abcd", strict=True):
            panels.letter(panel, name, up=6)
    return figure


def _shown(multiples: FloatArray) -> list[int]:
    """The learning rates drawn over time."""
    nearest = (int(np.argmin(np.abs(multiples - value))) for value in SHOWN)
    return sorted(set(nearest))


def _time_axis(axes: Axes, steps: NDArray[Any], ends: Ends, shown: Sequence[int]) -> None:
    """As far as one of the losses shown is neither settled nor overflowed."""
    loss = ends.loss[shown]
    moving = np.flatnonzero(((loss > SETTLED) & (loss < panels.LARGEST)).any(axis=0))
    last = min(len(steps) - 1, int(moving[-1]) + 1) if moving.size else len(steps) - 1
    panels.time_axis(axes, steps[: last + 1], log=False)


def _draw_losses(axes: Axes, steps: NDArray[Any], ends: Ends, shown: Sequence[int]) -> None:
    for index, colour in zip(shown, COLOURS, strict=False):
        values = ends.loss[index]
        label = f"{ETA} = {ends.multiples[index]:.4g}"
        panels.plot(axes, steps, np.where(values > 0, values, np.nan), color=colour, label=label)
    _time_axis(axes, steps, ends, shown)
    panels.log_values(axes)
    peak = np.nanmax(ends.peak, initial=1.0)
    axes.set_ylim(SETTLED, 100.0 * max(peak, 1.0))
    axes.set_ylabel("training loss over its start")
    axes.legend(loc="best")


def _draw_sharpness(axes: Axes, steps: NDArray[Any], ends: Ends, shown: Sequence[int]) -> None:
    """The sharpness over lambda_0 (solid) and 2 / eta (dashed)."""
    if ends.sharpness is None:
        _not_measured(axes)
    else:
        for index, colour in zip(shown, COLOURS, strict=False):
            edge = RISES / ends.multiples[index]
            axes.axhline(edge, color=colour, ls="--", lw=pt(0.7))
            panels.plot(axes, steps, ends.sharpness[index] / ends.curvature, color=colour)
        axes.plot([], [], color=BLACK, lw=pt(0.7), ls="--", label=r"$2/\eta$")
        axes.legend(loc="upper right")
    _time_axis(axes, steps, ends, shown)
    axes.set_ylim(0.0, 1.6)
    axes.set_ylabel(r"sharpness $\lambda_{\max}(H)\,/\,\lambda_0$")


def _draw_last(axes: Axes, ends: Ends) -> None:
    """The sharpness at the end over lambda_0, below the edge of stability."""
    _regions(axes, ends)
    if ends.sharpness is None:
        _not_measured(axes)
    left, right = axes.get_xlim()
    eta = np.linspace(max(left, 1e-3), right, 200)
    axes.plot(eta, RISES / eta, color=BLACK, ls="--", lw=pt(0.7), label=r"$2/\eta$")
    if ends.law is not None:
        axes.plot(ends.law.multiples, ends.law.last, color=SKY, lw=pt(0.7), label="recursion")
    axes.plot(ends.multiples, ends.last_sharpness / ends.curvature, "o", ms=pt(2.6), color=BLUE)
    axes.set_ylim(0.0, 1.6)
    axes.set_ylabel(r"$\lambda_{\max}(H)\,/\,\lambda_0$ at the end")
    axes.legend(loc="upper center", bbox_to_anchor=(0.6, 1.0))


def _draw_peaks(axes: Axes, ends: Ends) -> None:
    """The largest loss over its start."""
    _regions(axes, ends)
    if ends.law is not None:
        axes.plot(ends.law.multiples, ends.law.peak, color=SKY, lw=pt(0.7), label="recursion")
    axes.plot(ends.multiples, ends.peak, "o", ms=pt(2.6), color=BLUE)
    panels.log_values(axes)
    axes.set_ylim(0.5, 3.0 * np.nanmax(ends.peak, initial=30.0))
    axes.set_ylabel("largest loss over its start")
    axes.minorticks_off()
    theory = rf"$\eta = {RISES:g}/\lambda_0,\ {DIVERGES:g}/\lambda_0$"
    axes.plot([], [], color=BLACK, ls=":", lw=pt(0.9), label=theory)
    axes.legend(loc="lower center", bbox_to_anchor=(0.6, 0.0))


def _regions(axes: Axes, ends: Ends) -> None:
    """Shades what was measured, labelled above; dotted, where theory has the boundaries."""
    half = 0.5 * ends.cell
    edges = np.append(ends.multiples - half, ends.multiples[-1] + half)
    left, right = float(edges[0]), float(edges[-1])
    axes.set_xlim(left, right)
    for name, shade in zip(KINDS, SHADES, strict=True):
        of_kind = ends.kinds == name
        for begin, end in _stretches(of_kind):
            axes.axvspan(edges[begin], edges[end], color=shade, lw=0, zorder=0)
        if of_kind.mean() > 0.08:
            share = (float(np.median(ends.multiples[of_kind])) - left) / (right - left)
            axes.text(
                min(max(share, 0.07), 0.93), 1.01, name, transform=axes.transAxes,
                ha="center", va="bottom", fontsize=letters(8),
            )  # fmt: skip
    for value in (RISES, DIVERGES):
        if left < value < right:
            axes.axvline(value, color=BLACK, ls=":", lw=pt(0.9))
    if right - left < 20:
        axes.xaxis.set_major_locator(MultipleLocator(0.5 if right - left < 5 else 2.0))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(rf"step size {ETA}")


def _stretches(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs (first, one after the last) of the stretches of True."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in zip(changes[::2], changes[1::2], strict=True)]


def _not_measured(axes: Axes) -> None:
    axes.text(
        0.5, 0.5, "the sharpness was not measured", ha="center", transform=axes.transAxes,
        fontsize=letters(8),
    )  # fmt: skip
