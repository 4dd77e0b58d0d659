"""Curves of one or several runs in the same axes, labelled by the keys in which the runs differ.

For an ensemble the line is the median over replicas and the band reaches from the minimum to the
maximum.  Both stop where a replica has diverged, as the others would be a biased selection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from lnsim.figures import networks, panels, predicted
from lnsim.figures.canvas import blank
from lnsim.figures.style import BLACK, COLOURS, ONE_COLUMN, TWO_COLUMNS, drawing, pt
from lnsim.run import curves, quantities
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lnsim.theory.cloud import Prediction


SYMBOLS = {
    "lr": r"$\eta$", "sigma": r"$\sigma$", "rho": r"$\rho$", "tau": r"$\tau$", "width": "$m$",
    "dim": "$d$", "samples": "$n$", "batch_size": "$B$", "theta_norm": r"$\|\theta^\star\|$",
    "steps": "$T$", "alpha": r"$\alpha$",
}  # fmt: skip
"""Symbols of keys in a legend; other keys appear by name."""

ASIDE = (
    "steps", "record_every", "test_samples", "tracked", "measures", "ledger", "backend",
    "train_measured",
)  # fmt: skip
"""Keys that label a curve only if no other key differs."""

LINES = ("-", "--", ":", "-.")
ARM_LINES = dict(zip(quantities.ARMS, ("-", "--", ":", ":"), strict=True))
"""Line style of each arm of a network when colours distinguish runs; other arms cycle LINES."""


def figure(
    trajectories: Sequence[Record],
    labels: Sequence[str],
    columns: Sequence[str] = (),
    prediction: Prediction | str = "",
) -> Figure:
    """One panel per column, each with that curve of all trajectories, labelled by `labels`.

    By default the columns are those of curves.usual.  `prediction` is over them, or the legend has
    the reason why there is none.  Raises ValueError if a trajectory lacks a column, or if the runs
    have no curve in common.
    """
    columns = columns or _shared(trajectories)
    across = 1 if len(columns) == 1 else 2 if len(columns) in (2, 4) else 3
    rows = math.ceil(len(columns) / across)
    with drawing():
        width = ONE_COLUMN if across == 1 else TWO_COLUMNS
        result = blank(width, 0.3 + 2.1 * rows, layout="constrained")
        places = result.subplots(rows, across, squeeze=False).ravel()
        for axes in places[len(columns) :]:
            axes.set_axis_off()
        looks: list[dict[str, Any]] = [{}]
        if len(trajectories) > 1:
            looks = [{"color": c, "ls": line} for line in LINES for c in COLOURS]
        for axes, name in zip(places, columns, strict=False):
            for trajectory, label, look in zip(
                trajectories, labels, itertools.cycle(looks), strict=False
            ):
                draw(axes, trajectory, name, label=label, **look)
            _scale(axes, [c for t in trajectories for c in curves.find(t, name)], name)
            if name.endswith("sharpness"):
                _draw_limits(axes, trajectories, looks)
            if not isinstance(prediction, str):
                predicted.draw(axes, prediction, name)
            _label_times(axes, trajectories, name)
        if len(columns) > 1:
            for i, axes in enumerate(places[: len(columns)]):
                panels.letter(axes, chr(ord("a") + i))
        free = places[len(columns) :]
        told = {}
        if prediction and (
            isinstance(prediction, str) or not set(columns).isdisjoint(prediction.names)
        ):
            letters = 32 if len(free) else 50 if across == 1 else 110
            entry, label = predicted.entry(prediction, letters)
            told[label] = entry
        _legend(result, free, told)
    return result


def draw(axes: Axes, trajectory: Record, name: str, *, label: str = "", **line: Any) -> None:
    """Draws the curve `name`, once for each arm; `line` goes to matplotlib.

    Labels axes that have no label; does not change scales or limits.  If `line` has a colour, arms
    differ in line style, otherwise in colour.  Raises ValueError if `name` is not a curve.
    """
    endings = curves.ends(trajectory)
    for curve, dashes in zip(curves.find(trajectory, name), itertools.cycle(LINES), strict=False):
        if np.isnan(curve.values).all():
            continue  # an arm that has not started
        arm, colour, line_style = networks.ARM_STYLES.get(curve.arm, (curve.arm, None, "-"))
        style = dict(line)
        if curve.arm and "color" in line:
            style["ls"] = ARM_LINES.get(curve.arm, dashes)
        elif colour is not None:
            style |= {"color": colour, "ls": line_style}
        ending = "" if curve.arm == "linearized" else endings.get(curve.arm, endings.get("", ""))
        full_label = ", ".join(part for part in (label, arm, ending) if part)
        values = np.where(np.abs(curve.values) < panels.LARGEST, curve.values, np.nan)
        panels.plot(axes, curve.times, np.median(values, axis=0), label=full_label or None, **style)
        if len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            band = axes.lines[-1].get_color()
            axes.fill_between(curve.times, low, high, color=band, alpha=0.25, lw=0)
    if not axes.get_ylabel():
        axes.set_ylabel(quantities.label(name))
    if not axes.get_xlabel():
        axes.set_xlabel(_time(trajectory, name))


def labels(configs: Sequence[Mapping[str, Any]], otherwise: Sequence[str]) -> list[str]:
    """A label for each configuration: its values of the keys in which they differ.

    If these labels are not unique, returns `otherwise`.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if _differs(key, configs)]
    telling = [key for key in differing if key not in ASIDE] or differing
    names = [
        ", ".join(_assignment(key, config[key]) for key in telling if key in config)
        for config in configs
    ]
    return names if len(set(names)) == len(names) else list(otherwise)


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    values = [config[key] for config in configs if key in config]
    return any(value != values[0] for value in values)


