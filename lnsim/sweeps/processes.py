"""The processes of a sweep on this machine: one per core, each with a thread and a pipe of its own.

No two processes share a pipe or a lock, so one that dies at any moment, even half way through
sending, costs the task it was given and nothing else: the end of its pipe closes, and its thread
here raises Died.  (The pools of the standard library, of loky and of pebble have all processes send
through one pipe.  There a process that is killed while it sends leaves the reader to wait for ever,
and nobody knows whose task it was.)
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from lnsim.base.signals import without_signals
from lnsim.base.threads import cores

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

Worker = tuple[BaseProcess, Connection]


class Died(ChildProcessError):
    """The process that a task was given to has ended."""


class Processes(Executor):
    """An executor of one process per core, started as tasks come, that leave Ctrl-C to this one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(cores())
        self._changing = threading.Lock()
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._ended = False

    def submit(self, task: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        return self._threads.submit(self._run, task, args, options)

    def _run(self, *work: Any) -> Any:
        worker = process, pipe = self._worker()
        try:
            pipe.send(work)
            error, result = pipe.recv()
        except (EOFError, OSError):
            process.kill()
            raise Died("a process of the sweep died") from None
        self._idle.append(worker)
        if error is not None:
            raise error
        return result

    def _worker(self) -> Worker:
        """A process that waits for a task."""
        with self._changing:
            if self._ended:
                raise Died("the processes of the sweep have been ended")
            if self._idle:
                return self._idle.pop()
            spawn = multiprocessing.get_context("spawn")  # a forked one may inherit a held lock
            pipe, its_end = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(its_end,))
            with without_signals({signal.SIGINT}):
                process.start()
            its_end.close()  # so that the pipe ends with the process
            self._workers.append((process, pipe))
            return self._workers[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kills the processes, whatever they are at; none is left."""
        with self._changing:
            self._ended = True
            for process, _ in self._workers:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process, pipe in self._workers:
            process.join()
            pipe.close()


@contextmanager
def processes() -> Iterator[Processes]:
    """Inside, processes of one thread each; at the end, whatever the end, none is left."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with Processes() as executor:
            yield executor
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection) -> None:
    """What a process does: task after task, until this end of its pipe is the only one."""
    begin_worker()
    with suppress(EOFError, OSError):
        while True:
            task, arguments, options = pipe.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = None, task(*arguments, **options)
            except Exception as error:  # whatever it is, the process that gave the task raises it
                answer = _sendable(error), None
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; another that says it if it cannot be pickled."""
    said = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # errors of other packages run their own code here, and may raise anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a process of the sweep:\n{said}")
    return error


def begin_worker() -> None:
    """Leaves Ctrl-C to the parent for good, and ends with it even where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", "compiled code cannot be kept")  # the parent has said so
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
