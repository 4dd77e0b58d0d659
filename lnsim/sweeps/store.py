"""The results file of a sweep: one SQLite database, checked before it is used.

Table `points` has one row per point: every key of the configuration, every column of the summary
(points.py), and

    key      sha256 of the experiment, the backend and the complete configuration, as JSON with
             sorted keys, so that no point is in the table twice
    digest   sha256 of the rest of the row: it reveals a flipped bit that SQLite does not notice

Table `meta` has names and JSON values: experiment, backend, swept keys, the base configuration, the
latest grid, the environments that computed points, and the digest of these.  `user_version` is the
version of this schema, `application_id` marks the file as a sweep's.

Safety.  The file is created complete, by a rename.  Rows are written in transactions under SQLite's
rollback journal with synchronous=FULL: a process killed at any moment loses no committed row and
leaves no partial one.  (The write-ahead log is not used: it needs shared memory, which network
folders lack.)  Before a file is opened for writing its header, SQLite's integrity check and every
digest are verified read-only.  Only one sweep at a time writes to a folder (run/folder.py).
Readers, such as a plot or pandas, may open the file at any time.
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
"""Seconds to wait while another program holds the file, if no other work is left."""
BRIEF = 1.0
"""Seconds to wait if other work is left."""

HELD = "{} is held by another program: close that program, or wait until it ends"

SQL_TYPES = {float: "REAL", int: "INTEGER", bool: "INTEGER", str: "TEXT"}

ADDED = {"measures": ""}
"""Keys of experiments that older files lack, with their defaults, which the points there have."""

Row = dict[str, Any]


def key_of(experiment: str, backend: str, config: Mapping[str, Any]) -> str:
    """The key of a point, a word of 64 hexadecimal digits; without ADDED keys at their defaults."""
    config = {key: value for key, value in config.items() if (key, value) not in ADDED.items()}
    return _digest({"experiment": experiment, "backend": backend, "config": config})


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
    """A results file open for writing, after `read` has checked it.

    `columns` are those of its points; they stay as the file was created.
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
        """Adds points in one transaction, all or none; their names are columns of the table.

        While another program holds the file, the points wait in memory for the next call or
        `flush`.  Raises OSError if the file cannot be written.
        """
        self._waiting += rows
        with suppress(BlockingIOError):
            self._write(BRIEF)

    def flush(self) -> None:
        """Adds the waiting points.  Raises OSError if the file cannot be written within BUSY s."""
        self._write(BUSY)

    @property
    def waiting(self) -> int:
        """Number of points that wait in memory."""
        return len(self._waiting)

    @contextmanager
    def _writing(self, seconds: float) -> Iterator[None]:
        """One transaction.  Raises BlockingIOError if it cannot begin within `seconds`."""
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
    """A value as SQLite returns it: booleans become integers, and -0.0 becomes 0.0."""
    if isinstance(value, bool):
        return int(value)
    return value + 0.0 if isinstance(value, float) else value


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The table meta and the points of a results file, without `digest`, in order of arrival.

    Never changes the file.  Raises ValueError for a file that is missing, damaged, held by another
    program for BUSY seconds, written by another program, or of another schema.
    """
    _check_header(path)
    try:
        with _reading(path) as database:
            outcome = database.execute("PRAGMA integrity_check").fetchone()[0]
            if outcome != "ok":
                raise sqlite3.DatabaseError(outcome)
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
    """Removes the digest from a row; returns whether it is the digest of the rest."""
    digest = row.pop("digest", None)
    try:
        return bool(digest == _digest(row))
    except TypeError:  # a flipped bit turned a text into bytes
        return False


def _check_header(path: Path) -> None:
    """Refuses files by their first 100 bytes (sqlite.org, "Database File Format")."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise ValueError(f"{path} is not an SQLite file")
    schema, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION:
        raise ValueError(f"{path} is an SQLite file, but not of a sweep")
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema}; this version of lnsim reads only schema {SCHEMA}"
        )


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection to the file or, if a killed writer left a journal, to a copy.

    Such a journal must be rolled back before the file can be read.
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
