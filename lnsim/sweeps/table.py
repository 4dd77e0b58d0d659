"""The points of a sweep as plain data: rows, columns, and selection of rows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lnsim.base import config as configs

CLOSE = 1e-6
"""Relative difference up to which a requested value matches a value of the grid."""


@dataclass(frozen=True)
class Table:
    """The points of a results file, sorted by the swept keys, then by the seed.

    `rows` are dicts of configuration and summary (points.py), with None for no value; `swept` are
    the swept keys; `base` holds the keys that all points have in common.  `missing` is the number
    of requested points that were not run, because the sweep was stopped; `new` the number run now.
    `predicted`: whether theory filled the table, and nothing was run.
    """

    folder: Path
    experiment: str
    swept: tuple[str, ...]
    base: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    missing: int = 0
    new: int = 0
    predicted: bool = False

    def __repr__(self) -> str:
        over = ", ".join(self.swept)
        points = "predicted points" if self.predicted else "points"
        name = type(self).__name__
        return f"<{name} of {self.experiment} over {over}: {len(self.rows)} {points}>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column, (points,): words, int64, or float64 with NaN for no value."""
        if not self.rows or name not in self.rows[0]:
            known = self.rows[0] if self.rows else ()
            raise KeyError(f"no column {name!r}: {configs.nearest(name, known)}")
        values = [row[name] for row in self.rows]
        if any(isinstance(value, str) for value in values):
            return np.array(["" if value is None else value for value in values])
        if all(type(value) is int for value in values):
            return np.array(values)
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    def table(self) -> dict[str, NDArray[Any]]:
        """Every column by name, each (points,)."""
        return {name: self[name] for name in self.rows[0]} if self.rows else {}

    def where(self, fixed: Mapping[str, Any]) -> Self:
        """The points at which the keys have these values; the keys are then no longer swept.

        Raises ValueError for a key that is not swept and a value that is not in the grid.
        """
        rows, swept = list(self.rows), list(self.swept)
        for key, value in fixed.items():
            if key not in (*swept, "seed"):
                known = ", ".join((*swept, "seed"))
                raise ValueError(f"{key!r} is not swept here: there are {known}")
            values = sorted({row[key] for row in rows})
            chosen = [v for v in values if _same(v, value)]
            if not chosen:
                raise ValueError(f"{key} never is {value!r}: there are {_shortened(values)}")
            rows = [row for row in rows if row[key] in chosen]
            swept = [k for k in swept if k != key]
        return replace(self, rows=rows, swept=tuple(swept))

    def csv(self) -> str:
        """All columns as CSV, with floats to the last bit and empty cells for None."""
        text = io.StringIO(newline="")
        if self.rows:
            writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return text.getvalue()


def _same(value: Any, asked: Any) -> bool:
    """Whether a value of the grid matches the requested one."""
    if isinstance(value, str) or isinstance(asked, str):
        return bool(value == asked)
    return math.isclose(value, asked, rel_tol=CLOSE)


def _shortened(values: Sequence[Any]) -> str:
    """The values as text, or the first and last four of ten or more."""
    words = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(words if len(words) < 10 else [*words[:4], "...", *words[-4:]])
