"""All figures, for paper and screen; matplotlib is imported here alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lnsim import store
from lnsim._checks import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lnsim.trajectory import Trajectory

TWO_COLUMNS = 7.0
"""Width of a figure over two columns, inches."""

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00",
)  # fmt: skip
STYLE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
PHASES = (("lazy", "#EDEDED"), ("I", "#FFF4DC"), ("II", "#E3F1FA"))
"""Lazy regime, Phase I (norms shrink), Phase II (alignment)."""
MOST_POINTS = 5000
"""Neurons drawn of a cloud; a wider network shows its first ones."""


def save(figure: Figure, folder: Path, name: str = "figure") -> None:
    """Writes `name`.png and `name`.pdf into `folder`, each atomically."""
    formats: dict[str, Any] = {"png": {}, "pdf": {"metadata": {"CreationDate": None}}}
    for kind, options in formats.items():
        buffer = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(buffer, format=kind, **options)
        store.write_bytes(folder / f"{name}.{kind}", buffer.getvalue())


def _blank(width: float, height: float) -> Figure:
    """An empty figure, inches.  Margins are set by hand: a layout engine takes a second."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def two_phases(trajectory: Trajectory) -> Figure:
    """Figure 2 of the paper: losses, norm and alignment, paths of neurons, clouds of all neurons.

    Of an ensemble the first replica is shown.
    """
    series = _first_replica(trajectory)
    with rc_context(STYLE):
        figure = _blank(TWO_COLUMNS, 4.5)
        top = {"left": 0.08, "right": 0.93, "bottom": 0.59, "top": 0.95, "wspace": 0.7}
        losses, norms, path = figure.subplots(1, 3, gridspec_kw=top)
        bottom = {"left": 0.08, "right": 0.985, "bottom": 0.09, "top": 0.44, "wspace": 0.1}
        clouds = figure.subplots(1, 4, sharex=True, sharey=True, gridspec_kw=bottom)
        _draw_losses(losses, series)
        _draw_norms(norms, series)
        for axes in (losses, norms):
            _shade_phases(axes, trajectory, series["step"])
        _draw_path(path, series)
        _draw_clouds(clouds, series)
    return figure


def _first_replica(trajectory: Trajectory) -> dict[str, Any]:
    shared = ("step", "tracked_neurons", "cloud_step", "theta_star", "diverged_at")
    ensemble = trajectory["train_loss"].ndim == 2
    return {
        name: value[0] if ensemble and name not in shared else value
        for name, value in trajectory.arrays.items()
    }


def _letter(axes: Axes, letter: str) -> None:
    axes.annotate(
        f"({letter})", (0, 1), (-26, 4), xycoords="axes fraction", textcoords="offset points"
    )


def _time_axis(axes: Axes, steps: FloatArray) -> None:
    """Logarithmic time from the first record after the start, which has no place on it."""
    if steps.size > 2:
        axes.set_xscale("log")
        axes.set_xlim(steps[1], steps[-1])
    axes.set_xlabel("step $t$")


