"""The results file of a sweep: one SQLite database, checked before it is touched.

Table `points` has one row per point: every key of the configuration, every column of the summary
(points.py), and

    key      sha256 of the experiment, the backend and the complete configuration, as JSON with
             sorted keys: no point can be in the table twice
    digest   sha256 of the rest of the row: a bit that flips is found even where SQLite has no use
             for it

Table `meta` has names and JSON values: experiment, backend, swept keys, the base configuration, the
grid last asked for, the environments that computed points, and their digest.  `user_version` is
the version of this schema, `application_id` tells the file from any other.

Safe.  The file comes into being complete, by a rename.  Rows arrive in transactions under SQLite's
rollback journal with synchronous=FULL: a process killed at any moment loses nothing committed, and
leaves nothing half written.  (The write-ahead log is not used: it needs shared memory, which
network folders lack.)  Before a file is opened for writing its header is read and, read-only,
SQLite's integrity check and every digest.  One sweep at a time writes to a folder (run/folder.py).
Readers, such as a plot or pandas, may come at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from lnsim.base import files

FILE = "sweep.sqlite"
APPLICATION = 0x6C6E7377  # "lnsw"
SCHEMA = 1
BUSY = 60.0
"""Seconds to wait while another program holds the file, where nothing else is left to be done."""
SHORT = 1.0
"""Seconds to wait where something is."""

HELD = "{} is held by another program: close that, or wait for its end"

SQL_TYPES = {float: "REAL", int: "INTEGER", bool: "INTEGER", str: "TEXT"}

Row = dict[str, Any]


def key_of(experiment: str, backend: str, config: Mapping[str, Any]) -> str:
    """The key of a point, a word of 64 hexadecimal digits."""
    return _digest({"experiment": experiment, "backend": backend, "config": dict(config)})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def create(path: Path, columns: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Writes an empty results file, whole or not at all; `columns` are names and SQL types."""
    listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    with closing(sqlite3.connect(":memory:")) as memory, memory:
        memory.execute(f"PRAGMA application_id = {APPLICATION}")
        memory.execute(f"PRAGMA user_version = {SCHEMA}")
        memory.execute(f"CREATE TABLE points (key TEXT PRIMARY KEY, {listed}, digest TEXT)")
        memory.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)")
        _put_meta(memory, meta)
        memory.commit()
        files.write_bytes(path, memory.serialize())


def _put_meta(database: sqlite3.Connection, meta: Mapping[str, Any]) -> None:
    rows = {name: json.dumps(value, sort_keys=True) for name, value in meta.items()}
    rows["digest"] = _digest(rows)
    database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows.items())


class Writer:
    """A results file that is open for writing, after `read` found it sound.

    `columns` are those of its points; a file keeps the columns that it was made with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA synchronous = FULL")
        self._waiting: list[Row] = []
        listed = self._database.execute("SELECT name FROM pragma_table_info('points')")
        self.columns = frozenset(name for (name,) in listed) - {"digest"}

    def put_meta(self, meta: Mapping[str, Any]) -> None:
        """Replaces the table meta, in one transaction.  Raises OSError as `flush` does."""
        with self._writing(BUSY):
            _put_meta(self._database, meta)

    def add(self, rows: Sequence[Row]) -> None:
        """Adds points, all or none of them, in one transaction; each has the table's columns.

        While another program holds the file they wait in memory, for the next call or `flush`.
        Raises OSError where the file cannot be written.
        """
        self._waiting += rows
        with suppress(BlockingIOError):
            self._write(SHORT)

    def flush(self) -> None:
        """Adds what waits.  Raises OSError where the file cannot be written, or not for BUSY s."""
        self._write(BUSY)

    @property
    def waiting(self) -> int:
        """How many points wait in memory."""
        return len(self._waiting)

    @contextmanager
    def _writing(self, seconds: float) -> Iterator[None]:
        """One transaction, begun within `seconds` or refused by BlockingIOError."""
        try:
            self._database.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
            with self._database:
                yield
        except sqlite3.OperationalError as error:
            if _is_held(error):
                raise BlockingIOError(HELD.format(self._path)) from error
            raise OSError(f"cannot write {self._path}: {error}") from error

    def _write(self, seconds: float) -> None:
        if not self._waiting:
            return
        with self._writing(seconds):
            for row in self._waiting:
                stored = {name: _as_stored(value) for name, value in row.items()}
                stored["digest"] = _digest(stored)
                names = ", ".join(f'"{name}"' for name in stored)
                marks = ", ".join("?" * len(stored))
                statement = f"INSERT INTO points ({names}) VALUES ({marks})"
                self._database.execute(statement, list(stored.values()))
        self._waiting = []

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


def _as_stored(value: Any) -> Any:
    """A value as SQLite gives it back: it has neither switches nor a negative zero."""
    if isinstance(value, bool):
        return int(value)
    return value + 0.0 if isinstance(value, float) else value


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The table meta and the points of a results file, without `digest`, in order of arrival.

    Raises ValueError for a file that is missing, damaged, held by another program for BUSY seconds,
    of another program or of another schema; in no case is it changed.
    """
    _check_header(path)
    try:
        with _reading(path) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            meta = dict(database.execute("SELECT name, value FROM meta").fetchall())
            cursor = database.execute("SELECT * FROM points ORDER BY rowid")
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, values, strict=True)) for values in cursor]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if _is_held(error):
            raise ValueError(HELD.format(path)) from error
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not _is_sound(meta):
        raise ValueError(f"{path} is damaged: the table meta does not have its digest")
    for row in rows:
        if not _is_sound(row):
            raise ValueError(
                f"{path} is damaged: point {row.get('key')!r} does not have its digest"
            )
    return {name: json.loads(value) for name, value in meta.items()}, rows


def _is_held(error: Exception) -> bool:
    """Whether another program holds the file (sqlite.org, "Result and Error Codes")."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_sound(row: Row) -> bool:
    """Takes the digest out of a row; whether it is that of the rest."""
    digest = row.pop("digest", None)
    try:
        return bool(digest == _digest(row))
    except TypeError:  # a flipped bit made bytes of a text
        return False


def _check_header(path: Path) -> None:
    """Refuses what the first bytes of a file tell apart (sqlite.org, "Database File Format")."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise ValueError(f"{path} is no SQLite file")
    schema, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION:
        raise ValueError(f"{path} is an SQLite file, but not of a sweep")
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema}, and this version of lnsim knows {SCHEMA} alone"
        )


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing: to the file itself or, where a writer was killed, a copy.

    A journal that a killed writer left must be rolled back before anything can be read.
    """
    journal = path.with_name(path.name + "-journal")
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(closing(_read_only(path)))
        try:
            database.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.OperationalError as error:
            if not journal.exists() or _is_held(error):
                raise
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for file in (path, journal):
                shutil.copy(file, folder)
            database = stack.enter_context(closing(sqlite3.connect(folder / path.name)))
        yield database


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY)
