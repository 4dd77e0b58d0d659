"""A Dask cluster as the executor of a sweep; imported only where one is asked for."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager

from lnsim.base.signals import without_signals
from lnsim.base.threads import cores

LOCAL = "local"
TIMEOUT = 10.0
"""Seconds to wait for an answer of the scheduler."""


@contextmanager
def cluster(address: str) -> Iterator[tuple[Executor, int, tuple[type[BaseException], ...]]]:
    """An executor, its number of cores, and the error of a task that repeatedly killed its workers.

    `address` is that of a running scheduler, or "local" for one process per core of this machine.
    Raises ValueError if Dask is not installed or the scheduler does not answer.
    """
    try:
        from distributed import Client, LocalCluster
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--scheduler needs {error.name}, which is not installed: pip install 'lnsim[dask]'"
        ) from error
    with ExitStack() as stack:
        target: object = address
        if address == LOCAL:
            with without_signals({signal.SIGINT, signal.SIGTERM}):
                local_cluster = LocalCluster(
                    n_workers=cores(),
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.ERROR,
                )
            target = stack.enter_context(local_cluster)
        try:
            client = stack.enter_context(Client(target, timeout=TIMEOUT))
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {address!r}: {error}") from error
        executor = client.get_executor(pure=False)
        stack.callback(executor.shutdown, wait=False)
        yield executor, max(1, sum(client.nthreads().values())), (KilledWorker,)
