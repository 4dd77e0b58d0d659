"""The figures of networks on images: `wide-resnet`, `wide-resnet-sam` and `resnet`.

A caption at the foot of each names the preset, the keys that differ from it, and the data.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from lnsim.figures import panels
from lnsim.figures.canvas import blank
from lnsim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    TWO_COLUMNS,
    VERMILION,
    drawing,
    letters,
    pt,
)
from lnsim.run import curves, quantities
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARPNESS = quantities.label("sharpness")
ARM_STYLES = {
    "clean": ("gradient descent", BLUE, "-"),
    "noisy": ("label noise", VERMILION, "-"),
    "sam": ("SAM", GREEN, "-"),
    "linearized": ("linearised", BLACK, "--"),
}
"""Every curve of a Wide ResNet by its prefix: name, colour, line style."""
PANELS = (
    ("train_loss", "training loss (clean labels)"),
    ("test_loss", "test loss"),
    ("first_layer_norm", r"first layer $\|W_1(t)\|_F$"),
    ("ntk_distance", r"kernel $\|K_t - K_0\|_F\,/\,\|K_0\|_F$"),
    ("sharpness", SHARPNESS),
    ("hessian_trace", "trace of the Hessian"),
)
"""Suffix of the arrays' names, and label of the axis."""
TIMES = {
    "ntk_distance": "kernel_step", "sharpness": "curvature_step", "hessian_trace": "curvature_step"
}  # fmt: skip
"""The arrays over which these are, in place of `step`."""
TAU_COLOURS = (BLACK, SKY, BLUE, VERMILION, ORANGE, GREEN, PURPLE)
"""Colours of the label noise levels, in order and repeated."""
CAPTION_WIDTH = 140
"""Characters in a line of the caption."""


def ending(trajectory: Record) -> list[str]:
    """A few words on each arm that did not run to its end."""
    return [
        f"{ARM_STYLES.get(arm, (arm,))[0]} {ending}".strip()
        for arm, ending in curves.ends(trajectory).items()
    ]


def of_arms(trajectory: Record, caption: str) -> Figure:
    """Losses, first-layer norm, kernel distance, sharpness and trace of a Wide ResNet's runs.

    Leaves out what was never measured.
    """
    shown = [panel for panel in PANELS if _times(trajectory, panel[0]).size]
    rows, columns = panels.grid(len(shown))
    with drawing():
        figure, bottom = _with_caption(4.3, caption)
        margins = {"left": 0.095 if columns == 2 else 0.1, "right": 0.98}
        spaces = {"wspace": 0.28 if columns == 2 else 0.52, "hspace": 0.42}
        axes = figure.subplots(
            rows, columns, gridspec_kw={**margins, "bottom": bottom, "top": 0.94, **spaces}
        ).ravel()
        for panel in axes[len(shown) :]:
            panel.remove()
        for panel, letter, (quantity, label) in zip(axes, "abcdef", shown, strict=False):
            _draw_arms(panel, trajectory, quantity)
            panel.set_ylabel(label)
            panels.letter(panel, letter)
        axes[0].legend(loc="best")
        axes[2].ticklabel_format(axis="y", useOffset=False)
    return figure


def _times(trajectory: Record, quantity: str) -> Any:
    """The steps at which `quantity` was measured; none in a run without it."""
    return trajectory.arrays.get(TIMES.get(quantity, "step"), np.empty(0))


