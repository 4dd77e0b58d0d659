"""What theory says of a measured map: its regimes, and the boundary between lazy and rich.

A cell of the map is predicted by the law of the cloud (predicted.py), for the first seed there.  As
regimes are connected regions, few cells need it: the cells of a lattice, and between them those of
each block whose corners differ, halved until its corners are neighbours.  The others have the word
of the corners around them.  So the cost grows as the length of the boundaries, not as the map.

Where a cell is rich, the last neuron escapes at a time t <= T, the length of the run, and where it
is lazy at t > T.  The boundary is drawn at log(t/T) = 0 between neighbouring cells, for which the
prediction goes on to REACH times T.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim.base.checks import FloatArray
from lnsim.experiments.case import Case, Start
from lnsim.sweeps import points, predicted
from lnsim.theory.manifold import NoStationaryState

REACH = 4.0
"""The prediction of a cell follows the course up to this many times the length of its run."""

STRIDE = 8
"""Largest distance of neighbouring cells in the first lattice; a smaller island may be missed."""

MOST_VALUES, MOST_OF_SAM = 33, 9
"""Of a key with more values, this many are predicted; of SAM, whose points take longer, fewer."""

Cell = tuple[int, int]
Rows = Mapping[Cell, list[Mapping[str, Any]]]


@dataclass(frozen=True)
class Predicted:
    """The prediction over a map of rows (y) and columns (x).

    `rows`, `columns` are the indices of the cells asked for, `words` : (Y, X) the regimes there, ""
    where theory predicts nothing, `delay` : (Y, X) log(t/T), NaN without lazy or rich.  `agreement`
    is the share of the `count` cells with a prediction and a measurement that have the same regime.
    `without` is the reason why nothing is predicted, or "".
    """

    rows: list[int]
    columns: list[int]
    words: NDArray[Any]
    delay: FloatArray
    agreement: float
    count: int
    without: str


def predict(experiment: str, cells: Rows, shape: Cell) -> Predicted:
    """The prediction over the measured `cells` of a map of this shape."""
    slow = any(row.get("rho") for of_cell in cells.values() for row in of_cell)
    most, stride = (MOST_OF_SAM, STRIDE // 2) if slow else (MOST_VALUES, STRIDE)
    rows, columns = (_thinned(size, most) for size in shape)
    if not points.has_theory(experiment):
        none = np.full((len(rows), len(columns)), np.nan)
        return Predicted(
            rows, columns, np.full(none.shape, ""), none, math.nan, 0, "for this model"
        )
    oracle = _Oracle(experiment, cells, rows, columns)
    words, delay = fill((len(rows), len(columns)), oracle, stride)
    measured = {
        (i, j): usual(row["regime"] for row in cells[rows[i], columns[j]])
        for i, j in np.argwhere(words != "").tolist()
        if (rows[i], columns[j]) in cells
    }
    same = [words[place] == word for place, word in measured.items()]
    agreement = float(np.mean(same)) if same else math.nan
    without = "" if same else oracle.reason
    return Predicted(rows, columns, words, delay, agreement, len(same), without)


def _thinned(size: int, most: int) -> list[int]:
    count = min(size, most)
    return [int(index) for index in np.linspace(0, size - 1, count).round()]


def usual(words: Iterable[str]) -> str:
    """The most frequent word, the word of a cell; of a tie the first."""
    return Counter(words).most_common(1)[0][0]


class _Oracle:
    """Predicts single cells, for the first seed, each network and data set made once."""

    def __init__(self, experiment: str, cells: Rows, rows: list[int], columns: list[int]) -> None:
        self._experiment, self._cells, self._at = experiment, cells, (rows, columns)
        self._starts: dict[tuple[Any, ...], Start] = {}
        self.reason = ""
        """Why the last cell without a prediction has none."""

    def __call__(self, i: int, j: int) -> tuple[str, float]:
        """The regime and log(t/T) of a cell; "" and NaN where theory predicts nothing."""
        rows = self._cells.get((self._at[0][i], self._at[1][j]))
        if rows is None:
            return "", math.nan
        keys = min(rows, key=lambda row: row["seed"])
        names = ("samples", "test_samples", "dim", "width", "theta_norm", "seed")
        start = tuple(keys[name] for name in names)
        case = Case.of_keys(self._experiment, keys, self._starts.get(start))
        self._starts[start] = case.start
        try:
            return _judged(case)
        except NoStationaryState:
            return "diverged", math.nan
        except (ValueError, ArithmeticError) as error:
            gaps = case.gaps
            self.reason = f"for {' and '.join(gaps)}" if gaps else f"({str(error).split(':')[0]})"
            return "", math.nan


def _judged(case: Case) -> tuple[str, float]:
    """The regime and log(t/T), between -log REACH and log REACH."""
    steps = case.config.steps
    try:
        prediction = case.predict(predicted.looks(round(REACH * steps)))
    except NoStationaryState:
        raise
    except (ValueError, ArithmeticError):  # a premise may fail after the end of the run
        prediction = case.predict(predicted.looks(steps))
    last = float(predicted.escapes(prediction).max())
    with np.errstate(divide="ignore"):
        delay = float(np.clip(np.log(last / max(steps, 1)), -math.log(REACH), math.log(REACH)))
    end = int(np.searchsorted(prediction.times, steps, side="right")) - 1
    ends = prediction.at(np.unique([0, end]))
    return predicted.regime(ends, last <= steps), delay


def fill(
    shape: Cell, ask: Callable[[int, int], tuple[str, float]], stride: int = STRIDE
) -> tuple[NDArray[Any], FloatArray]:
    """The words and numbers of every cell of a map, (Y, X) each, from `ask` at few of them.

    A cell that was not asked has the word of its block's corners, and the number NaN unless the
    word is lazy or rich: then +-log REACH.
    """
    asked: dict[Cell, tuple[str, float]] = {}
    words, numbers = np.full(shape, "", dtype="U16"), np.full(shape, np.nan)

    def at(cell: Cell) -> str:
        if cell not in asked:
            asked[cell] = ask(*cell)
        return asked[cell][0]

    def block(i0: int, i1: int, j0: int, j1: int) -> None:
        corners = {at((i, j)) for i in (i0, i1) for j in (j0, j1)}
        if len(corners) == 1:
            (word,) = corners
            far = {"lazy": math.log(REACH), "rich": -math.log(REACH)}.get(word, math.nan)
            words[i0 : i1 + 1, j0 : j1 + 1] = word
            numbers[i0 : i1 + 1, j0 : j1 + 1] = far
        elif max(i1 - i0, j1 - j0) > 1:
            for rows in _halves(i0, i1):
                for columns in _halves(j0, j1):
                    block(*rows, *columns)

    for rows in _intervals(shape[0], stride):
        for columns in _intervals(shape[1], stride):
            block(*rows, *columns)
    for cell, (word, number) in asked.items():
        words[cell], numbers[cell] = word, number
    return words, numbers


def _halves(first: int, last: int) -> list[tuple[int, int]]:
    middle = (first + last) // 2
    return [(first, middle), (middle, last)] if first < middle else [(first, last)]


def _intervals(size: int, stride: int) -> list[tuple[int, int]]:
    """Intervals of at most `stride` that cover 0 to size - 1 and share their ends."""
    borders = [int(b) for b in np.linspace(0, size - 1, -(-(size - 1) // stride) + 1).round()]
    return list(pairwise(borders)) or [(0, 0)]