def _draw_losses(axes: Axes, series: dict[str, FloatArray]) -> None:
    steps = series["step"]
    for name, label, colour in (
        ("train_loss", "train", BLUE),
        ("test_loss", "test", ORANGE),
    ):
        if not np.isnan(series[name]).all():
            axes.plot(steps, series[name], color=colour, label=label, lw=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("loss (clean labels)")
    _letter(axes, "a")
    _time_axis(axes, steps)
    axes.legend(loc="lower left")


def _draw_norms(axes: Axes, series: dict[str, FloatArray]) -> None:
    steps = series["step"]
    axes.plot(steps, series["norm_mean"], color=BLUE)
    axes.set_ylabel(r"$\frac{1}{m}\sum_i \|w_i\|$", color=BLUE)
    axes.tick_params(axis="y", colors=BLUE)
    axes.set_ylim(bottom=0.0)
    right = axes.twinx()
    right.plot(steps, series["alignment_mean"], color=VERMILION, ls="--")
    right.set_ylabel(r"$\frac{1}{m}\sum_i |\langle w_i, \theta^\star\rangle|$", color=VERMILION)
    right.tick_params(axis="y", colors=VERMILION)
    right.set_ylim(bottom=0.0)
    _letter(axes, "b")
    _time_axis(axes, steps)


def _shade_phases(axes: Axes, trajectory: Trajectory, steps: FloatArray) -> None:
    """Bands for the phases that phases.py finds, named along the top."""
    phases = trajectory.phases()
    starts = [0.0, *(np.ravel(t)[0] for t in (phases.last_escape, phases.alignment))]
    edges = [*(np.inf if np.isnan(t) else t for t in starts), np.inf]
    left, right = axes.get_xlim()
    for (name, colour), begin, end in zip(PHASES, edges[:-1], edges[1:], strict=True):
        begin, end = max(begin, left), min(end, right)
        if begin < end:
            axes.axvspan(begin, end, color=colour, lw=0, zorder=0)
            log = axes.get_xscale() == "log"
            share = np.log(end / begin) / np.log(right / left) if log else (end - begin) / right
            if share > 0.1:
                middle = np.sqrt(begin * end) if log else 0.5 * (begin + end)
                axes.text(
                    middle, 1.01, name, transform=axes.get_xaxis_transform(),
                    ha="center", va="bottom", fontsize=8,
                )  # fmt: skip


def _draw_path(axes: Axes, series: dict[str, FloatArray]) -> None:
    """Tracked neurons in the norm-alignment plane, darker later."""
    steps, norm, alignment = (series[k] for k in ("step", "tracked_norm", "tracked_alignment"))
    _letter(axes, "c")
    axes.set_xlabel(r"norm $\|w_i\|$")
    axes.set_ylabel(r"alignment $|\langle w_i, \theta^\star\rangle|$")
    axes.set_xlim(0.0, 1.05 * np.nanmax(norm, initial=1e-12))
    axes.set_ylim(0.0, 1.05 * np.nanmax(alignment, initial=1e-12))
    _draw_bound(axes, series)
    if steps.size < 3:
        return
    times = LogNorm(steps[1], steps[-1])
    for i in range(norm.shape[1]):
        points = np.stack([norm[:, i], alignment[:, i]], axis=1)
        lines = LineCollection(
            np.stack([points[:-1], points[1:]], axis=1).tolist(),
            cmap="viridis_r", norm=times, lw=0.7, rasterized=True,
        )  # fmt: skip
        lines.set_array(steps[1:])
        axes.add_collection(lines)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(times, "viridis_r"), ax=axes, pad=0.03, aspect=30)
    bar.set_label("step $t$")


def _draw_bound(axes: Axes, series: dict[str, FloatArray]) -> None:
    """Full alignment, |<w, theta_star>| = |w| |theta_star|: no neuron can lie above this line."""
    slope = float(np.linalg.norm(series["theta_star"]))
    axes.axline((0.0, 0.0), slope=slope, color=BLACK, ls=":", lw=0.8)


def _draw_clouds(panels: Any, series: dict[str, FloatArray]) -> None:
    """All neurons at the start, near T/32 and T/8, and at the end."""
    steps, norm, alignment = (series[k] for k in ("cloud_step", "cloud_norm", "cloud_alignment"))
    last = steps[-1]
    chosen = [int(np.argmin(np.abs(steps - last * share))) for share in (0.0, 1 / 32, 1 / 8, 1.0)]
    for panel, k in zip(panels, chosen, strict=True):
        panel.plot(
            norm[k, :MOST_POINTS], alignment[k, :MOST_POINTS],
            ".", ms=1.6, mew=0, alpha=0.6, color=BLUE, rasterized=True,
        )  # fmt: skip
        _draw_bound(panel, series)
        panel.set_title(f"$t$ = {steps[k]:,}")
        panel.set_xlabel(r"$\|w_i\|$")
    _letter(panels[0], "d")
    shown = np.array(chosen)
    panels[0].set_ylabel(r"alignment $|\langle w_i, \theta^\star\rangle|$")
    panels[0].set_xlim(0.0, 1.05 * np.nanmax(norm[shown], initial=1e-12))
    panels[0].set_ylim(0.0, 1.05 * np.nanmax(alignment[shown], initial=1e-12))
