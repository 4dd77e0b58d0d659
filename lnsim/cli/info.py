"""Reports versions, backends and devices, and how to install what is missing."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lnsim import backend as backends
from lnsim.base.threads import cores

WIDTH = 80
INDENT = 16
CORE = ("numpy", "numba", "scipy", "matplotlib")
BACKEND_PREFIX = "lnsim_"
"""The prefix of the package name of a backend."""


class Optional(NamedTuple):
    """An optional package, its purpose, and the argument of pip install."""

    package: str
    purpose: str
    install: str


OPTIONAL = (
    Optional("torch", "networks on images, tangent kernels, GPUs", "lnsim[torch]"),
    Optional("torchvision", "to download CIFAR-10 (data=cifar10)", "lnsim[torch]"),
    Optional("distributed", "sweeps on a Dask cluster (sweep --scheduler)", "lnsim[dask]"),
    Optional("asv", "the benchmarks in bench/", "lnsim[bench]"),
    Optional("pandas", "Trajectory.to_dataframe", "lnsim[notebook]"),
)


def report() -> list[str]:
    """The lines of `lnsim info`, at most WIDTH characters long unless a path is longer."""
    return [line for name, text in _entries() for line in _wrapped(name, text)]


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{name:<{INDENT}}{text}", WIDTH, subsequent_indent=" " * INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _entries() -> Iterator[tuple[str, str]]:
    """The names of the entries, and their texts."""
    yield (
        "lnsim",
        f"{version('lnsim') or 'not installed'}, {os.path.dirname(os.path.dirname(__file__))}",
    )
    yield "python", f"{platform.python_version()}, {sys.executable}"
    yield "system", platform.platform()
    for package in CORE:
        yield package, version(package) or f"not installed: pip install {package}"
    for name in backend_names():
        yield f"backend {name}", _backend(name)
    yield "threads", _threads()
    yield "devices", _devices()
    yield "cache", _cache()
    for package, purpose, install in OPTIONAL:
        argument = f"'{install}'" if "[" in install else install
        missing = f"not installed: pip install {argument}"
        yield package, f"{version(package) or missing} ({purpose})"


def backend_names() -> list[str]:
    """The backends that come with lnsim, and those of other packages lnsim_<name>."""
    modules = {module.name for module in pkgutil.iter_modules()} | sys.modules.keys()
    names = {
        name.removeprefix(BACKEND_PREFIX) for name in modules if name.startswith(BACKEND_PREFIX)
    }
    return sorted({"numba", "torch"} | {name for name in names if "." not in name})


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    from importlib import metadata  # a slow import

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backend(name: str) -> str:
    try:
        _, fault = _tried(lambda: backends.load(name))
    except ValueError as error:
        return str(error).removeprefix(f"backend {name!r} is ")
    return fault or "ready"


def _threads() -> str:
    threads = os.environ.get("NUMBA_NUM_THREADS")
    if threads is None:
        return f"{cores()}, one a core; for fewer set NUMBA_NUM_THREADS"
    return f"{threads}, by NUMBA_NUM_THREADS, on {cores()} cores"


def _devices() -> str:
    if version("torch") is None:
        return "cpu; for a GPU: pip install 'lnsim[torch]'"
    torch, fault = _tried(lambda: importlib.import_module("torch"))
    if fault:
        return f"cpu; torch is {fault}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 0:
        devices = (f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count))
        return ", ".join(["cpu", *devices])
    if torch.version.cuda is None:
        return "cpu; this torch is built without CUDA: pytorch.org names the builds with it"
    return "cpu; torch finds no CUDA device: nvidia-smi must list one"


def _cache() -> str:
    """The folder of the compiled kernels."""
    cache, broken = _tried(lambda: importlib.import_module("lnsim.base.compiled"))
    if broken:
        return broken
    if cache.numba.config.DISABLE_JIT:
        return "none, by NUMBA_DISABLE_JIT: nothing is compiled, and all is slow"
    folder, fault = cache.folder(), cache.fault()
    if fault:
        return f"{folder} cannot be written: {fault}; set {cache.VARIABLE} to one that can"
    return f"{folder}, of compiled kernels; for another set {cache.VARIABLE}"


def _tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `work` and "", or None and how it is broken.  ValueError passes through.

    Loading a package runs its code: a library of another machine or version may raise OSError,
    ImportError, AttributeError, RuntimeError or anything else.  `info` exists to report this, so
    every exception except the user's interrupt is caught here and shown.
    """
    try:
        return work(), ""
    except ValueError:
        raise
    except Exception as error:  # nothing is hidden: the report's line shows the type and the text
        return None, f"broken: {type(error).__name__}: {' '.join(str(error).split())}"
