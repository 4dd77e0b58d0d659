"""Run folders: every file is written to the side, flushed to the disk, and renamed into place."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `path` so that it holds either what it held before or all of `content`."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of strict JSON, indented for reading."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.  Raises ValueError for anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


class RunFolder:
    """The folder a run writes to, made before the run and taken away if nothing was written.

    Raises ValueError where `path` exists and is not empty (unless `reuse`), is no folder, or
    cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, reuse: bool = False) -> None:
        self.path = Path(path)
        self._made: list[Path] = []
        self._reuse = reuse

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output folder {self.path} is a file")
        try:
            if self.path.is_dir() and any(self.path.iterdir()) and not self._reuse:
                raise ValueError(
                    f"output folder {self.path} is not empty: choose another, "
                    "or say --resume to go on or --force to write over it"
                )
            missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                self._made.append(folder)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self._remove_empty()
            raise ValueError(f"output folder {self.path} cannot be written: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._remove_empty()

    def _remove_empty(self) -> None:
        for folder in reversed(self._made):
            if any(folder.iterdir()):
                return
            folder.rmdir()


def free_path(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path
