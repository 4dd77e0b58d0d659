"""The figures of networks on images: `wide-resnet`, `wide-resnet-sam` and `resnet`.

A caption at the foot of each names the preset, the keys that differ from it, and the data.
"""

from __future__ import annotations

import textwrap
from typing import Any

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
from lnsim.run import curves
from lnsim.run.record import Record

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
)
"""Suffix of the arrays' names, and label of the axis."""
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


def four_panels(trajectory: Record, caption: str) -> Figure:
    """Training loss, test loss, first-layer norm and kernel distance of a Wide ResNet's runs.

    Leaves out the kernel distance if it was never measured.
    """
    shown = PANELS if trajectory["kernel_step"].size else PANELS[:3]
    with drawing():
        figure, bottom = _with_caption(4.3, caption)
        margins = {"left": 0.095, "right": 0.98, "bottom": bottom, "top": 0.94}
        spaces = {"wspace": 0.28, "hspace": 0.42}
        axes = figure.subplots(2, 2, gridspec_kw={**margins, **spaces}).ravel()
        for panel in axes[len(shown) :]:
            panel.remove()
        for panel, letter, (quantity, label) in zip(axes, "abcd", shown, strict=False):
            steps = trajectory["kernel_step" if quantity == "ntk_distance" else "step"]
            of_all = {
                prefix: trajectory[f"{prefix}_{quantity}"]
                for prefix in ARM_STYLES
                if f"{prefix}_{quantity}" in trajectory.arrays
            }
            for prefix, values in of_all.items():
                name, colour, style = ARM_STYLES[prefix]
                if np.isfinite(values).any():
                    panels.plot(panel, steps, values, color=colour, ls=style, label=name)
            if quantity.endswith("loss"):
                panels.network_losses_axis(panel, of_all)
            panels.time_axis(panel, trajectory["step"], log=False)
            panel.set_ylabel(label)
            panels.letter(panel, letter)
        axes[0].legend(loc="best")
        axes[2].ticklabel_format(axis="y", useOffset=False)
        if len(shown) == 4:
            axes[3].legend(loc="best")
            axes[3].set_ylim(bottom=0.0)
    return figure


def epochs_and_pruning(trajectory: Record, caption: str) -> Figure:
    """Test loss and accuracy against the epoch, and accuracy against the share of weights kept.

    Thin lines are the measured accuracy, thick lines its exponential moving average.
    """
    with drawing():
        figure, bottom = _with_caption(2.7, caption)
        margins: dict[str, Any] = {"left": 0.075, "right": 0.985, "bottom": bottom, "top": 0.91}
        loss, accuracy, pruned = figure.subplots(1, 3, gridspec_kw={**margins, "wspace": 0.33})
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
        for axes, label in (
            (loss, "test loss (cross-entropy)"),
            (accuracy, "test accuracy (%)"),
        ):
            panels.time_axis(axes, epochs, log=False)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
        panels.percent_axis(pruned)
        pruned.set_ylabel("pruned test accuracy (%)")
        for axes, letter in zip((loss, accuracy, pruned), "abc", strict=True):
            panels.letter(axes, letter)
        pruned.legend(loc="best")
    return figure


def _with_caption(height: float, caption: str) -> tuple[Figure, float]:
    """A figure `height` inches high above its caption, and the bottom margin of its axes."""
    lines = textwrap.wrap(caption, CAPTION_WIDTH)
    foot = 0.08 + 0.125 * len(lines)
    figure = blank(TWO_COLUMNS, height + foot)
    figure.text(0.01, 0.04 / (height + foot), "\n".join(lines), fontsize=letters(7), va="bottom")
    return figure, (foot + 0.47) / (height + foot)
