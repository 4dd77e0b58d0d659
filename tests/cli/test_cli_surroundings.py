"""What stands around a command: streams closed, full or short of letters, settings of others."""

import io
import os
import subprocess
import sys
import warnings

import numba
import numpy as np
import pytest

import lnsim
from lnsim.base import threads
from lnsim.cli import surroundings
from lnsim.cli.main import main
from lnsim.simulation.trajectory import Trajectory

SMALL = ["--set", "samples=20", "dim=4", "width=20", "lr=1e-2", "steps=60", "record_every=20"]
FILES = {"config.toml", "trajectory.npz", "summary.json", "environment.json", "figure.png",
         "figure.pdf"}  # fmt: skip
FULL = os.path.exists("/dev/full")


def run(folder, *more):
    return main(["run", "label-noise", "--out", str(folder), *SMALL, *more])


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_run_without_streams_is_a_run(closed, tmp_path):
    command = f'exec "$0" -m lnsim run label-noise --out run {" ".join(SMALL)} {closed}'
    environment = {**os.environ, "MPLBACKEND": "of another environment"}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0 and not done.stderr
    assert names(tmp_path / "run") == FILES
    assert Trajectory.load(tmp_path / "run").status.code == "OK"
    assert done.stdout.endswith(b"run folder    run\n") == (">&-" not in closed.split())


@pytest.mark.small
@pytest.mark.parametrize("closed", [("stderr",), ("stdout",), ("stdin", "stdout", "stderr")])
def test_what_is_closed_is_closed_again(closed, tmp_path, monkeypatch, capsys):
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    before = sys.stdin, sys.stdout, sys.stderr
    assert run(tmp_path) == 0 and main(["list", "nothing"]) == 2
    assert (sys.stdin, sys.stdout, sys.stderr) == before
    assert names(tmp_path) == FILES


@pytest.mark.small
def test_a_bar_of_the_library_goes_without_a_closed_stream(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    problem, network = lnsim.gaussian_regression(20, 4), lnsim.ntk_init(10, 4)
    rule = lnsim.SGD(1e-2)
    how = {"steps": 20, "record_every": 10, "progress": True}
    assert lnsim.simulate(problem, network, rule, **how).status.code == "OK"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_no_file_takes_the_number_of_a_closed_stream(name):
    """What libraries write to the number of a stream would end in that file."""
    number = ("stdin", "stdout", "stderr").index(name)
    code = f"""
import os, sys
os.close({number})
sys.{name} = None
from lnsim.cli import surroundings
with surroundings.settled():
    with open(os.devnull) as file:
        assert file.fileno() > 2, file.fileno()
    assert os.get_inheritable({number})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.small
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_a_stream_lacks_are_escaped(encoding, tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    folder = tmp_path / "ü-η-\udcff"
    assert run(folder) == 0 and names(folder) == FILES
    last = written.getvalue().decode(encoding).splitlines()[-1]
    escaped = "ü-η-\udcff".encode(encoding, "backslashreplace").decode(encoding)
    assert last == f"run folder    {tmp_path}/{escaped}"
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding=encoding))
    assert run(folder) == 2
    assert written.getvalue().decode(encoding).count(f"{escaped} is not empty") == 1


def pipe_without_reader(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w", encoding="utf-8")  # noqa: SIM115  # closed with the process's number of it
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


@pytest.mark.small
def test_a_reader_that_has_had_enough_changes_no_exit_code(tmp_path, monkeypatch, capsys):
    for arguments, code in (
        (["list"], 0),
        (["list", "nothing"], 2),
        (["run", "label-noise", "--out", str(tmp_path / "a"), *SMALL], 0),
        (["run", "label-noise", "--out", str(tmp_path / "b"), *SMALL, "lr=50.0"], 3),
    ):
        with monkeypatch.context() as patch, pipe_without_reader(patch) as stream:
            assert main(arguments) == code, arguments
            stream.flush()  # as Python does at its end
        assert "pipe" not in capsys.readouterr().err
    assert names(tmp_path / "a") == names(tmp_path / "b") == FILES


@pytest.mark.skipif(
    not FULL, reason="writes that fail for want of space need /dev/full, which Linux has"
)
@pytest.mark.small
def test_output_that_is_lost_is_told_and_the_run_is_kept(tmp_path, monkeypatch, capsys):
    for arguments, code in (
        (["list"], 4),
        (["list", "nothing"], 2),
        (["run", "label-noise", "--out", str(tmp_path), *SMALL], 4),
    ):
        with monkeypatch.context() as patch, open("/dev/full", "w", encoding="utf-8") as stream:
            patch.setattr(sys, "stdout", stream)
            assert main(arguments) == code, arguments
            stream.flush()
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert ("standard output cannot be written: No space left" in said) == (code == 4)
    assert names(tmp_path) == FILES
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["list"]) == 0 and main(["list", "nothing"]) == 2


@pytest.mark.small
def test_a_backend_of_another_environment_is_no_matter(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://nowhere.at.all")
    with surroundings.settled():
        assert os.environ["MPLBACKEND"] == "agg"
    assert os.environ["MPLBACKEND"] == "module://nowhere.at.all"
    monkeypatch.delenv("MPLBACKEND")
    with pytest.raises(ZeroDivisionError), surroundings.settled():
        raise ZeroDivisionError
    assert "MPLBACKEND" not in os.environ


@pytest.mark.small
@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "", "2 3", "inf"])
def test_a_number_of_threads_that_is_none_is_told_in_one_line(value, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    assert run(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "NUMBA_NUM_THREADS must be a whole number" in said and repr(value) in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
    problem, network = lnsim.gaussian_regression(20, 4), lnsim.ntk_init(10, 4)
    with pytest.raises(ValueError, match="NUMBA_NUM_THREADS must be"):
        lnsim.simulate(problem, network, lnsim.SGD(1e-2), steps=1, record_every=1)


@pytest.mark.small
@pytest.mark.parametrize("value", ["1", " 2 ", "100000"])
def test_a_number_of_threads_is_taken(value, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads.check()
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", int(value))
    assert threads.number() == min(int(value), threads.MOST)
    done = np.zeros(5000)

    def work(block):
        done[block] += 1

    threads.in_blocks(work, done.size)
    assert (done == 1).all()
