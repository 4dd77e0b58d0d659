"""How trajectories and sweeps show in a notebook: a small table, and a small figure within it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lnsim.sweep import Sweep
    from lnsim.trajectory import Trajectory

SHOWN = slice(1, 4)
"""Which of the usual curves a small figure has: the test loss, and what follows."""


def dataframe(columns: Mapping[str, NDArray[Any]]) -> Any:
    """The columns as a pandas.DataFrame.  Raises ValueError where pandas is not installed."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a table needs {error.name}, which is not installed: pip install 'lnsim[notebook]'"
        ) from error
    return pandas.DataFrame(dict(columns))


def of_trajectory(trajectory: Trajectory) -> str:
    """HTML: how the run ended, and what is usually drawn of it at both ends and in a figure."""
    from lnsim import curves, figures_curves

    rows, several = [], False
    usual = curves.usual(trajectory)
    for name in usual:
        for curve in curves.find(trajectory, name):
            ends = np.median(curve.values, axis=0)[[0, -1]]
            several |= len(curve.values) > 1
            words = f"{name}, {curve.arm}" if curve.arm else name
            rows.append([words, *(f"{end:.4g}" for end in ends)])
    shown = usual[SHOWN] or usual
    drawn = [figures_curves.figure([trajectory], [""], shown)] if shown else []
    note = "medians over replicas" if several else ""
    return _page(repr(trajectory), ("", "at the start", "at the end"), rows, drawn, note)


def of_sweep(sweep: Sweep) -> str:
    """HTML: the swept keys, how the points ended, and the figure, where there is one."""
    rows = []
    for key in (*sweep.swept, "seed") if sweep.rows else ():
        values = sorted({row[key] for row in sweep.rows})
        few = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (values[0], values[-1])]
        rows.append([key, f"{len(values)}", *few])
    counts = Counter(str(row["regime"]) for row in sweep.rows)
    tally = ", ".join(f"{word} {count:,}" for word, count in sorted(counts.items()))
    drawn, notes = [], [f"regimes: {tally}"] if tally else []
    try:
        drawn = [sweep.plot()]
    except ValueError as error:
        notes.append(f"no figure: {error}")
    return _page(repr(sweep), ("", "values", "first", "last"), rows, drawn, "; ".join(notes))


def _page(
    title: str,
    heads: Iterable[str],
    rows: Iterable[Sequence[str]],
    drawn: Iterable[Figure],
    note: str = "",
) -> str:
    from lnsim import figures

    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    pictures = "".join(
        f'<img alt="{escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(figures.render(figure, "png", dpi=100)).decode()}">'
        for figure in drawn
    )
    return (
        f"<div><b>{escape(title.strip('<>'))}</b><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{f'<p>{escape(note)}</p>' if note else ''}{pictures}</div>"
    )
