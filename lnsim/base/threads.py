"""Work on many replicas, shared among threads: compiled loops and BLAS release the GIL.

A thread that becomes free takes the next block of replicas, so that a core that another program
occupies, or a block whose replicas have diverged, delays no other.  The operations on a replica do
not depend on its block, so neither do the results.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Argument = TypeVar("Argument")

_ALONE = ContextVar("alone", default=False)

MOST = 8 * (os.cpu_count() or 1)
"""Limit on threads: more only slow each other down, and a system refuses to start too many."""

BLOCKS_OF_A_THREAD = 8
"""Blocks per thread: with more than one, the last thread to end is late by a part of its share."""


def in_blocks(work: Callable[[slice], object], count: int) -> None:
    """Calls `work` with slices that cover range(count).

    NUMBA_NUM_THREADS sets the number of threads, by default one per core, at most MOST.
    Raises the error of the first block that failed, after all blocks have ended.
    """
    threads = number()
    size = max(1, count if threads == 1 else -(-count // (BLOCKS_OF_A_THREAD * threads)))
    blocks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    if threads == 1 or len(blocks) < 2:
        for block in blocks:
            work(block)
        return
    futures = [_pool(threads, os.getpid()).submit(_alone, work, block) for block in blocks]
    wait(futures)
    for future in futures:
        future.result()


def beside(work: Callable[[Argument], object], argument: Argument) -> Future[None]:
    """Begins `work` on one other thread; the future's result() waits for it, and raises its error.

    Of use where `number` is above 1.
    """
    return _pool(number(), os.getpid()).submit(_alone, work, argument)


def _alone(work: Callable[[Argument], object], argument: Argument) -> None:
    """Does a part.  Work that it shares in turn stays here: threads would wait for each other."""
    with one_thread():
        work(argument)


def check() -> None:
    """Raises ValueError if NUMBA_NUM_THREADS is set and is not an integer of at least 1.

    Numba warns of it in nine lines and goes on, or fails without naming it.
    """
    asked = os.environ.get("NUMBA_NUM_THREADS")
    if asked is not None and not (asked.strip().isdecimal() and int(asked) > 0):
        raise ValueError(
            f"NUMBA_NUM_THREADS must be a whole number of threads, at least 1, got {asked!r}: "
            "set it, or unset it for one per core"
        )


def number() -> int:
    """The number of threads among which `in_blocks` shares work."""
    # Not numba.get_num_threads(): it starts OpenMP, which resets the threads of torch.
    from numba import config

    return 1 if _ALONE.get() else min(int(config.NUMBA_NUM_THREADS), MOST)


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which `in_blocks` runs all work on the calling thread."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """The thread pool, kept for the next call.  A forked process makes its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lnsim")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits NumPy's BLAS to one thread: how it divides a product changes the last bits."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _blas() -> Any:
    """The BLAS libraries now loaded, NumPy's among them.  A search takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
