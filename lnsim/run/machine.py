"""The machine and the software that made a run, for those who rerun it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lnsim.base import threads


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """The machine and the software versions, the seed, and a digest of the configuration."""
    text = json.dumps(dict(config), sort_keys=True, default=str)
    return {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": _thread_counts(str(config.get("backend")).startswith("torch")),
        "seed": np.asarray(config.get("seed")).tolist(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


@functools.cache
def _cpu() -> str:
    """The processor's name, or "" if the system does not give it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _thread_counts(torch: bool) -> dict[str, int]:
    """The numbers of threads that compiled loops, the BLAS and, if imported, torch may use."""
    libraries = threads._blas().info()
    blas = (library["num_threads"] for library in libraries if library["user_api"] == "blas")
    counts = {"numba": threads.number(), "blas": max(blas, default=1)}
    if torch and "torch" in sys.modules:
        counts["torch"] = sys.modules["torch"].get_num_threads()
    return counts


@functools.cache
def _versions() -> dict[str, str]:
    from importlib import metadata  # takes an eighth of the import time of lnsim

    versions = {}
    for package in ("lnsim", "numpy", "numba", "scipy", "matplotlib", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
