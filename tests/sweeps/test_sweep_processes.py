"""The processes of a sweep: stops, deaths, executors that break."""

import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor

import psutil
import pytest
from small_sweeps import BASE, GRID, tiny

import lnsim
from lnsim.cli.main import main
from lnsim.sweeps import dispatch as sweep_workers


def test_a_stopped_sweep_keeps_what_arrived_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    arrived = []
    stopped = tiny(tmp_path / "a", progress=arrived.append, stop=lambda: sum(arrived) >= 5)
    assert 5 <= stopped.new == len(stopped.rows) < 18 and stopped.missing == 18 - stopped.new
    rest = tiny(tmp_path / "a")
    assert rest.new == stopped.missing and rest.missing == 0
    assert rest.rows == tiny(tmp_path / "b").rows


class Failing(Executor):
    """Does what it is given at once, and from the third task on raises."""

    def __init__(self, error):
        self.error, self.count = error, 0

    def submit(self, function, *arguments):
        self.count += 1
        with ThreadPoolExecutor(1) as executor:
            if self.count < 3:
                return executor.submit(function, *arguments)
            return executor.submit(self.fail)

    def fail(self):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no such thing"), MemoryError("too wide")])
def test_what_a_task_raises_ends_the_sweep_and_loses_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    monkeypatch.setattr(sweep_workers, "cores", lambda: 1)
    with pytest.raises(type(error), match=str(error)):
        tiny(tmp_path, executor=Failing(error))
    assert len(lnsim.Sweep.load(tmp_path).rows) == 2


def killed(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def ended(chunk):
    os.kill(os.getpid(), signal.SIGTERM)


def killed_sending(chunk):
    """Dies as a process does that is killed once half of what it found is in the pipe."""
    frame = sys._getframe()
    while "pipe" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["pipe"].fileno(), (1000).to_bytes(4, "big") + b"half")
    killed(chunk)


def dies(how, marker, chunk):
    """A task: the chunk that holds 3 takes its process along, always or while there is no file."""
    if 3 in chunk and not (marker and pathlib.Path(marker).exists()):
        if marker:
            pathlib.Path(marker).touch()
        how(chunk)
    return [10 * x for x in chunk]


@pytest.mark.parametrize("how", [killed, ended, killed_sending])
@pytest.mark.parametrize("always", [True, False])
def test_a_process_that_dies_costs_its_chunk_alone(tmp_path, always, how):
    task = functools.partial(dies, how, "" if always else str(tmp_path / "died"))
    chunks = [[2 * i, 2 * i + 1] for i in range(6)]
    with sweep_workers.crew(None, None) as workers:
        dispatch = sweep_workers.Dispatch(workers, task)
        found = {
            tuple(chunk): result
            for arrived in dispatch.results(chunks, lambda: False)
            for chunk, result in arrived
        }
    assert dispatch.lost == ([[2, 3]] if always else [])
    kept = [chunk for chunk in chunks if chunk not in dispatch.lost]
    assert found == {tuple(chunk): [10 * x for x in chunk] for chunk in kept}


def large(chunk):
    """More than fits into a pipe, so that processes are killed as they send."""
    return [bytes(30_000_000)]


def test_a_stop_while_processes_send_ends_and_leaves_none(capfd):
    seen = []
    with sweep_workers.crew(None, None) as workers:
        dispatch = sweep_workers.Dispatch(workers, large)
        for some in dispatch.results([[i] for i in range(1000)], lambda: len(seen) > 3):
            seen.extend(some)
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def mask_of_each(folder, count, chunk):
    """A task: the signals blocked, once `count` processes are at it."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)
    return [signal.pthread_sigmask(signal.SIG_BLOCK, [])]


def test_every_process_leaves_ctrl_c_to_its_parent_from_its_first_moment(tmp_path):
    with sweep_workers.crew(None, None) as workers:
        task = functools.partial(mask_of_each, tmp_path, workers.size)
        dispatch = sweep_workers.Dispatch(workers, task)
        chunks = [[i] for i in range(workers.size)]
        found = [mask for some in dispatch.results(chunks, lambda: False) for _, (mask,) in some]
    assert len(found) == workers.size
    assert all(signal.SIGINT in mask and signal.SIGTERM not in mask for mask in found)


MANY = {"width": list(range(10, 34))}
LONG = {**{key: value for key, value in BASE.items() if key != "width"}, "steps": 6_000}
TO_MANY = ["sweep", "label-noise", "--grid", f"width={','.join(map(str, MANY['width']))}",
           "--set", *(f"{key}={value}" for key, value in LONG.items())]  # fmt: skip


def workers_of(number):
    """The processes of a sweep's pool, once they have been started."""
    children = psutil.Process(number).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("whom", ["the group", "the parent", "a worker"])
def test_sigterm_loses_nothing_and_leaves_nobody(tmp_path, whom):
    command = [sys.executable, "-m", "lnsim", *TO_MANY, "--out", str(tmp_path / "a")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip
    while not has_points(tmp_path / "a"):
        assert process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process.pid)
    if whom == "the group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if whom == "the parent" else workers[0].pid, signal.SIGTERM)
    said = process.communicate()[0]
    assert workers and not any(map(is_alive, workers))
    assert "Traceback" not in said
    kept = len(lnsim.Sweep.load(tmp_path / "a").rows)
    if whom == "a worker":
        assert process.returncode == 0 and kept == len(MANY["width"])
    else:
        assert process.returncode == 143 and 0 < kept < len(MANY["width"])
        left = len(MANY["width"]) - kept
        assert said == f"stopped with {left} points to go; the same command goes on\n"
    again = tiny(tmp_path / "a", MANY, base=LONG, seeds=1)
    assert again.new == len(MANY["width"]) - kept
    assert again.rows == tiny(tmp_path / "b", MANY, base=LONG, seeds=1).rows


def has_points(folder):
    try:
        return bool(lnsim.Sweep.load(folder).rows)
    except ValueError:
        return False


def test_an_executor_that_breaks_is_reported_in_one_line(tmp_path, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    with pytest.raises(ChildProcessError, match="a worker died, and with it the executor"):
        tiny(tmp_path, executor=Failing(BrokenProcessPool("gone")))


def test_a_worker_killed_under_dask_costs_nothing(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    whole = tiny(tmp_path / "a", seeds=4)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killed = []

        def kill_one(count):
            if not killed:
                address, pid = next(iter(client.run(os.getpid).items()))
                os.kill(pid, signal.SIGKILL)
                killed.append(address)

        found = lnsim.sweep(
            "label-noise", GRID, out=tmp_path / "b", base=BASE, seeds=4, progress=kill_one,
            scheduler=cluster.scheduler_address,
        )  # fmt: skip
        assert killed
    assert found.new == 36 and found.rows == whole.rows


def test_dask_that_is_missing_or_silent_is_one_line(tmp_path, monkeypatch, capsys):
    from lnsim.sweeps import dask_cluster

    command = ["sweep", "label-noise", "--grid", "sigma=1,2", "--out", str(tmp_path / "a"),
               "--scheduler", "tcp://127.0.0.1:9", "--set", "steps=0", "width=5"]  # fmt: skip
    if "distributed" in sys.modules or _has_distributed():
        monkeypatch.setattr(dask_cluster, "TIMEOUT", 0.5)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "pip install 'lnsim[dask]'" in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def _has_distributed():
    from importlib.util import find_spec

    return find_spec("distributed") is not None
