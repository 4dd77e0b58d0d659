"""HTML display of results in a notebook: a small table and a small figure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lnsim.figures.output import Undrawn, guarded
from lnsim.run import curves
from lnsim.run.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHOWN = slice(1, 4)
"""The usual curves that the small figure shows: the test loss and the two after it."""


def dataframe(columns: Mapping[str, NDArray[Any]]) -> Any:
    """The columns as a pandas.DataFrame.  Raises ValueError where pandas is not installed."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a table needs {error.name}, which is not installed: pip install 'lnsim[notebook]'"
        ) from error
    return pandas.DataFrame(dict(columns))


def of_trajectory(trajectory: Record) -> str:
    """HTML: how the run ended, its usual curves at the start and the end, and a figure of them."""
    rows, is_ensemble = [], False
    usual = curves.usual(trajectory)
    for name in usual:
        for curve in curves.find(trajectory, name):
            ends = np.median(curve.values, axis=0)[[0, -1]]
            is_ensemble |= len(curve.values) > 1
            label = f"{name}, {curve.arm}" if curve.arm else name
            rows.append([label, *(f"{end:.4g}" for end in ends)])
    shown = usual[SHOWN] or usual
    title, notes = repr(trajectory), ["medians over replicas"] if is_ensemble else []
    image = ""
    if shown:
        image, fault = picture(title, lambda: _curves(trajectory, shown))
        notes += fault
    return page(title, ("", "at the start", "at the end"), rows, image, notes)


def _curves(trajectory: Record, names: Sequence[str]) -> Figure:
    from lnsim.figures import curves as figures_curves

    return figures_curves.figure([trajectory], [""], names)


def picture(title: str, draw: Callable[[], Figure]) -> tuple[str, list[str]]:
    """The figure as HTML and no note, or "" and a note that says why it could not be drawn."""
    try:
        with guarded(ValueError):
            from lnsim.figures import canvas

            content = canvas.render(draw(), "png", dpi=100)
    except ValueError as error:
        return "", [f"no figure: {error}"]
    except Undrawn as error:
        return "", [str(error)]
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">', []


def page(
    title: str,
    heads: Iterable[str],
    rows: Iterable[Sequence[str]],
    picture: str,
    notes: Sequence[str],
) -> str:
    """HTML: a title, a table of texts, notes, and a figure."""
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    note = "; ".join(notes)
    return (
        f"<div><b>{escape(title.strip('<>'))}</b><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{f'<p>{escape(note)}</p>' if note else ''}{picture}</div>"
    )
