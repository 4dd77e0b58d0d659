"""Faults: processes killed at random moments, full disks, lost folders, damaged checkpoints.

The long forms: python -m pytest -m slow tests/test_faults.py
"""

import contextlib
import ctypes
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from small_runs import SMALL, write_images

from lnsim.base import files
from lnsim.cli.main import main
from lnsim.run.folder import LOCK
from lnsim.simulation.trajectory import Trajectory

SYNTHETIC = ("label-noise", "label-noise-periodic", "oscillation", "oscillation-periodic", "sam")
WIDE = ["samples=10", "test_samples=10", "steps=20", "record_every=2", "kernel_every=4"]
ON_IMAGES = {
    "linearization": ["samples=20", "test_samples=20", "width=16", "steps=3000",
                      "record_every=100"],
    "wide-resnet": WIDE,
    "wide-resnet-sam": WIDE,
    "resnet": ["samples=20", "test_samples=20", "width=1", "epochs=8", "batch_size=10",
               "record_every=1", "tau=[0.0,0.5]"],
}  # fmt: skip


# Forks at a line on stdin, so that a run need not wait for its imports: {"arguments": [...],
# "limit": largest file in bytes, "log": FILE for what it says}.  Answers the process's number and,
# at the next line, its exit code once it has ended; until then no other process has its number.
SERVER = """
import importlib.util, json, os, resource, sys
import lnsim.cli.main, lnsim.figures.two_phases, lnsim_numba
if importlib.util.find_spec("torch"):
    import lnsim_torch.network_engine
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if asked["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["limit"], asked["limit"]))
        code = 70
        try:
            code = lnsim.cli.main.main(asked["arguments"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print("process", child, flush=True)
    sys.stdin.readline()
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Children:
    """Runs lnsim in processes of its own."""

    def __init__(self, folder):
        self._log = folder / "log"
        command = [sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def start(self, *arguments, limit=0):
        """The number of a process that was given these arguments."""
        words = [str(word) for word in arguments]
        asked = {"arguments": words, "limit": limit, "log": str(self._log)}
        return self._ask(json.dumps(asked), "process")

    def end(self):
        """Its exit code and what it said."""
        return self._ask("", "code"), self._log.read_text(encoding="utf-8")

    def _ask(self, line, answer):
        """Sends a line; the number in the answer."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        word, number = self.process.stdout.readline().split()
        assert word == answer
        return int(number)

    def run(self, *arguments, **options):
        """Starts one and waits for it."""
        self.start(*arguments, **options)
        return self.end()

    def killed(self, after, *arguments):
        """Kills one after so many seconds; whether it was still there."""
        child = self.start(*arguments)
        ended = os.pidfd_open(child)
        select.select([ended], [], [], after)
        os.close(ended)
        os.kill(child, signal.SIGKILL)
        return self.end()[0] == -signal.SIGKILL


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    server = Children(tmp_path_factory.mktemp("children"))
    server.run("list")  # once it has its imports, times are those of runs
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    write_images(path)
    return path


def command(name, folder, image_file):
    """What runs an experiment so that it takes some tenths of a second, all of it checkpoints."""
    if name in SYNTHETIC:
        more = [*SMALL, "steps=60_000", "record_every=1000"]
    else:
        more = [f"data={image_file}", *ON_IMAGES[name]]
    return ["run", name, "--out", folder, "--checkpoint-every", "0", "--set", *more]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_files(folder, whole):
    """The same files, to the bit."""
    found, wanted = contents(folder), contents(whole)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        assert found[name] == content, name


