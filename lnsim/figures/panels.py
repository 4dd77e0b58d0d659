"""The panels of the figures, each drawn from the arrays of one run.

`series` maps names to the arrays of one replica: see `first_replica`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from lnsim.base.checks import FloatArray
from lnsim.figures.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION, letters, pt
from lnsim.run import phases
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


Series = dict[str, Any]

PHASES = (("lazy", "#EDEDED"), ("I", "#FFF4DC"), ("II", "#E3F1FA"))
"""Label and shade of the lazy regime, Phase I (norms shrink) and Phase II (alignment)."""
ON_SHADE = "#FFF4DC"
"""Shade of windows in which the noise, or the oscillation, is on."""
MOST_POINTS = 5000
"""Largest number of neurons drawn of a cloud; of a wider network the first ones are drawn."""
LARGEST = 1e150
"""Larger values, as a diverged run has at its end, are not drawn: no axis can hold them."""
LOSS_FLOOR = 1e-12
"""Losses below this fraction of the first are rounding errors and not shown."""
NEURON = r"\|w_i\|"
MEAN = r"\frac{1}{m}\sum_i"
ALIGNMENT = r"|\langle w_i, \theta^\star\rangle|"
ALIGNMENTS = r"\|\Theta^\star w_i\|"
LOSSES = (
    ("linearized_train_loss", "lin. train", SKY, 0.6),
    ("linearized_test_loss", "lin. test", ORANGE, 0.6),
    ("train_loss", "train", BLUE, 0.8),
    ("test_loss", "test", VERMILION, 0.8),
)


def first_replica(trajectory: Record) -> Series:
    """The arrays of a run by name; of an ensemble, those of its first replica."""
    shared = ("step", "tracked_neurons", "cloud_step", "theta_star", "diverged_at", "model")
    ensemble = trajectory["train_loss"].ndim == 2
    return {
        name: value[0] if ensemble and name not in shared else value
        for name, value in trajectory.arrays.items()
    }


def alignment_symbol(series: Series) -> str:
    """The symbol of a neuron's alignment, with one output or several."""
    return ALIGNMENT if len(np.atleast_2d(series["theta_star"])) == 1 else ALIGNMENTS


def grid(count: int) -> tuple[int, int]:
    """Rows and columns of `count` panels, at most 6."""
    return (2, 2) if count <= 4 else (2, 3)


def letter(axes: Axes, name: str, *, up: float = 4) -> None:
    """Writes the letter of the panel `up` points above its top left corner."""
    axes.annotate(
        f"({name})", (0, 1), (pt(-26), pt(up)), xycoords="axes fraction", textcoords="offset points"
    )


def plot(axes: Axes, steps: FloatArray, values: FloatArray, **style: Any) -> None:
    """Draws a line over the records, or points if fewer than three are finite."""
    shown = np.where(np.abs(values) < LARGEST, values, np.nan)
    if np.isfinite(shown).sum() < 3:
        style = {"marker": "o", "ms": pt(3), **style}
    axes.plot(steps, shown, **style)