def _assignment(key: str, value: Any) -> str:
    if key == "experiment":
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{SYMBOLS.get(key, key.replace('_', ' '))} = {shown}"


def _shared(trajectories: Sequence[Record]) -> list[str]:
    """The usual columns that all trajectories have."""
    columns = [curves.usual(trajectory) for trajectory in trajectories]
    experiments = [trajectory.config.get("experiment") for trajectory in trajectories]
    for name, usual in zip(experiments, columns, strict=True):
        if name != experiments[0] and usual != columns[0]:
            raise ValueError(
                f"runs of {experiments[0]!r} and {name!r} have different curves: "
                "choose with --column one that both have"
            )
    shared = [name for name in columns[0] if all(name in other for other in columns)]
    if not shared:
        raise ValueError("there is no curve to draw")
    return shared


def _time(trajectory: Record, name: str) -> str:
    """The label of a curve's horizontal axis."""
    return quantities.label(curves.axis(trajectory, name))


def _scale(axes: Axes, drawn_curves: Sequence[curves.Curve], name: str) -> None:
    """Makes the axis of losses logarithmic, and starts that of means over neurons at 0."""
    values = np.concatenate([curve.values.ravel() for curve in drawn_curves])
    values = values[np.abs(values) < panels.LARGEST]
    if name.endswith("_loss") and any(curve.arm for curve in drawn_curves):
        arms = {curve.arm for curve in drawn_curves}
        of_all = {
            a: np.concatenate([c.values for c in drawn_curves if c.arm == a], axis=1) for a in arms
        }
        panels.network_losses_axis(axes, of_all)
    elif name.endswith("_loss"):
        panels.loss_axis(axes, values[values > 0])
    elif name in quantities.TABLE and quantities.TABLE[name].from_zero and values.size:
        axes.set_ylim(bottom=0.0)


def _draw_limits(
    axes: Axes, trajectories: Sequence[Record], looks: Sequence[Mapping[str, Any]]
) -> None:
    """Draws 2/lr, above which gradient descent is unstable, of every run; once where they agree.

    The axis is logarithmic if all values are above 0 and differ much, and else begins at 0, or
    below it at the least of them.
    """
    limits: dict[float, Any] = {}
    for trajectory, look in zip(trajectories, itertools.cycle(looks), strict=False):
        limit = curves.stability_limit(trajectory)
        if limit is not None:
            limits.setdefault(limit, look.get("color", BLACK))
    heavy = any(trajectory.config.get("momentum") for trajectory in trajectories)
    text = r"$2(1+\beta)/\eta$" if heavy else r"$2/\eta$"
    for number, (limit, colour) in enumerate(limits.items()):
        colour = BLACK if len(limits) == 1 else colour
        label = text if number == 0 else None
        axes.axhline(limit, color=colour, ls=(0, (1, 1)), lw=pt(1.0), label=label)
    drawn = [np.ravel(np.asarray(line.get_ydata(), dtype=float)) for line in axes.get_lines()]
    values = np.concatenate([np.empty(0), *drawn])
    values = values[np.abs(values) < panels.LARGEST]
    least = values.min(initial=np.inf)
    if 0.0 < least < 0.1 * values.max(initial=0.0):
        panels.log_values(axes)
        axes.set_ylim(least / 1.5, 1.5 * values.max())
    else:
        axes.set_ylim(min(0.0, 1.05 * least), panels.limit(values))


def _label_times(axes: Axes, trajectories: Sequence[Record], name: str) -> None:
    """Scales and labels the horizontal axis for the times of all runs."""
    over = curves.axis(trajectories[0], name)
    if over == "kept_percent":
        panels.percent_axis(axes)
        return
    run_times = [t[curves.axis(t, name)] for t in trajectories]
    # A logarithmic axis cannot show step 0: it starts where all runs have a later record.
    first = max(times[min(1, times.size - 1)] for times in run_times)
    steps = np.unique(np.concatenate([[0], *(times[times >= first] for times in run_times)]))
    panels.time_axis(axes, steps, log=curves.of_steps(trajectories[0]))
    axes.set_xlabel(_time(trajectories[0], name))


def _legend(figure: Figure, free: Any, more: Mapping[str, Any]) -> None:
    """One legend of all labelled curves, then of `more`: in an empty panel, or below all panels."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    } | dict(more)
    if handles and len(free):
        free[0].legend(handles.values(), handles, loc="center left")
    elif handles:
        longest = max(map(len, handles))
        across = max(1, min(len(handles), int(14 * figure.get_figwidth() / longest)))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=across)
