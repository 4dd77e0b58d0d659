"""The processes of a sweep: what comes back of a task, and what the death of one costs."""

import functools
import multiprocessing
import os
import signal
import threading
import time

import pytest

from lnsim.sweeps.dispatch import Crew, Dispatch
from lnsim.sweeps.processes import THREADS, Died, processes

DIED = "a process of the sweep died"


def where(*_):
    return os.getpid(), [os.environ[name] for name in THREADS]


def raises(error):
    raise error


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_and_errors_come_back_and_nothing_is_left(monkeypatch):
    monkeypatch.setenv(THREADS[0], "7")
    monkeypatch.delenv(THREADS[1], raising=False)
    with processes() as pool:
        number, threads = pool.submit(where).result()
        assert number != os.getpid() and threads == ["1"] * len(THREADS)
        assert pool.submit(int, "12", base=8).result() == 10
        with pytest.raises(ValueError, match="no such thing") as caught:
            pool.submit(raises, ValueError("no such thing")).result()
        (note,) = caught.value.__notes__
        assert "in a process of the sweep" in note and "in raises" in note
        with pytest.raises(OSError, match="full"):  # not taken for the end of a pipe
            pool.submit(raises, OSError("full")).result()
        assert pool.submit(where).result()[0] == number
    assert os.environ[THREADS[0]] == "7" and THREADS[1] not in os.environ
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(where)


class Unpicklable(Exception):
    """Cannot be sent."""

    def __init__(self, *held):
        super().__init__("held a lock")
        self.lock = threading.Lock()


class Unbuildable(Exception):
    """Can be sent, and not be received."""

    def __init__(self, name, value):
        super().__init__(f"{name} is {value}")


def fails(kind, *arguments):
    raise kind(*arguments)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ((Unpicklable,), "Unpicklable: held a lock"),
        ((Unbuildable, "lr", 3), "Unbuildable: lr is 3"),
    ],
)
def test_an_error_that_cannot_be_sent_is_told_and_costs_no_process(task, says):
    with processes() as pool:
        number = pool.submit(where).result()[0]
        with pytest.raises(RuntimeError, match=says) as caught:
            pool.submit(fails, *task).result()
        assert "in fails" in caught.value.__notes__[0]
        assert pool.submit(where).result()[0] == number


def test_a_process_that_dies_is_replaced():
    with processes() as pool:
        number = pool.submit(where).result()[0]
        with pytest.raises(Died, match=DIED):
            pool.submit(dies).result()
        number = pool.submit(where).result()[0]
        os.kill(number, signal.SIGKILL)  # while it has nothing to do
        while any(child.pid == number for child in multiprocessing.active_children()):
            time.sleep(0.001)
        with pytest.raises(Died, match=DIED):
            pool.submit(where).result()
        assert pool.submit(where).result()[0] != number


def noted(folder, chunk):
    """A task that notes when it begins and ends; the first process of chunk 1 dies."""
    (number,) = chunk
    begun = time.monotonic()
    died = folder / "died"
    (folder / f"{number} at {begun}").touch()
    if number == 1 and not died.exists():
        died.touch()
        dies()
    time.sleep(0.05)
    return [(begun, time.monotonic())]


def test_the_chunk_of_a_dead_process_runs_again_by_itself_and_others_run_once(tmp_path):
    with processes() as pool:
        dispatch = Dispatch(Crew(pool, 2, died=(Died,)), functools.partial(noted, tmp_path))
        found = {
            chunk[0]: times
            for arrived in dispatch.results([[i] for i in range(8)], lambda: False)
            for chunk, (times,) in arrived
        }
    assert not dispatch.lost and sorted(found) == list(range(8))
    runs = [path.name.partition(" ")[0] for path in tmp_path.glob("* at *")]
    assert sorted(runs) == sorted("011234567")
    begun, ended = found.pop(1)
    assert all(end <= begun or ended <= begin for begin, end in found.values())
