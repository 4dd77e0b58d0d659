"""Interleaved timing, all contenders in turn in every round, and a description of the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module, metadata

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, str]
"""The column of a contender in the table, and its name."""

Work = Callable[[int], NDArray[np.float64]]
"""Does the given number of units of work (steps, kernels); returns the result on the host."""

PACKAGES = ("lnsim", "numpy", "numba", "torch", "jax", "jaxlib", "neural_tangents")


def interleaved(
    contenders: Mapping[Key, Callable[[], float]], rounds: int
) -> dict[Key, list[float]]:
    """Calls every contender once per round; returns their results, the seconds per unit of work."""
    seconds: dict[Key, list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            seconds[key].append(contender())
    return seconds


def timer(work: Work, seconds: float, least: int, most: int) -> Callable[[], float]:
    """A function that measures the seconds per unit of `work`, in calls that last `seconds`.

    A call does at least `least` and at most `most` units.  All compilation is done before return.
    """
    count = least
    while True:
        work(count)
        if count * _seconds_a_unit(work, count) >= seconds or count >= most:
            return partial(_seconds_a_unit, work, count)
        count = min(most, 4 * count)


def _seconds_a_unit(work: Work, count: int) -> float:
    start = time.perf_counter()
    work(count)
    return (time.perf_counter() - start) / count


def importable(package: str) -> bool:
    """Whether `package` is installed and can be imported with the other packages."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def machine() -> dict[str, str]:
    """Processor, cores this process may use, CUDA device, Python and the packages' versions."""
    description = {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "CUDA device": cuda_device() or "none",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            description[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            description[package] = "not installed"
    return description


def cuda_device() -> str | None:
    """The name of torch's CUDA device, if there is one."""
    if not importable("torch"):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _processor() -> str:
    """The processor's name from Linux, or what Python knows of it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
