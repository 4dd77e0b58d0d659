"""Timing side by side: all contenders in turn, round after round, and the machine they ran on."""

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
"""Of a contender: the column of the table it stands in, and its name."""

Work = Callable[[int], NDArray[np.float64]]
"""Does so many units of work (steps, kernels) and returns the result on the host."""

PACKAGES = ("lnsim", "numpy", "numba", "torch", "jax", "jaxlib", "neural_tangents")


def interleaved(
    contenders: Mapping[Key, Callable[[], float]], rounds: int
) -> dict[Key, list[float]]:
    """What every contender returns, the seconds of its unit of work, called once a round."""
    seconds: dict[Key, list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            seconds[key].append(contender())
    return seconds


def timer(work: Work, seconds: float, least: int, most: int) -> Callable[[], float]:
    """Measures the seconds of one unit of `work`, over so many units that it lasts `seconds`.

    At least `least` and at most `most` units; what they compile is compiled before this returns.
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
    """Whether it is there and fits the others: some releases of one refuse those of another."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def machine() -> dict[str, str]:
    """Processor, cores this process may use, CUDA device, Python and the packages' versions."""
    found = {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "CUDA device": cuda_device() or "none",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cuda_device() -> str | None:
    """The name of torch's CUDA device, if there is one."""
    if not importable("torch"):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _processor() -> str:
    """As Linux names it; elsewhere, what Python knows of it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
