"""Modules that are loaded by name: backends, experiments, and others that need an extra."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

EXTRAS = ("torch",)
"""The backends whose packages are installed by the extra of lnsim with the backend's name."""


def load(
    module: str,
    asker: str,
    *,
    extra: str = "",
    instead: str = "",
    absent: Mapping[str, str] | None = None,
) -> Any:
    """Imports `module`.

    Raises ValueError if a package is missing: "{asker} needs {package}: pip install 'lnsim[
    {extra}]'{instead}", or `pip install {package}` without an extra.  `absent` maps the name of a
    missing module to the message to use in place of this one.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        package = missing.partition(".")[0]
        source = f"'lnsim[{extra}]'" if extra else package
        sentence = f"{asker} needs {package}: pip install {source}{instead}"
        raise ValueError((absent or {}).get(missing, sentence)) from error


def backend(name: str, part: str = "", lacks: str = "") -> Any:
    """The package lnsim_<name>, or its module `part`.

    Raises ValueError if there is no such package or module, or if it needs a package that is
    missing.  For a missing module the message is "backend {name!r} has no {lacks}".
    """
    package = f"lnsim_{name}"
    if not package.isidentifier():
        raise ValueError(f"backend must be a word such as numba or torch, got {name!r}")
    module = f"{package}.{part}" if part else package
    return load(
        module,
        f"backend {name!r} is not installed: it",
        extra=name if name in EXTRAS else "",
        absent={
            module: f"backend {name!r} has no {lacks}",
            package: f"backend {name!r} is not installed: no package {package} was found",
        },
    )
