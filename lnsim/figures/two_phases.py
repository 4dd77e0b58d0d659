"""The figures of the experiments on the two-layer linear network, and how figures are made."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lnsim.base import files
from lnsim.base.checks import FloatArray
from lnsim.figures import panels
from lnsim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    letters,
    pt,
    rc,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

    from lnsim.simulation.trajectory import Trajectory
    from lnsim.theory.paper import Lemma3, Lemma4


def save(figure: Figure, folder: Path, name: str = "figure") -> None:
    """Writes `name`.png and `name`.pdf into `folder`, each atomically."""
    for kind in ("png", "pdf"):
        files.write_bytes(folder / f"{name}.{kind}", render(figure, kind))


def of_run(trajectory: Trajectory) -> dict[str, Figure]:
    """The figures of the experiment that made `trajectory`, by file name.

    Those of a run that did not reach its end, or an arm or replicas of it, say so.
    """
    from lnsim import experiments
    from lnsim.figures import networks

    module = experiments.load(str(trajectory.config["experiment"]))
    drawn = {"figure": module.figure(trajectory)}
    drawn |= getattr(module, "extra_figures", lambda _: {})(trajectory)
    if words := "; ".join(networks.ending(trajectory)):
        with drawing():
            for figure in drawn.values():
                figure.text(
                    0.99, 0.995, words, color=VERMILION, fontsize=letters(8), ha="right", va="top"
                )
    return drawn


def render(figure: Figure, kind: str, **options: Any) -> bytes:
    """The figure as a file of `kind` "png", "pdf" or "svg", the same bytes every time."""
    if kind == "pdf":
        options["metadata"] = {"CreationDate": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


class StyledFigure(Figure):
    """A figure that is drawn and saved in the style it was made in, and shows in a notebook."""

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
    """An empty figure, inches on paper, to be drawn inside `drawing()`.

    Margins are best set by hand: a layout engine takes a second.
    """
    return StyledFigure(figsize=(pt(width), pt(height)), **options)


def two_phases(
    trajectory: Trajectory, *, law_of_modes: FloatArray | None = None, without: str = ""
) -> Figure:
    """Figures 2 and 4 of the paper: losses, norm and alignment, paths of neurons, their clouds.

    With `law_of_modes` : (records,), or the reason for being without it, a further panel has
    |W|_F^2 and what the law of modes predicts.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    further = law_of_modes is not None or bool(without)
    with drawing():
        figure = blank(TWO_COLUMNS, 4.6)
        top = {"left": 0.08, "right": 0.93, "bottom": 0.6, "top": 0.95, "wspace": 0.72}
        losses, norms, path = figure.subplots(1, 3, gridspec_kw=top)
        right = 0.715 if further else 0.985
        bottom = {"left": 0.08, "right": right, "bottom": 0.09, "top": 0.44, "wspace": 0.12}
        clouds = figure.subplots(1, 4, sharex=True, sharey=True, gridspec_kw=bottom)
        panels.draw_losses(losses, series)
        panels.draw_norms(norms, series)
        over_time = [losses, norms]
        panels.draw_path(path, series)
        panels.draw_clouds(clouds, series)
        if further:
            place = {"left": 0.8, "right": 0.985, "bottom": 0.09, "top": 0.44}
            over_time.append(figure.subplots(1, 1, gridspec_kw=place))
            panels.draw_law(over_time[-1], series, law_of_modes, without)
        for axes in over_time:
            panels.time_axis(axes, series["step"])
            panels.shade_phases(axes, trajectory, series["step"])
        for axes, name in zip(
            (losses, norms, path, clouds[0], *over_time[2:]), "abcde", strict=False
        ):
            panels.letter(axes, name)
    return figure


def windows(trajectory: Trajectory, period: int, *, most: int = 3) -> Figure:
    """A run in windows of `period` steps, those in which the noise is on shaded.

    Losses with those of the linearised twin, neuron norms, and the second-layer weights of
    `most` neurons.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 5.2)
        place = {"left": 0.09, "right": 0.84, "bottom": 0.08, "top": 0.96, "hspace": 0.2}
        rows = figure.subplots(3, 1, sharex=True, gridspec_kw=place)
        panels.draw_losses(rows[0], series)
        panels.draw_single_norms(rows[1], series)
        panels.draw_second_layer(rows[2], series, most)
        for axes, name in zip(rows, "abc", strict=True):
            panels.time_axis(axes, series["step"], log=False)
            panels.shade_windows(axes, period, int(series["step"][-1]))
            panels.letter(axes, name)
            handles = axes.get_legend_handles_labels()
            axes.legend(*handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1.0)
            if name != "c":
                axes.set_xlabel("")
    return figure


def oscillation(trajectory: Trajectory, early: Trajectory, lemma: Lemma4 | None) -> Figure:
    """The oscillation simulation: losses, norms, alignment, and the chains at the start.

    `early` is the same run with every step recorded, `lemma` has the level and the time of Lemma 4,
    if it says anything.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 4.6)
        place = {"left": 0.08, "right": 0.93, "bottom": 0.1, "top": 0.95, "hspace": 0.5}
        (losses, norms), (aligned, chains) = figure.subplots(
            2, 2, gridspec_kw={**place, "wspace": 0.45}
        )
        panels.draw_losses(losses, series)
        panels.draw_norms(aligned, series)
        for axes in (losses, aligned):
            panels.time_axis(axes, series["step"])
        _draw_small_norms(norms, series, lemma)
        first = panels.first_replica(early)
        panels.draw_chains(chains, first)
        panels.time_axis(chains, first["step"], log=False)
        for axes, name in zip((losses, norms, aligned, chains), "abcd", strict=True):
            panels.letter(axes, name)
    return figure