def kill_and_resume(children, name, faults, tmp_path, image_file):
    """Kills an experiment `faults` times, going on each time; it ends as if nothing had been."""
    rng = random.Random(f"{name} {faults}")
    begin = command(name, tmp_path / "whole", image_file)
    started = time.monotonic()
    code, said = children.run(*begin)
    assert code == 0, said
    took = time.monotonic() - started
    folder, struck = tmp_path / "killed", 0
    begin[begin.index("--out") + 1] = folder
    while struck < faults:
        for _ in range(min(6, faults - struck)):
            kept = any((folder / file).exists() for file in ("checkpoint.npz", "trajectory.npz"))
            go_on = ["run", "--resume", "--out", folder, "--checkpoint-every", "0"]
            struck += children.killed(rng.uniform(0.0, took), *(go_on if kept else begin))
        kept = any((folder / file).exists() for file in ("checkpoint.npz", "trajectory.npz"))
        code, said = children.run(*(go_on if kept else begin))
        assert code == 0, said
        assert_same_files(folder, tmp_path / "whole")
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_killed_run_goes_on_to_the_same_files(children, name, tmp_path):
    kill_and_resume(children, name, 2, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SYNTHETIC, *ON_IMAGES])
def test_many_killed_runs_go_on_to_the_same_files(children, name, tmp_path, image_file):
    if name in ON_IMAGES and name != "linearization":
        pytest.importorskip("torch")
    kill_and_resume(children, name, 23, tmp_path, image_file)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_a_record_and_says_how_to_go_on(children, tmp_path, number, code):
    long = ["--set", *SMALL, "steps=1_000_000_000", "record_every=100_000"]
    folder = tmp_path / "run"
    child = children.start("run", "sam", "--out", folder, *long, "--checkpoint-every", "1e9")
    # The first record is kept at once, whatever --checkpoint-every says.
    wait_for(folder / "checkpoint.npz")
    os.kill(child, number)
    found, said = children.end()
    assert found == code
    assert said.splitlines()[-1].startswith("stopped at step ")
    assert said.splitlines()[-1].endswith(f"go on with: lnsim run --resume --out {folder}")
    stopped = Trajectory.load(folder, "checkpoint.npz")
    assert stopped.status.code == "STOPPED" and stopped.status.step == stopped.steps[-1]
    assert LOCK not in contents(folder)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.002)


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(children, tmp_path, capsys):
    long = ["--set", *SMALL, "steps=1_000_000_000", "record_every=100_000"]
    child = children.start("run", "sam", "--out", tmp_path, *long)
    wait_for(tmp_path / "checkpoint.npz")
    for more in (["--resume"], ["sam", "--force", *long]):
        assert main(["run", "--out", str(tmp_path), *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"lnsim: another run is writing to {tmp_path}")
        assert said.count("\n") == 1
    os.kill(child, signal.SIGKILL)
    children.end()
    # A file that was being written is cleared away, and the lock that was left is nobody's.
    (tmp_path / f"{files.OURS}trajectory.npz.half").write_text("half", encoding="utf-8")
    end = Trajectory.load(tmp_path, "checkpoint.npz").status.step + 100_000
    assert main(["run", "--resume", "--out", str(tmp_path), "--set", f"steps={end}"]) == 0
    assert not any(name.startswith(files.OURS) for name in contents(tmp_path))


@pytest.mark.small
def test_a_folder_that_cannot_be_locked_is_refused(tmp_path, monkeypatch, capsys):
    import fcntl

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert main(["run", "sam", "--out", str(tmp_path / "run"), "--set", *SMALL]) == 2
    assert "cannot be locked: Operation not supported" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def half_and_whole(tmp_path_factory):
    """A run folder of half a run, "run", and one of all of it, "whole"."""
    folder = tmp_path_factory.mktemp("stopped")
    for name, steps in (("run", 200), ("whole", 400)):
        small = ["--set", *SMALL, f"steps={steps}", "record_every=20"]
        assert main(["run", "label-noise", "--out", str(folder / name), *small]) == 0
    return folder


@pytest.fixture
def stopped(half_and_whole, tmp_path):
    """A folder with a checkpoint and nothing else that a run needs, and one that went through."""
    shutil.copytree(half_and_whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "trajectory.npz").rename(tmp_path / "run" / "checkpoint.npz")
    return types.SimpleNamespace(folder=tmp_path / "run", whole=tmp_path / "whole")


RESUME = ["--set", "steps=400", "--checkpoint-every", "0"]


def test_a_full_disk_is_told_and_costs_nothing(children, stopped):
    kept = contents(stopped.folder)
    resume = ["run", "--resume", "--out", stopped.folder, *RESUME]
    code, said = children.run(*resume, limit=len(kept["checkpoint.npz"]) + 100)
    assert code == 2
    last = said.splitlines()[-1]
    assert "checkpoint.npz: File too large" in last and "--resume" in last
    assert Trajectory.load(stopped.folder, "checkpoint.npz").status.step >= 200
    assert not any(name.startswith(files.OURS) for name in contents(stopped.folder))
    assert children.run(*resume)[0] == 0
    assert_same_files(stopped.folder, stopped.whole)


def at_second_save(monkeypatch, do):
    """Has `do` done right before the second checkpoint is written."""
    calls, save = [], Trajectory.save

    def saved(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            do()
        save(self, *arguments)

    monkeypatch.setattr(Trajectory, "save", saved)


@pytest.mark.small
def test_a_folder_that_is_taken_away_comes_back(stopped, tmp_path, monkeypatch):
    away = tmp_path / "away"
    at_second_save(monkeypatch, lambda: stopped.folder.rename(away))
    assert main(["run", "--resume", "--out", str(stopped.folder), *RESUME]) == 0
    assert_same_files(stopped.folder, stopped.whole)
    assert Trajectory.load(away, "checkpoint.npz").status.step == 220


@contextlib.contextmanager
def bound_by_modes():
    """Root may write everywhere, by its capability CAP_DAC_OVERRIDE: inside, it is put down."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same of the rest
    assert libc.capget(header, before) == 0
    inside = (ctypes.c_uint32 * 6)(*before)
    inside[0] &= ~(1 << 1)
    assert libc.capset(header, inside) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.mark.small
def test_a_folder_that_becomes_read_only_is_told(stopped, monkeypatch, capsys):
    at_second_save(monkeypatch, lambda: stopped.folder.chmod(0o500))
    try:
        with bound_by_modes():
            assert main(["run", "--resume", "--out", str(stopped.folder), *RESUME]) == 2
    finally:
        stopped.folder.chmod(0o700)
    said = capsys.readouterr().err
    assert "checkpoint.npz: Permission denied" in said and said.count("\n") == 1
    assert Trajectory.load(stopped.folder, "checkpoint.npz").status.step == 220


@pytest.mark.small
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:3000] + bytes([content[3000] ^ 4]) + content[3001:],
        lambda content: b"",
    ],
    ids=["half", "one byte less", "a bit", "nothing"],
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(stopped, capsys, spoil):
    path = stopped.folder / "checkpoint.npz"
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    before = contents(stopped.folder)
    capsys.readouterr()
    assert main(["run", "--resume", "--out", str(stopped.folder), *RESUME]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lnsim: cannot read {path}") and said.count("\n") == 1
    assert contents(stopped.folder) == before


@pytest.mark.small
def test_the_files_for_people_may_be_lost(stopped):
    (stopped.folder / "config.toml").write_text("steps = = 3", encoding="utf-8")
    (stopped.folder / "summary.json").unlink()
    (stopped.folder / "environment.json").unlink()
    assert main(["run", "--resume", "--out", str(stopped.folder), *RESUME]) == 0
    assert_same_files(stopped.folder, stopped.whole)


@pytest.mark.small
@pytest.mark.parametrize("name", SYNTHETIC)
def test_divergence_is_told_wherever_numbers_are(name, tmp_path, capsys):
    small = [*SMALL, "steps=2000", "record_every=10", "lr=0.9"]
    more = ["amplitude=3.0"] if name.startswith("oscillation") else []
    assert main(["run", name, "--out", str(tmp_path), "--set", *small, *more]) == 3
    assert "diverged at step" in capsys.readouterr().err
    trajectory = Trajectory.load(tmp_path)
    step = trajectory.status.step
    assert trajectory.steps[-1] <= step < trajectory.steps[-1] + 10
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "DIVERGED" and f"diverged at step {step}:" in summary["message"]
    texts = [text.get_text() for text in trajectory.plot().texts]
    assert f"diverged at step {step:,}" in texts
