"""What a user waits for: a run, its figures again, the first run ever; and where the time goes.

    python -m bench.start                 the three times and their parts
    python -m bench.start --rounds 9 --only run plot
    python -m bench.start --beside PATH   in turns with the lnsim in another checkout

`run` is `lnsim run label-noise` with all code compiled before, figures included; `plot` draws that
run again; `first` is the same run with nothing compiled before.  Each is a process of its own,
timed from outside.  The parts are of further processes, in which a clock is stopped and started at
the functions in PARTS and at every import.  A part is exclusive of the parts inside it: what a
figure imports is not in the figure.  The clock itself takes a few hundredths of a second.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.tables import Cell, Table

ROOT = Path(__file__).parents[1]
NAME = "label-noise"
COMMANDS = ("run", "plot", "first")
PACKAGES = ("numpy", "scipy", "numba", "matplotlib")
"""The packages whose imports are parts of their own, with what they import themselves."""
PARTS = {
    ("lnsim.base.compiled", "_Cache", "load_overload"): "compiled code, loading",
    ("numba.core.dispatcher", "Dispatcher", "compile"): "compiled code, compiling",
    ("lnsim_numba", "NumbaEngine", "advance"): "steps",
    ("lnsim.simulation.recorder", "Recorder", "observe"): "records",
    ("lnsim.simulation.trajectory", "Trajectory", "save"): "writing the numbers",
    ("lnsim.simulation.trajectory", "Trajectory", "load"): "reading the numbers",
    ("lnsim.experiments.case", "Case", "predict"): "prediction",
    ("lnsim.figures.output", "", "of_run"): "figure, its artists",
    ("lnsim.figures.canvas", "", "render"): "figure, its files",
}
"""Functions by module, class and name, each with the part that it is of."""
REST = "the rest"
OUTSIDE = "the interpreter's start and end"
LEAST = 0.05
"""Parts that take less are not printed."""


class Clock:
    """Seconds of each part of one thread."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._parts = [REST]
        self._since = time.perf_counter()
        self._waiting = dict(PARTS)
        self._import, self._by_name = builtins.__import__, importlib.import_module

    def install(self) -> None:
        """Stops and starts the clock at every import, and at PARTS once they are imported."""

        def by_statement(name: str, space: Any = None, *rest: Any, **named: Any) -> Any:
            level = named.get("level", rest[2] if len(rest) > 2 else 0)
            return self._timed(
                self._of_import(name, level), self._import, name, space, *rest, **named
            )

        def by_name(name: str, package: str | None = None) -> Any:
            return self._timed(self._of_import(name, 0), self._by_name, name, package)

        builtins.__import__ = by_statement
        importlib.import_module = by_name

    def stop(self) -> dict[str, float]:
        self._switch()
        return dict(self.seconds)

    def _of_import(self, name: str, level: int) -> str:
        """The part of an import: the package that began it, if it is one of PACKAGES."""
        package = name.partition(".")[0]
        if self._parts[-1].startswith("importing") and self._parts[-1] != "importing lnsim":
            return self._parts[-1]
        return f"importing {package if level == 0 and package in PACKAGES else 'lnsim'}"

    def _timed(self, part: str, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
        if threading.get_ident() != self._thread:
            return function(*values, **named)
        self._switch()
        self._parts.append(part)
        try:
            return function(*values, **named)
        finally:
            self._switch()
            self._parts.pop()
            if part.startswith("importing"):
                self._wrap()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def _wrap(self) -> None:
        for (module, cls, name), part in list(self._waiting.items()):
            owner: Any = sys.modules.get(module)
            owner = getattr(owner, cls, None) if cls else owner
            if owner is not None and name in vars(owner):
                setattr(owner, name, self._wrapped(vars(owner)[name], part))
                del self._waiting[module, cls, name]

    def _wrapped(self, function: Any, part: str) -> Any:
        plain = function.__func__ if isinstance(function, classmethod) else function

        def wrapper(*values: Any, **named: Any) -> Any:
            whole = part
            if part == "figure, its files":
                whole = str(named.get("kind", values[1])).upper()
            elif part == "compiled code, compiling":
                whole = f"compiling {values[0].py_func.__name__}"
            return self._timed(whole, plain, *values, **named)

        return classmethod(wrapper) if isinstance(function, classmethod) else wrapper


def child(report: str, arguments: list[str]) -> int:
    """Runs lnsim under the clock, and writes its parts to `report`."""
    clock = Clock()
    clock.install()
    from lnsim.cli import main as lnsim

    sys.argv[1:] = arguments
    # An older lnsim, to which this one is compared, has main alone.
    code: int = getattr(lnsim, "program", lnsim.main)()
    Path(report).write_text(json.dumps(clock.stop()), encoding="utf-8")
    return code


class Place:
    """An lnsim, its cache of compiled code and its run folder."""

    def __init__(self, checkout: Path | None, folder: Path) -> None:
        """`checkout` is where lnsim is, or None for the one that Python finds."""
        self._folder, self._report = folder, folder / "parts.json"
        self._environment = dict(os.environ)
        if checkout is not None:
            paths = (str(checkout), str(checkout / "backends"))
            self._environment["PYTHONPATH"] = os.pathsep.join(paths)
        folder.mkdir()

    def measure(self, command: str) -> float:
        """Seconds of one process."""
        return self._timed([sys.executable, "-m", "lnsim"], command)

    def parts(self, command: str) -> dict[str, float]:
        """Seconds of the parts of one process."""
        script = [sys.executable, str(Path(__file__).resolve()), "--child", str(self._report)]
        seconds = self._timed(script, command)
        parts: dict[str, float] = json.loads(self._report.read_text(encoding="utf-8"))
        return parts | {OUTSIDE: seconds - sum(parts.values())}

    def _timed(self, program: list[str], command: str) -> float:
        run = str(self._folder / "run")
        arguments = ["plot", run] if command == "plot" else ["run", NAME, "--force", "--out", run]
        with tempfile.TemporaryDirectory(dir=self._folder) as empty:
            cache = empty if command == "first" else str(self._folder / "cache")
            begin = time.perf_counter()
            subprocess.run(
                [*program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=self._folder,
                env=self._environment | {"NUMBA_CACHE_DIR": cache},
            )  # fmt: skip
            return time.perf_counter() - begin


def rounds_of(
    places: list[Place], command: str, rounds: int
) -> tuple[list[list[float]], list[list[dict[str, float]]]]:
    """Seconds of every round of each place, in turns, and those of the parts."""
    times: list[list[float]] = [[] for _ in places]
    parts: list[list[dict[str, float]]] = [[] for _ in places]
    for _ in range(rounds):
        for i, place in enumerate(places):
            times[i].append(place.measure(command))
            parts[i].append(place.parts(command))
    return times, parts


def table(places: list[Place], commands: Sequence[str], rounds: int) -> Table:
    """The times of the commands, and of each their parts of at least LEAST seconds."""
    from bench.tables import Table  # not where a child counts its imports

    rows: dict[str, tuple[Cell, ...]] = {}
    for command in commands:
        times, parts = rounds_of(places, command, rounds)
        rows[command] = tuple(times)
        names = set().union(*(round_ for place in parts for round_ in place))
        of = {n: [[round_.get(n, 0.0) for round_ in place] for place in parts] for n in names}
        longest = {n: max(map(statistics.median, of[n])) for n in names}
        for name in sorted(names, key=lambda n: -longest[n]):
            if longest[name] >= LEAST:
                rows[f"{command}: {name}"] = tuple(of[name])
    return Table(
        "What a user waits for",
        "`run` is `lnsim run label-noise` with all code compiled before, figures included; `plot` "
        "draws that run again; `first` is the same run with nothing compiled before. The parts are "
        f"of further processes. {rounds} rounds.",
        ("beside, s", "here, s")[2 - len(places) :],
        rows,
    )


def main() -> int:
    from bench.tables import parser, report  # not where a child counts its imports

    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", nargs="+", choices=COMMANDS, default=COMMANDS)
    options.add_argument("--beside", type=Path, metavar="CHECKOUT")
    options.add_argument(
        "--json", action="store_true", help="the medians alone, of the lnsim that Python finds"
    )
    arguments = options.parse_args()
    checkouts: list[Path | None] = [None if arguments.json else ROOT]
    if arguments.beside is not None:
        checkouts.insert(0, arguments.beside.resolve())
    with tempfile.TemporaryDirectory() as folder:
        places = [Place(checkout, Path(folder, str(i))) for i, checkout in enumerate(checkouts)]
        for place in places:
            place.measure("run")  # compiles, and leaves a run to draw
        if arguments.json:
            (place,) = places
            found = {
                command: statistics.median(place.measure(command) for _ in range(arguments.rounds))
                for command in arguments.only
            }
            print(json.dumps(found))
        else:
            measured = table(places, arguments.only, arguments.rounds)
            report([measured], "python -m bench.start", arguments.out)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    sys.exit(main())
