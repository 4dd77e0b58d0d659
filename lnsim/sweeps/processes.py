"""The processes of a sweep on this machine: one per core, each with its own thread and pipe.

No two processes share a pipe or a lock.  A process that dies at any moment, even half way through
sending, therefore loses only its own task: its end of the pipe closes, and its thread here raises
Died.  (In the pools of the standard library, of loky and of pebble all processes send through one
pipe.  There a process killed while it sends blocks the reader for ever, and its task is unknown.)
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
    """The process of a task has ended."""


class Processes(Executor):
    """An executor of one process per core, started on demand; Ctrl-C goes to this process alone."""

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
        """An idle process, started if there is none."""
        with self._changing:
            if self._ended:
                raise Died("the processes of the sweep have been ended")
            if self._idle:
                return self._idle.pop()
            spawn = multiprocessing.get_context("spawn")  # a forked one may inherit a held lock
            pipe, worker_pipe = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(worker_pipe,))
            with without_signals({signal.SIGINT}):
                process.start()
            worker_pipe.close()  # so that the pipe closes when the process ends
            self._workers.append((process, pipe))
            return self._workers[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Kills all processes, even while they run tasks, and waits for their end."""
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
    """An executor whose processes have one thread each; all are killed on leaving the context."""
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
    """Runs in a process: task after task, until the other end of the pipe closes."""
    begin_worker()
    with suppress(EOFError, OSError):
        while True:
            task, arguments, options = pipe.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = None, task(*arguments, **options)
            except Exception as error:
                # A task is any function, and may raise an error of any type.  None is dropped: the
                # parent raises it again, with its traceback as a note.
                answer = _sendable(error), None
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; as a RuntimeError if it cannot be pickled."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        # Pickling runs methods of the error's own class, which may fail in any way.  The error is
        # kept: as a RuntimeError with its type and text.
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a process of the sweep:\n{text}")
    return error


def begin_worker() -> None:
    """Makes this process ignore Ctrl-C, and end with its parent even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings(
        "ignore", "compiled code cannot be kept"
    )  # the parent has warned already
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
