"""Where the chunks of a sweep run: processes of this machine, a Dask cluster, or any executor.

A chunk is a list of configurations that agree in all but the scalar hyperparameters, so that one
ensemble can run them; it is one task, on one core.  Its length is such that it lasts some seconds
and every core has work.  What a point gives does not depend on the chunk it is in.

A worker that dies costs its chunk alone.  The chunk of a process that died is run once more, in a
new process and while no other chunk runs (the memory may have been too small for two), and one that
its process dies of again is lost; the others go on.  Dask gives a dead worker's chunk to another
and, after some workers have died of it, up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lnsim.base.threads import cores, one_thread
from lnsim.experiments._synthetic import LinearConfig
from lnsim.sweeps.points import Summary, run_points, shared

CHUNK_SECONDS = 4.0
"""About how long a chunk lasts on one core."""

STEP_SECONDS = 3e-10
"""Time of one step for each number of the reduced network."""

RECORD_SECONDS = 1e-8
"""Time of one record for each weight of the first layer."""

POLL_SECONDS = 0.2
"""How often a sweep that waits looks whether it is to stop."""

BROKEN = "a worker died, and with it the executor; what had arrived is kept"

Chunk = list[LinearConfig]


def chunks(points: Sequence[LinearConfig], workers: int) -> list[Chunk]:
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


def seconds(config: LinearConfig) -> float:
    """A rough guess at the time of one point on one core."""
    rank = min(config.samples, config.dim)
    width = min(config.width, rank + 1) if config.reduces else config.width
    steps = config.steps * max(config.samples_a_step, 1)
    records = config.steps / max(config.record_every, 1) + 50
    recording = records * config.width * config.dim * RECORD_SECONDS
    return 1e-3 + steps * width * rank * STEP_SECONDS + recording


@dataclass
class Crew:
    """Workers to hand chunks to.

    `died` is the error of a task whose worker died and that may be tried again; `gone` are those of
    tasks that the executor itself has tried again.
    """

    executor: Executor
    size: int
    died: tuple[type[BaseException], ...] = ()
    gone: tuple[type[BaseException], ...] = ()


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
        from lnsim.sweeps.processes import Died, processes  # with multiprocessing, a slow import

        with processes() as pool:
            yield Crew(pool, cores(), died=(Died,))


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

        Raises what a task raises, ChildProcessError where the executor breaks.
        """
        self._waiting.extend(work)
        try:
            while (self._waiting or self._suspects or self._running) and not stop():
                self._hand_out()
                done, _ = wait(self._running, POLL_SECONDS, return_when=FIRST_COMPLETED)
                arrived = [(f, self._running.pop(f)) for f in done if _error(f) is None]
                if arrived:
                    yield [(chunk, future.result()) for future, chunk in arrived]
                for future in done & self._running.keys():
                    self._deal_with(_error(future), self._running.pop(future))
        finally:
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
                self._submit(self._waiting.popleft())

    def _submit(self, chunk: Chunk) -> None:
        try:
            self._running[self.workers.executor.submit(self.task, chunk)] = chunk
        except BrokenExecutor as error:
            raise ChildProcessError(BROKEN) from error

    def _deal_with(self, error: BaseException | None, chunk: Chunk) -> None:
        """Notes a chunk whose worker died; raises any other error."""
        if isinstance(error, self.workers.died) and not self._alone:
            self._suspects.append(chunk)
        elif isinstance(error, self.workers.died + self.workers.gone):
            self.lost.append(chunk)
        elif isinstance(error, BrokenExecutor):
            raise ChildProcessError(BROKEN) from error
        elif error is not None:
            raise error


def _error(future: Future[Any]) -> BaseException | None:
    """What a finished task raised, if anything; one that nobody here cancelled lost its cluster."""
    if future.cancelled():
        return ConnectionAbortedError("the cluster dropped a task; what had arrived is kept")
    return future.exception()
