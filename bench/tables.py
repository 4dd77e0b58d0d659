"""Tables of the benchmarks: kept in a file by what measures them, and drawn from it.

    python -m bench.floor --out bench/results/MACHINE/floor.json
    python -m bench.tables       # docs/speed.md, and the tables in README.md, from all such files

A file holds the command, the day, the machine, and tables with every round, so that medians and
spreads are computed when they are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench.rounds import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, README = ROOT / "bench" / "results", ROOT / "docs" / "speed.md", ROOT / "README.md"
PLACE = re.compile(r"(<!-- (\S+/\S+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
"""Where a page has the tables of the file MACHINE/NAME.json."""

Cell = Sequence[float] | float | str | None
"""What was measured in the rounds, a number, a word, or nothing."""

HEAD = """# Speed

This page is written by `python -m bench.tables` from the files in `bench/results/`, and these by
the commands named below with `--out FILE.json`. A cell is the median over interleaved rounds, and
in brackets the least and the most. Virtual machines are noisy: ratios are taken round by round, and
say more than times.
"""


@dataclass(frozen=True)
class Table:
    """What one benchmark measured; `columns` are headings with units, of the cells of each row."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]

    def lines(self) -> list[str]:
        """The table in Markdown, its columns aligned."""
        cells = [["", *self.columns]]
        cells += [[name, *map(text, row)] for name, row in self.rows.items()]
        wide = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * wide[0], *("-" * (size - 1) + ":" for size in wide[1:])]
        padded = [
            [row[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))]
            for row in (cells[0], rule, *cells[1:])
        ]
        return [f"| {' | '.join(row)} |" for row in padded]


def text(cell: Cell) -> str:
    """A cell in words: the median and the range of rounds, three digits of a number."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, (int, float)):
        return _digits(cell, cell)
    middle = statistics.median(cell)
    found, least, most = (_digits(value, middle) for value in (middle, min(cell), max(cell)))
    return found if least == most else f"{found} ({least}–{most})"


def _digits(value: float, scale: float) -> str:
    """`value` with the decimals that give `scale` three digits."""
    if not (math.isfinite(value) and math.isfinite(scale)):
        return str(value)
    decimals = 2 - (math.floor(math.log10(abs(scale))) if scale else 0)
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """values / others, round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser of a benchmark's command line, which takes --out."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, metavar="FILE.json", help="keep every round here")
    return made


def report(tables: Iterable[Table], command: str, out: Path | None) -> None:
    """Prints every table when it is measured, and keeps all of them in `out`."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    description, kept = machine(), []
    print(", ".join(f"{name} {of}" for name, of in description.items()))
    for table in tables:
        print("", table.title, table.about, *table.lines(), sep="\n", flush=True)
        kept.append(asdict(table))
    if out is not None:
        written = {
            "command": command,
            "day": date.today().isoformat(),
            "machine": description,
            "tables": kept,
        }
        out.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page() -> str:
    """docs/speed.md: the tables of all files, machine by machine."""
    parts = [HEAD]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        parts.append(f"\n# {folder.name}\n")
        for file in sorted(folder.glob("*.json")):
            found = _read(file)
            for table in _tables(found):
                parts.append(f"\n## {table.title}\n\n{table.about}\n\n")
                parts.append("\n".join(table.lines()) + "\n")
            parts.append(f"\n{_source(found)}\n")
    return "".join(parts)


def filled(readme: str) -> str:
    """`readme` with its tables as their files have them."""

    def table(match: re.Match[str]) -> str:
        found = _read(RESULTS / f"{match[2]}.json")
        lines = [line for table in _tables(found) for line in ("", *table.lines())]
        return "\n".join([match[1].rstrip(), *lines, "", _source(found)]) + match[3]

    return PLACE.sub(table, readme)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _tables(found: dict[str, Any]) -> list[Table]:
    return [
        Table(
            table["title"],
            table["about"],
            tuple(table["columns"]),
            {name: tuple(row) for name, row in table["rows"].items()},
        )
        for table in found["tables"]
    ]


def _source(found: dict[str, Any]) -> str:
    """The sentence that says how, where and when the tables were measured."""
    of = dict(found["machine"])
    place, cores, device = of.pop("processor"), of.pop("cores"), of.pop("CUDA device")
    if device != "none":
        place += f" with {device}"
    with_ = ", ".join(f"{name} {version}" for name, version in of.items() if "not " not in version)
    return f"`{found['command']}`, {found['day']}, on {place}, {cores} cores; {with_}."


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the tables of README.md; exit code 0."""
    argparse.ArgumentParser(prog="python -m bench.tables", description=HEAD).parse_args(argv)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
