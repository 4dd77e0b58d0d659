"""A cache of the machine code of lnsim's compiled loops, shared by processes.

Numba's own cache fails where its folder cannot be written or a file in it is damaged; processes
that compile at the same time overwrite its index; and it notices a change of a loop's own file,
but not of the functions it calls in other files.  Here every compiled function has its own file,
whose name depends on lnsim's sources, the versions of the compilers, the processor, and the types
of the arguments.  An incomplete file counts as missing.

The folder is NUMBA_CACHE_DIR, or the user's cache folder.  If it is read-only, it is still read.
Code that cannot be written there goes to a temporary folder of the user's, with one warning.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import pickle
import stat
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import caching, compiler, serialize
from numba.core.runtime import rtsys

VARIABLE = "NUMBA_CACHE_DIR"
COMPILED = {
    "lnsim.base": ("checks", "philox"),
    "lnsim.dynamics": ("labels", "shuffle"),
    "lnsim.simulation": ("custom_loop", "neuron_loop", "watch_loop", "wide_loop"),
    "lnsim.theory": ("descent_loop", "sharpest_loop"),
    "lnsim_numba": None,
}
"""The modules of each package that hold compiled functions or their constants; None means all."""

VERSIONS = (
    sys.implementation.cache_tag, np.__version__, numba.__version__, llvmlite.__version__
)  # fmt: skip


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba.njit with `options`, which caches its machine code for other processes."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if dispatcher is not function:  # with NUMBA_DISABLE_JIT it is the function itself
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate


class _Cache(caching.NullCache):
    """The cache that Numba asks for a function before compiling it, and gives the code after."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = f"{function.__module__}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(folder())

    def load_overload(self, types: Any, target_context: Any) -> Any:
        """The compiled function for arguments of these types, or None."""
        rtsys.initialize(target_context)
        code = _read(self._name(types, target_context.codegen()))
        if code is None:
            return None
        return compiler.CompileResult._rebuild(target_context, *pickle.loads(code))

    def save_overload(self, types: Any, result: Any) -> None:
        """Stores a compiled function, unless it holds addresses of this process."""
        if not result.library.has_dynamic_globals:
            _keep(self._name(types, result.codegen), serialize.dumps(result._reduce()))

    def _name(self, types: Any, codegen: Any) -> str:
        decisive = repr((VERSIONS, codegen.magic_tuple(), types))
        return f"{self._function}-{hashlib.sha256(decisive.encode()).hexdigest()[:16]}.nbc"


def folder() -> Path:
    """The cache folder for these sources.  It is relative if the user has no home folder."""
    given = numba.config.CACHE_DIR
    return (Path(os.path.abspath(given)) if given else _of_user()) / "lnsim" / _digest()


def fault() -> str:
    """The reason why `folder` cannot be written, or an empty string."""
    try:
        tempfile.TemporaryFile(dir=_made()).close()
    except OSError as error:
        return _reason(error)
    return ""


def _read(name: str) -> bytes | None:
    """The code stored under this name, or None.  A file begins with the 32 bytes of its SHA-256."""
    for place in (_absolute, _temporary):
        with suppress(OSError):
            content = (place() / name).read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                if place is _temporary and (reason := fault()):
                    _warn(reason, f"the code in {place()} is used")
                return content[32:]
    return None


def _keep(name: str, code: bytes) -> None:
    content = hashlib.sha256(code).digest() + code
    try:
        _write(_made() / name, content)
        return
    except OSError as error:
        reason = _reason(error)
    try:
        place = _temporary(make=True)
        _write(place / name, content)
        instead = f"it goes to {place}"
    except OSError:
        instead = "every process compiles anew"
    _warn(reason, instead)


def _write(path: Path, content: bytes) -> None:
    """Writes atomically: any number of processes may write and read `path`.  Raises OSError."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def _made() -> Path:
    _absolute().mkdir(parents=True, exist_ok=True)
    return folder()


def _absolute() -> Path:
    """`folder`.  Raises OSError if the user has no home, as a folder named "~" is not meant."""
    if not folder().is_absolute():
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return folder()


def _temporary(make: bool = False) -> Path:
    """A folder that nobody else can write, as its code is run.  Raises OSError if there is none."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    root = Path(tempfile.gettempdir(), f"lnsim-{user}")
    if make:
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
    status = root.lstat()
    shared = os.name == "posix" and (status.st_uid != user or status.st_mode & 0o022)
    if shared or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(errno.EPERM, "others may write there", str(root))
    if make:
        (root / _digest()).mkdir(exist_ok=True)
    return root / _digest()


_warned = False


def _warn(reason: str, instead: str) -> None:
    """Warns once per process, in one line that names no line of the calling program."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn_explicit(
            f"compiled code cannot be kept in {folder()}: {reason}; {instead}."
            f" Set {VARIABLE} to a folder that can be written.",
            RuntimeWarning, "lnsim", 0,
        )  # fmt: skip


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _of_user() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    home = Path(os.path.expanduser("~"))
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


@functools.cache
def _digest() -> str:
    """The first sixteen hexadecimal digits of the SHA-256 of all sources in COMPILED."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Any]:
    """The files in COMPILED, or the members of an archive (.zip, .whl) on Python's path."""
    for package, modules in COMPILED.items():
        spec = find_spec(package)
        if spec is None or spec.loader is None:
            continue
        files = spec.loader.get_resource_reader(package).files()  # type: ignore[attr-defined]
        for file in sorted(files.iterdir(), key=lambda file: str(file.name)):
            module, _, kind = file.name.rpartition(".")
            if kind in ("py", "pyc") and (modules is None or module in modules):
                yield file
