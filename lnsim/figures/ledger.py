"""The figure of the norm ledger: what changed each neuron's norm, and Lemma 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    pt,
)
from lnsim.run.record import Record
from lnsim.theory.paper import Lemma3

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ledger(trajectory: Record, lemma: Lemma3) -> Figure:
    """The terms of the norm identity over time and by neuron, and the probabilities of Lemma 3.

    `lemma`: the bounds to draw.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 2.5)
        margins = {"left": 0.075, "right": 0.985, "bottom": 0.18, "top": 0.9, "wspace": 0.36}
        means, neurons, shares = figure.subplots(1, 3, gridspec_kw=margins)
        _draw_account(means, series)
        _draw_neurons(neurons, series)
        _draw_lemma_3(shares, series, lemma)
        panels.time_axis(means, series["step"])
        panels.time_axis(shares, series["cloud_step"])
        for axes, name in zip((means, neurons, shares), "abc", strict=True):
            panels.letter(axes, name)
    return figure


def _draw_account(axes: Axes, series: dict[str, Any]) -> None:
    """Means over neurons of the identity's terms, and its prediction over the measured norm."""
    steps, width = series["step"], series["cloud_norm"].shape[1]
    removed, restored = (series[f"ledger_{k}"].mean(axis=1) for k in ("removed", "restored"))
    squared, second = series["norm_squared"] / width, series["second_layer_norm"] ** 2 / width
    identity = squared[0] + second - second[0] - removed + restored
    panels.plot(axes, steps, removed, color=VERMILION, label="removed")
    panels.plot(axes, steps, restored, color=GREEN, label="restored")
    panels.plot(axes, steps, squared, color=SKY, lw=pt(2.4), label=r"$\|w_i\|^2$")
    panels.plot(axes, steps, identity, color=BLACK, lw=pt(0.9), ls="--", label="identity")
    axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("mean over neurons")
    axes.legend(loc="upper left")


def _draw_neurons(axes: Axes, series: dict[str, Any]) -> None:
    """Each neuron's removed and restored sums at the end, against its squared norm at the start."""
    start = series["cloud_norm"][0, : panels.MOST_POINTS] ** 2
    for name, colour in (("removed", VERMILION), ("restored", GREEN)):
        sums = series[f"ledger_{name}"][-1, : panels.MOST_POINTS]
        axes.plot(start, sums, ".", ms=pt(2), mew=0, color=colour, label=name, rasterized=True)
    axes.legend(loc="upper left", handletextpad=0.1, markerscale=3)
    axes.set_xlabel(r"$\|w_i(0)\|^2$")
    axes.set_ylabel(f"sum until $t$ = {series['step'][-1]:,}")


def _draw_lemma_3(axes: Axes, series: dict[str, Any], lemma: Lemma3) -> None:
    """The empirical probabilities of Lemma 3, with each bound that is above 0."""
    steps = series["cloud_step"]
    for name, label, colour, bound in (
        ("lemma_3_nonpositive", r"$\Delta W_i \leq 0$", BLUE, lemma.nonpositive_probability),
        ("lemma_3_decrease", r"$\Delta W_i \leq -(\sigma/4)^2$", VERMILION,
         lemma.decrease_probability),
    ):  # fmt: skip
        panels.plot(axes, steps, series[name], color=colour, marker="o", ms=pt(2), label=label)
        if bound > 0:
            axes.axhline(bound, color=colour, ls=":", lw=pt(0.9), label="its bound")
    last_escape = np.max(series["lazy_escape"])
    if steps.size > 2 and last_escape > steps[1]:
        axes.axvspan(steps[1], last_escape, color=panels.PHASES[0][1], lw=0, zorder=0)
    axes.set_ylim(0.0, 1.5)  # room for the legend
    axes.set_yticks(np.linspace(0.0, 1.0, 6))
    axes.set_ylabel("probability (Lemma 3)")
    axes.legend(loc="upper right")
