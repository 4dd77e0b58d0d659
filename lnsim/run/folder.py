"""Run folders: made before a run, held by one writer, and their names in commands.

A process that writes to a folder holds a lock of the operating system on the file LOCK there.  The
system lets go of it when the process ends in any way, so no lock can be stale: a LOCK file that
nobody holds stands in nobody's way.  Where the file system has no locks (some network folders) the
folder is refused.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from lnsim.base.files import OURS

LOCK = f"{OURS}lock"


@contextmanager
def locked(folder: Path, writer: str = "run") -> Iterator[None]:
    """Holds the folder for one writer, and clears away what one that was killed left half written.

    Raises ValueError, naming `writer`, where another process has it or it cannot be locked.
    """
    from filelock import lock_descriptor  # some of its versions take 0.07 s to import

    path = folder / LOCK
    with path.open("wb") as file:
        try:
            alone = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ValueError(
                f"{folder} cannot be locked: {error.strerror}; choose one on another file system"
            ) from error
        if not (alone and os.fstat(file.fileno()).st_nlink):  # its holder may just have deleted it
            raise ValueError(
                f"another {writer} is writing to {folder}: wait for its end"
                " or choose another folder"
            )
        try:
            for left in folder.glob(f"{OURS}*"):
                if left.name != LOCK:
                    left.unlink()
            yield
        finally:
            with suppress(OSError):  # it may stay: nobody holds it
                path.unlink()


class RunFolder:
    """The folder a run writes to, made before the run and taken away if nothing was written.

    Raises ValueError where `path` exists and is not empty (unless `reuse`), is no folder, or
    cannot be written.  What it advises then leaves out --resume unless `resumable`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, reuse: bool = False, resumable: bool = True
    ) -> None:
        self.path = Path(path)
        self._cure = "--resume to go on or --force" if resumable else "--force"
        self._made: list[Path] = []
        self._reuse = reuse

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output folder {self.path} is a file")
        try:
            if self.path.is_dir() and holds_something(self.path) and not self._reuse:
                raise ValueError(
                    f"output folder {self.path} is not empty: choose another, "
                    f"or say {self._cure} to write over it"
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
            if not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()


def holds_something(folder: Path) -> bool:
    """Whether a folder has more in it than locks and what a killed writer left."""
    return any(not path.name.startswith(OURS) for path in folder.iterdir())


def in_shell(path: Path) -> str:
    """`path` as a command takes it: quoted where it must be, and never read as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def free_path(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path