def _draw_arms(axes: Axes, trajectory: Record, quantity: str) -> None:
    """Draws `quantity` of every arm that has it."""
    names = {prefix: f"{prefix}_{quantity}" for prefix in ARM_STYLES}
    of_all = {k: trajectory[name] for k, name in names.items() if name in trajectory.arrays}
    for prefix, values in of_all.items():
        name, colour, style = ARM_STYLES[prefix]
        if np.isfinite(values).any():
            steps = _times(trajectory, quantity)
            panels.plot(axes, steps, values, color=colour, ls=style, label=name)
    if quantity.endswith("loss"):
        panels.network_losses_axis(axes, of_all)
    panels.time_axis(axes, trajectory["step"], log=False)
    if quantity == "ntk_distance":
        axes.legend(loc="best")
        axes.set_ylim(bottom=0.0)
    elif quantity == "sharpness":
        values = np.concatenate([np.empty(0), *of_all.values()])
        panels.sharpness_axis(axes, values, float(trajectory.config["lr"]))
    elif quantity == "hessian_trace":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def epochs_and_pruning(trajectory: Record, caption: str) -> Figure:
    """Test loss and accuracy against the epoch, and accuracy against the share of weights kept.

    Thin lines are the measured accuracy, thick lines its exponential moving average.  A run that
    measured it has a fourth panel, the sharpness.
    """
    has_sharpness = _times(trajectory, "sharpness").size > 0
    with drawing():
        figure, bottom = _with_caption(4.6 if has_sharpness else 2.7, caption)
        margins: dict[str, Any] = {"left": 0.075, "right": 0.985, "bottom": bottom}
        if has_sharpness:
            spaces = {"top": 0.94, "wspace": 0.22, "hspace": 0.42}
            axes = figure.subplots(2, 2, gridspec_kw={**margins, **spaces}).ravel()
        else:
            axes = figure.subplots(1, 3, gridspec_kw={**margins, "top": 0.91, "wspace": 0.33})
        loss, accuracy, pruned = axes[:3]
        epochs, kept = trajectory["epoch"], trajectory["kept_percent"]
        for i, tau in enumerate(trajectory["tau"]):
            if np.isnan(trajectory["test_loss"][i]).all():
                continue
            style: dict[str, Any] = {"color": TAU_COLOURS[i % len(TAU_COLOURS)]}
            label = rf"$\tau$ = {tau:g}"
            panels.plot(loss, epochs, trajectory["test_loss"][i], label=label, **style)
            raw, smooth = (
                100 * trajectory[f"{name}test_accuracy"][i] for name in ("", "smoothed_")
            )
            panels.plot(accuracy, epochs, raw, lw=pt(0.5), alpha=0.45, **style)
            panels.plot(accuracy, epochs, smooth, lw=pt(1.5), label=label, **style)
            panels.plot(
                pruned, kept, 100 * trajectory["pruned_accuracy"][i], label=label, marker="o",
                ms=pt(2), **style,
            )  # fmt: skip
            if has_sharpness:
                steps = _times(trajectory, "sharpness")
                at = np.interp(steps, trajectory["step"], epochs)
                panels.plot(axes[3], at, trajectory["sharpness"][i], label=label, **style)
        over_time = [(loss, "test loss (cross-entropy)"), (accuracy, "test accuracy (%)")]
        if has_sharpness:
            over_time.append((axes[3], SHARPNESS))
            panels.sharpness_axis(axes[3], trajectory["sharpness"], None)
        for panel, label in over_time:
            panels.time_axis(panel, epochs, log=False)
            panel.set_xlabel("epoch")
            panel.set_ylabel(label)
        panels.percent_axis(pruned)
        pruned.set_ylabel("pruned test accuracy (%)")
        for panel, letter in zip(axes, "abcd", strict=False):
            panels.letter(panel, letter)
        pruned.legend(loc="best")
    return figure


def _with_caption(height: float, caption: str) -> tuple[Figure, float]:
    """A figure `height` inches high above its caption, and the bottom margin of its axes."""
    lines = textwrap.wrap(caption, CAPTION_WIDTH)
    foot = 0.08 + 0.125 * len(lines)
    figure = blank(TWO_COLUMNS, height + foot)
    figure.text(0.01, 0.04 / (height + foot), "\n".join(lines), fontsize=letters(7), va="bottom")
    return figure, (foot + 0.47) / (height + foot)
