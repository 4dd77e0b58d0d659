"""Run folders: created before a run, locked by one writer, and their names in commands.

A process that writes to a folder holds a lock of the operating system on the file LOCK there.  The
system releases it however the process ends, so no lock can be stale: a LOCK file that no process
holds does no harm.  A folder on a file system without locks (some network folders) is refused.
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
    """Locks the folder for one writer, and removes the temporary files of a killed writer.

    Raises ValueError, naming `writer`, if another process holds the lock or if locking fails.
    """
    from filelock import lock_descriptor  # some of its versions take 0.07 s to import

    path = folder / LOCK
    with path.open("wb") as file:
        try:
            acquired = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise ValueError(
                f"{folder} cannot be locked: {error.strerror}; choose one on another file system"
            ) from error
        # The last holder may have deleted the file after it was opened here.
        if not (acquired and os.fstat(file.fileno()).st_nlink):
            raise ValueError(
                f"another {writer} is writing to {folder}: wait for its end"
                " or choose another folder"
            )
        try:
            for temporary in folder.glob(f"{OURS}*"):
                if temporary.name != LOCK:
                    temporary.unlink()
            yield
        finally:
            with suppress(OSError):  # an unlocked LOCK file does no harm
                path.unlink()


class RunFolder:
    """The folder of a run: created before it, and removed if the run fails and leaves it empty.

    Raises ValueError if `path` is a file, cannot be written, or is not empty (unless `reuse`).
    The message advises --resume only if `resumable`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, reuse: bool = False, resumable: bool = True
    ) -> None:
        self.path = Path(path)
        self._cure = "--resume to go on or --force" if resumable else "--force"
        self._created: list[Path] = []
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
                self._created.append(folder)
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
        for folder in reversed(self._created):
            if not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()


def holds_something(folder: Path) -> bool:
    """Whether a folder holds files other than locks and temporary files."""
    return any(not path.name.startswith(OURS) for path in folder.iterdir())


def in_shell(path: Path) -> str:
    """`path` as a shell argument: quoted where necessary, and never read as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def free_path(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path
