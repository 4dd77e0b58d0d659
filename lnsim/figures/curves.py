"""Curves of one run or of several in the same axes, named by what their configurations differ in.

Of an ensemble the line is the median over replicas and the band reaches from the least to the
largest; where a replica has diverged there is neither, as the others would be a selection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from lnsim.figures import networks, panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import COLOURS, ONE_COLUMN, TWO_COLUMNS, drawing
from lnsim.run import curves, quantities
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SYMBOLS = {
    "lr": r"$\eta$", "sigma": r"$\sigma$", "rho": r"$\rho$", "tau": r"$\tau$", "width": "$m$",
    "dim": "$d$", "samples": "$n$", "batch_size": "$B$", "theta_norm": r"$\|\theta^\star\|$",
    "steps": "$T$", "alpha": r"$\alpha$",
}  # fmt: skip
"""What keys are called in a legend; others by their own names."""

ASIDE = ("steps", "record_every", "test_samples", "tracked", "ledger", "backend", "train_measured")
"""Keys that name a curve only where nothing else differs."""

LINES = ("-", "--", ":", "-.")
ARMS = dict(zip(quantities.ARMS, ("-", "--", ":", ":"), strict=True))
"""Lines of the arms of a network where colours tell runs apart; other arms have LINES in turn."""


def figure(
    trajectories: Sequence[Record], labels: Sequence[str], columns: Sequence[str] = ()
) -> Figure:
    """A panel for each of the `columns` with the curves of all trajectories, so labelled.

    Left out, the columns are those of curves.usual.  Raises ValueError for a column that is no
    curve of some trajectory, and for runs that have nothing in common.
    """
    columns = columns or _shared(trajectories)
    across = 1 if len(columns) == 1 else 2 if len(columns) in (2, 4) else 3
    rows = math.ceil(len(columns) / across)
    with drawing():
        width = ONE_COLUMN if across == 1 else TWO_COLUMNS
        drawn = blank(width, 0.3 + 2.1 * rows, layout="constrained")
        places = drawn.subplots(rows, across, squeeze=False).ravel()
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
            _label_times(axes, trajectories, name)
        if len(columns) > 1:
            for i, axes in enumerate(places[: len(columns)]):
                panels.letter(axes, chr(ord("a") + i))
        _legend(drawn, places[len(columns) :])
    return drawn


def draw(axes: Axes, trajectory: Record, name: str, *, label: str = "", **line: Any) -> None:
    """Draws the curve, or the curve of every arm, that `name` is; `line` goes to matplotlib.

    Names the axes where they have no names.  Scales and limits are left as they are.  Where a
    colour is given the arms differ in their lines, else in their colours.  Raises ValueError for
    what is no curve.
    """
    ended = curves.ends(trajectory)
    for curve, dashes in zip(curves.find(trajectory, name), itertools.cycle(LINES), strict=False):
        if np.isnan(curve.values).all():
            continue  # an arm that was not begun
        arm, colour, its_line = networks.CURVES.get(curve.arm, (curve.arm, None, "-"))
        style = dict(line)
        if curve.arm and "color" in line:
            style["ls"] = ARMS.get(curve.arm, dashes)
        elif colour is not None:
            style |= {"color": colour, "ls": its_line}
        how = "" if curve.arm == "linearized" else ended.get(curve.arm, ended.get("", ""))
        words = ", ".join(word for word in (label, arm, how) if word)
        values = np.where(np.abs(curve.values) < panels.LARGEST, curve.values, np.nan)
        panels.plot(axes, curve.times, np.median(values, axis=0), label=words or None, **style)
        if len(values) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            band = axes.lines[-1].get_color()
            axes.fill_between(curve.times, low, high, color=band, alpha=0.25, lw=0)
    if not axes.get_ylabel():
        axes.set_ylabel(quantities.label(name))
    if not axes.get_xlabel():
        axes.set_xlabel(_time(trajectory, name))


def labels(configs: Sequence[Mapping[str, Any]], otherwise: Sequence[str]) -> list[str]:
    """A name for each configuration: its values of the keys that they differ in.

    Where these do not tell them apart the names are those of `otherwise`.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if _differs(key, configs)]
    telling = [key for key in differing if key not in ASIDE] or differing
    found = [
        ", ".join(_words(key, config[key]) for key in telling if key in config)
        for config in configs
    ]
    return found if len(set(found)) == len(found) else list(otherwise)


def _differs(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    values = [config[key] for config in configs if key in config]
    return any(value != values[0] for value in values)


def _words(key: str, value: Any) -> str:
    if key == "experiment":
        return str(value)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{SYMBOLS.get(key, key.replace('_', ' '))} = {shown}"


def _shared(trajectories: Sequence[Record]) -> list[str]:
    """What is usually drawn of runs of one experiment, or of runs with the same curves."""
    every = [curves.usual(trajectory) for trajectory in trajectories]
    made_by = [trajectory.config.get("experiment") for trajectory in trajectories]
    for name, usual in zip(made_by, every, strict=True):
        if name != made_by[0] and usual != every[0]:
            raise ValueError(
                f"runs of {made_by[0]!r} and {name!r} have other curves: name a --column of both"
            )
    shared = [name for name in every[0] if all(name in other for other in every)]
    if not shared:
        raise ValueError("there is no curve to draw")
    return shared


def _time(trajectory: Record, name: str) -> str:
    """What a curve is over, as a label."""
    return quantities.label(curves.axis(trajectory, name))


def _scale(axes: Axes, drawn: Sequence[curves.Curve], name: str) -> None:
    """Losses are on a logarithmic axis, means over neurons on one from 0."""
    values = np.concatenate([curve.values.ravel() for curve in drawn])
    values = values[np.abs(values) < panels.LARGEST]
    if name.endswith("_loss") and any(curve.arm for curve in drawn):
        arms = {curve.arm for curve in drawn}
        of_all = {a: np.concatenate([c.values for c in drawn if c.arm == a], axis=1) for a in arms}
        panels.network_losses_axis(axes, of_all)
    elif name.endswith("_loss"):
        panels.loss_axis(axes, values[values > 0])
    elif name in quantities.TABLE and quantities.TABLE[name].from_zero and values.size:
        axes.set_ylim(bottom=0.0)


def _label_times(axes: Axes, trajectories: Sequence[Record], name: str) -> None:
    """The horizontal axis of all runs' times."""
    over = curves.axis(trajectories[0], name)
    if over == "kept_percent":
        panels.percent_axis(axes)
        return
    every = [t[curves.axis(t, name)] for t in trajectories]
    # A logarithmic axis begins where all runs have a record: from 0 on there is nothing to draw.
    first = max(times[min(1, times.size - 1)] for times in every)
    steps = np.unique(np.concatenate([[0], *(times[times >= first] for times in every)]))
    panels.time_axis(axes, steps, log=curves.of_two_layer(trajectories[0]))
    axes.set_xlabel(_time(trajectories[0], name))


def _legend(drawn: Figure, free: Any) -> None:
    """One legend, where a curve has a name: in a place that is free, else below all panels."""
    handles = {
        label: handle
        for axes in drawn.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles and len(free):
        free[0].legend(handles.values(), handles, loc="center left")
    elif handles:
        longest = max(map(len, handles))
        across = max(1, min(len(handles), int(14 * drawn.get_figwidth() / longest)))
        drawn.legend(handles.values(), handles, loc="outside lower center", ncols=across)
