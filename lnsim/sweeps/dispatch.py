"""Runs the chunks of a sweep on processes of this machine, a Dask cluster, or any executor.

A chunk is a list of configurations that differ only in the scalar hyperparameters, so that one
ensemble can run them as one task on one core.  Its length is chosen so that it lasts some seconds,
and less at the end, where every core shall have work.  The result of a point does not depend on its
chunk.

If a worker dies, only its chunk is affected.  The chunk of a process that died is run once more, in
a new process and while no other chunk runs (the memory may have been too small for two); if that
process dies too, the chunk is lost and the others go on.  Dask gives a dead worker's chunk to
another worker, and gives the chunk up after some workers have died of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lnsim.base.threads import cores, one_thread
from lnsim.sweeps.points import Point, Summary, run_points, shared
from lnsim.sweeps.predicted import predict_points

CHUNK_SECONDS = 2.0
"""Intended time of a chunk on one core, at most."""

LEAST_SECONDS = 0.2
"""Time below which a chunk costs more to begin than it helps the workers to end together."""

STEP_SECONDS = 2e-10
"""Time of one step per number of the reduced network."""

RECORD_SECONDS = 2e-9
"""Time of one record per weight of the first layer."""

POLL_SECONDS = 0.2
"""Time between two checks of whether a waiting sweep should stop."""

BROKEN = "a worker died, and with it the executor; the results that had arrived are kept"

Chunk = list[Point]


def seconds(config: Point) -> float:
    """A rough estimate of the time of one point on one core."""
    records = config.steps / max(config.record_every, 1) + 50
    recording = records * config.numbers_a_record * RECORD_SECONDS
    return 1e-3 + config.steps * config.numbers_a_step * STEP_SECONDS + recording


def chunks(
    points: Sequence[Point], workers: int, seconds: Callable[[Point], float] = seconds
) -> list[Chunk]:
    """The points in chunks, each of points that can run together.

    `seconds` estimates the time of one point on one core.  Long points come first, else the order
    is that of appearance.  A chunk is at most a share of what is left, so that the last ones are
    short and all workers end together, however wrong the estimate is and whichever points diverge.
    """
    groups: dict[tuple[Any, ...], Chunk] = {}
    for point in points:
        groups.setdefault(shared(point), []).append(point)
    left, result = len(points), []
    share = -(-left // (2 * workers))
    for group in sorted(groups.values(), key=lambda group: -seconds(group[0])):
        each = seconds(group[0])
        most, least = (max(1, int(s / each)) for s in (CHUNK_SECONDS, LEAST_SECONDS))
        first = 0
        while first < len(group):
            size = min(most, max(-(-left // (2 * workers)), min(least, share)))
            result.append(group[first : first + size])
            first += size
            left -= len(result[-1])
    return result


@dataclass
class Crew:
    """The workers of a sweep.

    `died`: errors of a task whose worker died and that may be tried again.  `gave_up`: errors of a
    task that the executor itself has tried again in vain.
    """

    executor: Executor
    size: int
    died: tuple[type[BaseException], ...] = ()
    gave_up: tuple[type[BaseException], ...] = ()


@contextmanager
def crew(executor: Executor | None, scheduler: str | None) -> Iterator[Crew]:
    """The workers of a sweep: `executor` if given, a Dask cluster, or processes."""
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

        with dask_cluster.cluster(scheduler) as (pool, size, gave_up):
            yield Crew(pool, size, gave_up=gave_up)
    else:
        from lnsim.sweeps.processes import Died, processes  # with multiprocessing, a slow import

        with processes() as pool:
            yield Crew(pool, cores(), died=(Died,))


def run_chunk(experiment: str, backend: str, chunk: Chunk) -> list[Summary]:
    """Runs `run_points` on one core: the task of a worker."""
    with one_thread():
        return run_points(experiment, chunk, backend)


def predict_chunk(experiment: str, chunk: Chunk) -> list[Summary]:
    """Runs `predict_points` on one core: the task of a worker where nothing is trained."""
    with one_thread():
        return predict_points(experiment, chunk)


@dataclass
class Dispatch:
    """Submits chunks to the workers and gathers their results.

    `task` runs one chunk; `lost` holds the chunks that killed their workers.
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
        """Yields results as they arrive, until every chunk is done or lost, or `stop()` is true.

        Raises the error of a task, and ChildProcessError if the executor breaks.
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
                    self._handle(_error(future), self._running.pop(future))
        finally:
            for future in self._running:
                future.cancel()

    def _hand_out(self) -> None:
        """Keeps every worker busy, or runs a suspect chunk alone while there are any."""
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

    def _handle(self, error: BaseException | None, chunk: Chunk) -> None:
        """Records a chunk whose worker died; raises any other error."""
        if isinstance(error, self.workers.died) and not self._alone:
            self._suspects.append(chunk)
        elif isinstance(error, self.workers.died + self.workers.gave_up):
            self.lost.append(chunk)
        elif isinstance(error, BrokenExecutor):
            raise ChildProcessError(BROKEN) from error
        elif error is not None:
            raise error


def _error(future: Future[Any]) -> BaseException | None:
    """The error of a finished task or None; a task cancelled from outside lost its cluster."""
    if future.cancelled():
        return ConnectionAbortedError(
            "the cluster dropped a task; the results that had arrived are kept"
        )
    return future.exception()
