"""Files written whole or not at all: to a temporary file, flushed to the disk, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

OURS = ".lnsim."
"""The prefix of the names of locks and of temporary files."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `path` so that it holds either what it held before or all of `content`.

    Raises OSError, naming `path`, if it cannot be written.
    """
    write(path, lambda file: file.write(content))


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """`write_bytes` of what `fill` writes to the file it is called with."""
    try:
        _write_beside(path, fill)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def _write_beside(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{OURS}{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open a folder
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8.  Undecodable bytes of a file's name stay as they are."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of strict JSON, indented for reading."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.  Raises ValueError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
