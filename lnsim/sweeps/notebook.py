"""HTML display of a sweep in a notebook."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lnsim.figures.notebook import page, picture
from lnsim.sweeps.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_table(table: Table) -> str:
    """HTML: the swept keys, the number of points in each regime, and the figure if there is one."""
    rows = []
    for key in (*table.swept, "seed") if table.rows else ():
        values = sorted({row[key] for row in table.rows})
        ends = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (values[0], values[-1])]
        rows.append([key, f"{len(values)}", *ends])
    counts = Counter(row["regime"] or "not predicted" for row in table.rows)
    tally = ", ".join(f"{word} {count:,}" for word, count in sorted(counts.items()))
    title = repr(table)
    image, fault = picture(title, lambda: _drawn(table))
    notes = [f"regimes: {tally}", *fault] if tally else fault
    return page(title, ("", "values", "first", "last"), rows, image, notes)


def _drawn(table: Table) -> Figure:
    from lnsim.sweeps import figure

    return figure.figure([table])
