"""Where the chunks of a sweep run: processes of this machine, a Dask cluster, or any executor.

A chunk is a list of configurations that agree in all but the scalar hyperparameters, so that one
ensemble can run them; it is one task, on one core.  Its length is such that it lasts some seconds
and every core has work.  What a point gives does not depend on the chunk it is in.

A worker that dies costs its chunk alone.  When a process dies its pool breaks, and nobody knows
whose chunk it was: every chunk that was under way is then run once more, by itself, in a new pool,
and one that breaks the pool again is lost; the others go on.  Dask gives a dead worker's chunk to
another and, after some workers have died of it, up.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from lnsim.base.signals import without_signals
from lnsim.base.threads import cores, one_thread
from lnsim.experiments._synthetic import Setting
from lnsim.sweeps.points import Summary, run_points, shared

CHUNK_SECONDS = 4.0
"""About how long a chunk lasts on one core."""

STEP_SECONDS = 3e-10
"""Time of one step for each number of the reduced network."""

RECORD_SECONDS = 1e-8
"""Time of one record for each weight of the first layer."""

POLL_SECONDS = 0.2
"""How often a sweep that waits looks whether it is to stop."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

Chunk = list[Setting]


def chunks(points: Sequence[Setting], workers: int) -> list[Chunk]:
    """The points in chunks, each of points that may be run together, in order of appearance."""
    groups: dict[tuple[Any, ...], Chunk] = {}
    for point in points:
        groups.setdefault(shared(point), []).append(point)
    share = -(-len(points) // (2 * workers))
    result = []
    for group in groups.values():
        size = max(1, min(share, int(CHUNK_SECONDS / seconds(group[0]))))
        result += [group[i : i + size] for i in range(0, len(group), size)]
    return result


def seconds(config: Setting) -> float:
    """A rough guess at the time of one point on one core."""
    rank = min(config.samples, config.dim)
    width = config.width if hasattr(config, "amplitude") else min(config.width, rank + 1)
    samples = config.samples if getattr(config, "batch_size", 1) == 0 else 1
    steps = config.steps * max(samples, getattr(config, "batch_size", 1))
    records = config.steps / max(config.record_every, 1) + 50
    recording = records * config.width * config.dim * RECORD_SECONDS
    return 1e-3 + steps * width * rank * STEP_SECONDS + recording


@dataclass
class Crew:
    """Workers to hand chunks to.

    `renew` makes an executor anew after it broke, where that can be done; `gone` are the errors of
    a task whose worker died and that will not be tried again; `tend(executor)` is called all the
    time while tasks run.
    """

    executor: Any  # an Executor
    size: int
    renew: Callable[[], Executor] | None = None
    gone: tuple[type[BaseException], ...] = ()
    tend: Callable[[Any], object] = lambda executor: None


@contextmanager
def crew(executor: Executor | None, scheduler: str | None) -> Iterator[Crew]:
    """The workers of a sweep: `executor` if given, those of a Dask scheduler, or processes."""
    if executor is not None:
        if not isinstance(executor, Executor):
            raise TypeError(
                f"executor must be a concurrent.futures.Executor, got {type(executor).__name__}"
            )
        if scheduler is not None:
            raise ValueError("give an executor or a scheduler, not both")
        yield Crew(executor, cores())
    elif scheduler is not None:
        from lnsim.sweeps import dask_cluster

        with dask_cluster.cluster(scheduler) as (pool, size, gone):
            yield Crew(pool, size, gone=gone)
    else:
        with _processes() as workers:
            yield workers


@contextmanager
def _processes() -> Iterator[Crew]:
    """One process per core, each of one thread; at the end, whatever the end, none is left."""
    with _one_thread():
        workers = Crew(_Pool(), cores(), renew=_Pool, tend=_Pool.tend)
        try:
            yield workers
        finally:
            workers.executor.end()
            workers.executor.shutdown()


class _Pool(ProcessPoolExecutor):
    """A process per core, started as tasks come, that leaves Ctrl-C to this process.

    One that is killed half way through sending leaves the pool's thread to wait for the rest, and
    it would for ever, as the pool itself holds the other end of the pipe.
    """

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a forked process may inherit a held lock
        super().__init__(cores(), mp_context=spawn, initializer=_begin_worker)

    def submit(self, task: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        with without_signals({signal.SIGINT}):  # it may start a process
            return super().submit(task, *args, **options)

    def tend(self) -> None:
        """Has the pool break where one of its processes died."""
        if connection.wait([process.sentinel for process in self._processes.values()], 0):
            self.end()

    def end(self) -> None:
        """Kills the processes; the pool then is a broken one."""
        for process in self._processes.values():
            process.kill()
        self._result_queue._writer.close()  # type: ignore[attr-defined]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has the processes that are started meanwhile use one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    """Leaves Ctrl-C to the parent for good, and ends with it even where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", "compiled code cannot be kept")  # the parent has said so
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_chunk(experiment: str, backend: str, chunk: Chunk) -> list[Summary]:
    """The task: `run_points` on one core."""
    with one_thread():
        return run_points(experiment, chunk, backend)


@dataclass
class Dispatch:
    """Hands out chunks and gathers what they give.

    `task` runs one chunk; `lost` are the chunks whose workers died of them.
    """

    workers: Crew
    task: Callable[[Chunk], list[Summary]]
    lost: list[Chunk] = field(default_factory=list)
    _waiting: deque[Chunk] = field(default_factory=deque)
    _suspects: deque[Chunk] = field(default_factory=deque)
    _running: dict[Future[list[Summary]], Chunk] = field(default_factory=dict)
    _alone: bool = False

    def results(
        self, work: Sequence[Chunk], stop: Callable[[], bool]
    ) -> Iterator[list[tuple[Chunk, list[Summary]]]]:
        """What has arrived, time after time, until all is done, lost, or `stop()` is true.

        Raises what a task raises, ChildProcessError where an executor that cannot be renewed
        breaks.
        """
        self._waiting.extend(work)
        try:
            while (self._waiting or self._suspects or self._running) and not stop():
                self._hand_out()
                done, _ = wait(self._running, POLL_SECONDS, return_when=FIRST_COMPLETED)
                self.workers.tend(self.workers.executor)
                arrived = [(f, self._running.pop(f)) for f in done if _error(f) is None]
                if arrived:
                    yield [(chunk, future.result()) for future, chunk in arrived]
                self._deal_with_failures(done)
        finally:
            if self.workers.renew is None:  # a pool that breaks chokes on what was cancelled
                for future in self._running:
                    future.cancel()

    def _hand_out(self) -> None:
        """Keeps every worker busy; while there are suspects, one of them by itself."""
        if self._suspects and not self._running:
            self._alone = True
            self._submit(self._suspects.popleft())
        elif not self._suspects and not (self._alone and self._running):
            self._alone = False
            while self._waiting and len(self._running) < 2 * self.workers.size:
                if not self._submit(self._waiting[0]):
                    break
                self._waiting.popleft()

    def _submit(self, chunk: Chunk) -> bool:
        """Hands out a chunk, unless the executor broke and what was under way is to be seen to."""
        try:
            future = self.workers.executor.submit(self.task, chunk)
        except BrokenExecutor:
            if self._running:
                return False
            self._renew()
            future = self.workers.executor.submit(self.task, chunk)
        self._running[future] = chunk
        return True

    def _deal_with_failures(self, done: set[Future[list[Summary]]]) -> None:
        broken = False
        for future in done & self._running.keys():
            error = _error(future)
            if isinstance(error, self.workers.gone):
                self.lost.append(self._running.pop(future))
            elif isinstance(error, BrokenExecutor):
                broken = True
            elif error is not None:
                raise error
        if broken:
            self._renew()
            (self.lost if self._alone else self._suspects).extend(self._running.values())
            self._running.clear()

    def _renew(self) -> None:
        if self.workers.renew is None:
            raise ChildProcessError(
                "a worker died, and with it the executor; what had arrived is kept"
            )
        broken, self.workers.executor = self.workers.executor, self.workers.renew()
        broken.shutdown()


def _error(future: Future[Any]) -> BaseException | None:
    """What a finished task raised, if anything; one that nobody here cancelled lost its cluster."""
    if future.cancelled():
        return ConnectionAbortedError("the cluster dropped a task; what had arrived is kept")
    return future.exception()