def _draw_small_norms(axes: Axes, series: dict[str, Any], lemma: Lemma4 | None) -> None:
    """The mean norm and the mean squared norm, with the level and the time of Lemma 4."""
    steps, width = series["step"], series["cloud_norm"].shape[1]
    panels.plot(axes, steps, series["norm_mean"], color=SKY, label=r"mean $\|w_i\|$")
    squared = series["norm_squared"] / width
    panels.plot(axes, steps, squared, color=BLUE, label=r"mean $\|w_i\|^2$")
    panels.time_axis(axes, steps)
    panels.log_values(axes)
    if lemma is not None:
        _draw_lemma_4(axes, int(steps[-1]), lemma)
    axes.set_ylim(top=6 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("norm of the neurons")
    axes.legend(loc="upper left", ncols=2, columnspacing=1.0)


def _draw_lemma_4(axes: Axes, last: int, lemma: Lemma4) -> None:
    """The level and the latest time of Lemma 4, with their names where they are on the axes."""
    axes.axhline(lemma.level, color=BLACK, ls="--", lw=pt(0.8))
    axes.axvline(lemma.latest, color=VERMILION, ls=":", lw=pt(1.2))
    if axes.get_xscale() == "log" and last < 1.5 * lemma.latest < 1e3 * last:
        axes.set_xlim(right=1.5 * lemma.latest)
    beside: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": True}
    axes.annotate(
        r"$\sqrt{\eta}$", (0.01, lemma.level), (4, 2), va="bottom",
        xycoords=("axes fraction", "data"), **beside,
    )  # fmt: skip
    axes.annotate(
        r"$t_0 \leq 1/\eta^2$", (lemma.latest, 0.99), (-3, -2), ha="right", va="top",
        color=VERMILION, xycoords=("data", "axes fraction"), **beside,
    )  # fmt: skip


def ledger(trajectory: Trajectory, lemma: Lemma3) -> Figure:
    """Where the norm went: the sums of the norm identity, over time and by neuron, and Lemma 3.

    `lemma` has the bounds to draw.  Of an ensemble the first replica is shown.
    """
    series = panels.first_replica(trajectory)
    with drawing():
        figure = blank(TWO_COLUMNS, 2.5)
        place = {"left": 0.075, "right": 0.985, "bottom": 0.18, "top": 0.9, "wspace": 0.36}
        means, neurons, shares = figure.subplots(1, 3, gridspec_kw=place)
        _draw_account(means, series)
        _draw_neurons(neurons, series)
        _draw_lemma_3(shares, series, lemma)
        panels.time_axis(means, series["step"])
        panels.time_axis(shares, series["cloud_step"])
        for axes, name in zip((means, neurons, shares), "abc", strict=True):
            panels.letter(axes, name)
    return figure


def _draw_account(axes: Axes, series: dict[str, Any]) -> None:
    """Means over the neurons of the identity's terms, and its sum over what was measured."""
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
    """Both sums of every neuron at the end against its norm at the start."""
    start = series["cloud_norm"][0, : panels.MOST_POINTS] ** 2
    for name, colour in (("removed", VERMILION), ("restored", GREEN)):
        sums = series[f"ledger_{name}"][-1, : panels.MOST_POINTS]
        axes.plot(start, sums, ".", ms=pt(2), mew=0, color=colour, label=name, rasterized=True)
    axes.legend(loc="upper left", handletextpad=0.1, markerscale=3)
    axes.set_xlabel(r"$\|w_i(0)\|^2$")
    axes.set_ylabel(f"sum until $t$ = {series['step'][-1]:,}")


def _draw_lemma_3(axes: Axes, series: dict[str, Any], lemma: Lemma3) -> None:
    """The empirical probabilities of Lemma 3 with the bounds that say something."""
    steps = series["cloud_step"]
    for name, label, colour, bound in (
        ("lemma_3_nonpositive", r"$\Delta W_i \leq 0$", BLUE, lemma.nonpositive_probability),
        ("lemma_3_decrease", r"$\Delta W_i \leq -(\sigma/4)^2$", VERMILION,
         lemma.decrease_probability),
    ):  # fmt: skip
        panels.plot(axes, steps, series[name], color=colour, marker="o", ms=pt(2), label=label)
        if bound > 0:
            axes.axhline(bound, color=colour, ls=":", lw=pt(0.9), label="its bound")
    gone = np.max(series["lazy_escape"])
    if steps.size > 2 and gone > steps[1]:
        axes.axvspan(steps[1], gone, color=panels.PHASES[0][1], lw=0, zorder=0)
    axes.set_ylim(0.0, 1.5)  # room for the legend
    axes.set_yticks(np.linspace(0.0, 1.0, 6))
    axes.set_ylabel("probability (Lemma 3)")
    axes.legend(loc="upper right")
