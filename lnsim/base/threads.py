"""Work on many replicas, shared among threads: compiled loops and BLAS let go of the interpreter.

Replicas are handed out in blocks as threads come free, so that a core that another program holds,
or a block whose replicas have diverged, keeps nobody waiting.  What is done to a replica does not
depend on the block it is in, so neither do the results.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_ALONE = ContextVar("alone", default=False)

MOST = 8 * (os.cpu_count() or 1)
"""Threads at most: more only get in each other's way, and a system refuses to start too many."""

BLOCKS_OF_A_THREAD = 8
"""Blocks made for each thread: the last to end is late by a part of its share."""


def in_blocks(work: Callable[[slice], object], count: int) -> None:
    """Calls `work` with slices that cover range(count).

    There are as many threads as NUMBA_NUM_THREADS says, by default one a core, at most MOST.
    Raises what `work` raised first, after all have ended.
    """
    threads = number()
    size = max(1, count if threads == 1 else -(-count // (BLOCKS_OF_A_THREAD * threads)))
    blocks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    if threads == 1 or len(blocks) < 2:
        for block in blocks:
            work(block)
        return
    futures = [_pool(threads, os.getpid()).submit(work, block) for block in blocks]
    wait(futures)
    for future in futures:
        future.result()


def check() -> None:
    """Raises ValueError where NUMBA_NUM_THREADS is set to what is no number of threads.

    Numba warns of it in nine lines and goes on, or does not name it.
    """
    asked = os.environ.get("NUMBA_NUM_THREADS")
    if asked is not None and not (asked.strip().isdecimal() and int(asked) > 0):
        raise ValueError(
            f"NUMBA_NUM_THREADS must be a whole number of threads, at least 1, got {asked!r}: "
            "set it, or unset it for one a core"
        )


def number() -> int:
    """The threads that `in_blocks` shares work among."""
    # Not numba.get_num_threads(): it starts OpenMP, which resets the threads of torch.
    from numba import config

    return 1 if _ALONE.get() else min(int(config.NUMBA_NUM_THREADS), MOST)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the calling thread shares no work with others."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """The threads, kept for the next call.  A forked process has none and makes its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lnsim")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Holds NumPy's BLAS to one thread: how it shares a product out changes the last bits of it."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _blas() -> Any:
    """The libraries that are loaded; NumPy's is, and to look for others takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
