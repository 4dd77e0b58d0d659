"""The axes of a sweep's figure: the values of swept keys, their places, and names of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from lnsim.base.checks import FloatArray
from lnsim.run import quantities
from lnsim.sweeps.table import Table

KEY_LABELS = {
    "lr": r"step $\eta$", "sigma": r"label noise $\sigma$", "rho": r"SAM radius $\rho$",
    "width": "width $m$", "dim": "input dimension $d$", "samples": "samples $n$",
    "theta_norm": r"$\|\theta^\star\|$", "momentum": "momentum", "weight_decay": "weight decay",
    "batch_size": "batch size $B$", "steps": "steps $T$",
}  # fmt: skip
COLUMN_LABELS = {
    "first_escape": "first neuron leaves the lazy regime at $t$",
    "last_escape": "last neuron leaves the lazy regime at $t$",
    "decay_time": r"$t$ at which $\|W\|_F^2$ has fallen by $e$",
    "decay_rate": r"decay rate of $\|W\|_F^2$ in Phase I",
    "alignment": "Phase II begins at $t$", "convergence": "Phase II has converged at $t$",
}  # fmt: skip
"""Axis labels of keys, and of columns that are not quantities; others appear by name."""

SHORT_SPAN = 50
"""A logarithmic axis with a smaller ratio of its ends is labelled at 1, 2 and 5 of each decade."""


def name_of(column: str) -> str:
    """The axis label of a column."""
    return COLUMN_LABELS.get(column) or quantities.last_label(column)


class Axis:
    """A swept key along an axis: its values in order, their places, and the borders of cells."""

    def __init__(self, sweep: Table, key: str) -> None:
        self.key = key
        self.values = sorted({row[key] for row in sweep.rows})
        self.index = {value: i for i, value in enumerate(self.values)}
        self.words = not all(isinstance(value, int | float) for value in self.values)
        self.log = not self.words and _even_in_log(np.array(self.values, dtype=np.float64))
        places = range(len(self.values)) if self.words else self.values
        self.places: FloatArray = np.array(list(places), dtype=np.float64)

    @property
    def borders(self) -> FloatArray:
        """The borders of the cells, half way between neighbouring values, (count + 1,)."""
        at = np.log(self.places) if self.log else self.places
        if at.size == 1:
            at = at + np.array([-0.5, 0.5])
        else:
            ends = 1.5 * at[[0, -1]] - 0.5 * at[[1, -2]]
            at = np.concatenate([ends[:1], (at[1:] + at[:-1]) / 2, ends[1:]])
        return np.exp(at) if self.log else at

    def label(self, axis: Any, scale: Any) -> None:
        """Labels an axis, and makes it logarithmic or lists its words where the values need it."""
        if self.log:
            scale("log")
            axis.set_minor_formatter(NullFormatter())
            if self.places[-1] < SHORT_SPAN * self.places[0]:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter("{x:g}")
        if self.words:
            axis.set_ticks(self.places, [str(value) for value in self.values])
        axis.set_label_text(KEY_LABELS.get(self.key, self.key))


def _even_in_log(values: FloatArray) -> bool:
    """Whether ascending values are spaced more evenly on a logarithmic than on a linear axis."""
    if values.size < 2 or values[0] <= 0.0:
        return False
    if values.size == 2:
        return bool(values[1] > 10 * values[0])
    spread = [np.std(np.diff(v)) / np.mean(np.diff(v)) for v in (np.log(values), values)]
    return bool(spread[0] < spread[1])