def time_axis(axes: Axes, steps: FloatArray, *, log: bool = True) -> None:
    """Sets up the time axis: logarithmic, from the first record after step 0.

    The axis is linear if these records span less than a factor of 30, or if `log` is false.
    """
    if log and steps.size > 2 and steps[-1] > 30 * steps[1]:
        axes.set_xscale("log")
        axes.minorticks_off()  # they would take a fifth of the drawing time
        axes.set_xlim(steps[1], steps[-1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlim(*((0, steps[-1]) if steps[-1] > 0 else (-1, 1)))
    axes.set_xlabel("step $t$")


def log_values(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, labelled only at powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())


def loss_axis(axes: Axes, values: FloatArray) -> None:
    """Makes the vertical axis logarithmic for losses; `values` are the losses above 0."""
    if values.size:
        log_values(axes)
        _whole_decades(axes, values, values.min())


def network_losses_axis(axes: Axes, losses: Mapping[str, FloatArray]) -> None:
    """Makes the axis logarithmic for one loss of several networks and of their linearisation.

    The limits reach at most one decade above the networks' losses and three below: a linearisation
    that a large learning rate makes unstable leaves the axes instead of flattening the others.
    """
    axes.set_yscale("log")
    own = np.concatenate([v.ravel() for name, v in losses.items() if name != "linearized"])
    own = own[(own > 0) & (own < LARGEST)]
    if own.size:
        values = np.concatenate([v.ravel() for v in losses.values()])
        near = values[(values >= own.min() / 1e3) & (values <= 10 * own.max())]
        axes.set_ylim(near.min() / 1.2, 1.2 * near.max())


def sharpness_axis(axes: Axes, values: FloatArray, lr: float | None) -> None:
    """Makes the axis of sharpnesses logarithmic, with a line at 2 / lr where `lr` is given.

    Above it gradient descent on the whole batch is unstable.  It is left out where it is more than
    a decade away from all `values`: it would flatten them.
    """
    positive = values[(values > 0) & (values < LARGEST)]
    if positive.size:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if lr is not None and ((positive >= 0.2 / lr) & (positive <= 20.0 / lr)).any():
        axes.axhline(2.0 / lr, color=BLACK, ls=":", lw=pt(0.8))
        axes.annotate(
            r"$2\,/\,\eta$", (0.97, 2.0 / lr), (0, pt(-2)), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", ha="right", va="top",
        )  # fmt: skip


def percent_axis(axes: Axes) -> None:
    """Makes the horizontal axis the percentage of weights kept, decreasing to the right."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.set_xlabel("weights kept (%)")


def shade_phases(axes: Axes, trajectory: Record, steps: FloatArray, *, named: bool = True) -> None:
    """Shades the phases that phases.py measures, labelled along the top if `named`."""
    times = phases.measure(trajectory)
    starts = [0.0, *(np.ravel(t)[0] for t in (times.last_escape, times.alignment))]
    edges = np.maximum.accumulate([*np.nan_to_num(starts, nan=np.inf), np.inf])
    left, right = axes.get_xlim()
    log = axes.get_xscale() == "log"
    for (name, colour), begin, end in zip(PHASES, edges[:-1], edges[1:], strict=True):
        begin, end = max(begin, left), min(end, right)
        if begin < end and steps.size > 1:
            axes.axvspan(begin, end, color=colour, lw=0, zorder=0)
            share = np.log(end / begin) / np.log(right / left) if log else (end - begin) / right
            if named and share > 0.1:
                middle = np.sqrt(begin * end) if log else 0.5 * (begin + end)
                axes.text(
                    middle, 1.01, name, transform=axes.get_xaxis_transform(),
                    ha="center", va="bottom", fontsize=letters(8),
                )  # fmt: skip


def shade_windows(axes: Axes, period: int, last: int) -> None:
    """Shades the windows in which the noise is on; one mean shade if there are too many."""
    if last > 1000 * period:
        axes.axvspan(0, last, color=ON_SHADE, lw=0, zorder=0, alpha=0.5)
        return
    for begin in range(0, last, 2 * period):
        axes.axvspan(begin, min(begin + period, last), color=ON_SHADE, lw=0, zorder=0)


def draw_losses(axes: Axes, series: Series) -> list[str]:
    """Clean training and test loss, and those of the linearised twin; returns the names drawn."""
    shown: list[FloatArray] = []
    names = []
    for name, label, colour, width in LOSSES:
        values = series.get(name)
        if values is None or np.isnan(values).all():
            continue
        plot(axes, series["step"], values, color=colour, label=label, lw=pt(width))
        shown.append(values[(values > 0) & (values < LARGEST)])
        names.append(name)
    log_values(axes)
    # The network's own losses set the lower limit; the twin's may fall below it.
    own = [values for values in shown[-2:] if values.size]
    lowest = min((values.min() for values in own), default=0.0)
    _whole_decades(axes, np.concatenate([np.empty(0), *shown]), lowest)
    axes.set_ylabel("loss (clean labels)")
    for line in axes.get_lines():
        _, *values = np.asarray(line.get_ydata())
        if values and max(values) < axes.get_ylim()[0]:  # the line lies wholly below the axis
            line.set_label(f"{line.get_label()} → {values[-1]:.0e}")
    handles, labels = axes.get_legend_handles_labels()
    all_fell = bool(own) and all(v[-1] < 1e-3 * v[0] for v in shown if v.size)
    axes.legend(handles[::-1], labels[::-1], loc="upper right" if all_fell else "lower left")
    return names


def _whole_decades(axes: Axes, values: FloatArray, lowest: float) -> None:
    """Sets limits from `lowest` that include a power of ten and exclude rounding errors."""
    if values.size:
        low, high = max(lowest, LOSS_FLOOR * values[0]), values.max()
        if high < 10 * low:
            axes.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.floor(np.log10(high) + 1))
        elif low > values.min():
            axes.set_ylim(low, 10 * high)


def draw_norms(axes: Axes, series: Series) -> Axes:
    """Draws the mean norm and, on a second axis, which it returns, the mean alignment."""
    steps = series["step"]
    plot(axes, steps, series["norm_mean"], color=BLUE)
    axes.set_ylabel(f"${MEAN} {NEURON}$", color=BLUE)
    axes.tick_params(axis="y", colors=BLUE)
    axes.set_ylim(0.0, limit(series["norm_mean"]))
    right = axes.twinx()
    plot(right, steps, series["alignment_mean"], color=VERMILION)
    right.set_ylabel(f"${MEAN} {alignment_symbol(series)}$", color=VERMILION)
    right.tick_params(axis="y", colors=VERMILION)
    right.set_ylim(0.0, limit(series["alignment_mean"]))
    right.spines["right"].set_visible(True)
    return right


def draw_path(axes: Axes, series: Series) -> None:
    """Tracked neurons in the norm-alignment plane: a dot at the start, then darker with time."""
    steps, norm, alignment = (series[k] for k in ("step", "tracked_norm", "tracked_alignment"))
    axes.set_xlabel(f"norm ${NEURON}$")
    axes.set_ylabel(f"alignment ${alignment_symbol(series)}$")
    axes.set_xlim(0.0, limit(norm))
    axes.set_ylim(0.0, limit(alignment))
    _draw_bound(axes, series)
    if steps.size < 3:
        axes.plot(norm.ravel(), alignment.ravel(), "o", ms=pt(3), color=BLUE)
        return
    axes.plot(norm[0], alignment[0], "o", ms=pt(2.2), mew=0, color=BLACK)
    times = LogNorm(steps[1], steps[-1])
    for i in range(norm.shape[1]):
        points = np.stack([norm[:, i], alignment[:, i]], axis=1)
        lines = LineCollection(
            np.stack([points[:-1], points[1:]], axis=1).tolist(),
            cmap="viridis_r", norm=times, lw=pt(0.7), rasterized=True,
        )  # fmt: skip
        lines.set_array(steps[1:])
        axes.add_collection(lines)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(times, "viridis_r"), ax=axes, pad=0.03, aspect=30)
    bar.minorticks_off()
    bar.set_label("step $t$")


def limit(values: FloatArray) -> float:
    """An upper limit for an axis that starts at 0."""
    return 1.05 * float(np.max(values, initial=1e-12, where=np.abs(values) < LARGEST))


def _draw_bound(axes: Axes, series: Series) -> None:
    """Full alignment, |<w, theta_star>| = |w| |theta_star|: no neuron can lie above this line.

    With several outputs the slope is the largest singular value of Theta* : (C, d).
    """
    theta_star = series["theta_star"]
    slope = float(np.linalg.norm(theta_star, None if len(np.shape(theta_star)) == 1 else 2))
    axes.axline((0.0, 0.0), slope=slope, color=BLACK, ls=":", lw=pt(0.8))


def draw_clouds(panels: Any, series: Series) -> list[int]:
    """All neurons at the start, near T/32 and T/8, and at the end; returns the steps shown."""
    steps = series["cloud_step"]
    last = steps[-1]
    chosen = [int(np.argmin(np.abs(steps - last * share))) for share in (0.0, 1 / 32, 1 / 8, 1.0)]
    for panel, k in zip(panels, chosen, strict=True):
        draw_cloud(panel, series, k)
    cloud_axes(panels[0], series, np.array(chosen))
    return [int(steps[k]) for k in chosen]


def draw_cloud(axes: Axes, series: Series, k: int) -> Line2D:
    """Draws all neurons at the k-th record of clouds, titled by its step; returns the points."""
    (points,) = axes.plot(
        *cloud(series, k), ".", ms=pt(1.6 if series["cloud_norm"].shape[1] > 100 else 4), mew=0,
        alpha=0.6, color=BLUE, rasterized=True,
    )  # fmt: skip
    _draw_bound(axes, series)
    axes.set_title(cloud_time(series, k))
    axes.set_xlabel(f"${NEURON}$")
    return points


def cloud(series: Series, k: int) -> tuple[FloatArray, FloatArray]:
    """Norm and alignment of the neurons drawn at the k-th record of clouds."""
    return series["cloud_norm"][k, :MOST_POINTS], series["cloud_alignment"][k, :MOST_POINTS]


def cloud_time(series: Series, k: int) -> str:
    """The step of the k-th record of clouds, as a title."""
    return f"$t$ = {series['cloud_step'][k]:,}"


def cloud_axes(axes: Axes, series: Series, shown: Any) -> None:
    """Labels the vertical axis, and sets limits that hold the cloud records of index `shown`."""
    axes.set_ylabel(f"alignment ${alignment_symbol(series)}$")
    axes.set_xlim(0.0, limit(series["cloud_norm"][shown]))
    axes.set_ylim(0.0, limit(series["cloud_alignment"][shown]))


def draw_norm_squared(axes: Axes, series: Series) -> None:
    """|W|_F^2, on a logarithmic axis where it changes by a factor of 3."""
    squares = series["norm_squared"]
    plot(axes, series["step"], squares, color=SKY, lw=pt(2.4))
    if np.max(squares) < 3 * np.min(squares):
        axes.set_ylim(0.0, limit(squares))
    else:
        log_values(axes)
    axes.set_ylabel(r"$\|W\|_F^2$")


def draw_trace(axes: Axes, series: Series, least: float) -> None:
    """The trace of the Hessian; dotted, if it is known, its least value among interpolators."""
    trace = series["hessian_trace"]
    plot(axes, series["step"], trace, color=GREEN)
    if np.isfinite(least) and least > 0.0:
        axes.axhline(least, color=BLACK, ls=":", lw=pt(0.9))
        axes.annotate(
            "least value", (0.04, least), (0, pt(2)), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", va="bottom", fontsize=letters(8),
        )  # fmt: skip
    levels = np.append(trace[trace < LARGEST], least)
    levels = levels[levels > 0.0]
    if levels.size and levels.max() > 3 * levels.min():
        log_values(axes)
        axes.set_ylim(levels.min() / 1.6, 1.3 * levels.max())
    else:
        axes.set_ylim(0.0, limit(levels))
    axes.set_ylabel(r"$\mathrm{tr}\,H$")


def draw_single_norms(axes: Axes, series: Series) -> None:
    """The mean norm, and those of the tracked neurons."""
    steps = series["step"]
    for i, norm in enumerate(series["tracked_norm"].T):
        label = f"single ${NEURON}$" if i == 0 else None
        plot(axes, steps, norm, color=SKY, lw=pt(0.5), label=label)
    plot(axes, steps, series["norm_mean"], color=BLUE, lw=pt(1.6), label=f"mean ${MEAN} {NEURON}$")
    axes.set_ylabel(f"norm ${NEURON}$")
    axes.set_ylim(0.0, limit(np.append(series["tracked_norm"], series["norm_mean"])))


def draw_second_layer(axes: Axes, series: Series, most: int) -> None:
    """The second-layer weights of the first `most` tracked neurons."""
    colours = (BLUE, VERMILION, GREEN)
    for i, weights in enumerate(series["tracked_second_layer"].T[:most]):
        label = f"$a_{{{series['tracked_neurons'][i] + 1}}}$"
        plot(axes, series["step"], weights, color=colours[i], label=label, lw=pt(0.6), alpha=0.8)
    axes.set_ylabel("weight $a_i$")


def draw_chains(axes: Axes, series: Series, most: int = 4) -> None:
    """The second-layer weights of the first `most` tracked neurons, each on its own level."""
    steps, weights = series["step"], series["tracked_second_layer"][:, :most]
    largest = np.abs(weights).max(initial=1e-12)
    levels = -2.6 * largest * np.arange(weights.shape[1])
    for level, path in zip(levels, weights.T, strict=True):
        axes.axhline(level, color=SKY, lw=pt(0.5))
        plot(axes, steps, level + path, color=BLUE, lw=pt(0.9), drawstyle="steps-post")
    names = [f"$a_{{{i + 1}}}$" for i in series["tracked_neurons"][:most]]
    axes.set_yticks(levels, names)
    if len(names) > 0:
        axes.set_title(rf"each at 0 or $\pm${largest:.3g}")
