"""Where compiled code is kept, and what happens where it cannot be."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
import pytest
from test_faults import bound_by_modes

import lnsim
import lnsim_numba
from lnsim.base import compiled as compiled_code
from lnsim.sweeps import processes

pytestmark = pytest.mark.small

compiles = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")


@pytest.fixture(autouse=True)
def read_again():
    """Numba reads its variables again after one has changed, and forgets what is set here."""
    numba.config.reload_config()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder for compiled code, and one for temporary files, both of this test alone."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compiled_code, "_warned", False)
    return compiled_code.folder()


def triple(x):
    return 3.0 * x


@pytest.fixture
def of_user(monkeypatch):
    """As if the user had named no folder."""
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_other_sources_have_another_folder(tmp_path, of_user, monkeypatch):
    source = tmp_path / "kernels.py"
    monkeypatch.setattr(compiled_code, "_sources", lambda: [source])
    monkeypatch.setattr(compiled_code, "_digest", compiled_code._digest.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    for text in ("one", "two", "one"):
        source.write_text(text, encoding="utf-8")
        folders.append(compiled_code.folder())
    assert folders[0] == folders[2] != folders[1]
    assert folders[0].parent == tmp_path / "lnsim"


def test_all_that_is_compiled_decides_on_the_folder():
    marks = "from numba import njit", "from lnsim.base.compiled import compiled"
    root = Path(lnsim.__file__).parent
    texts = {file: file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    found = {
        ".".join(("lnsim", *file.relative_to(root).with_suffix("").parts))
        for file, text in texts.items()
        if any(f"\n{mark}\n" in text for mark in marks)
    }
    named = {
        f"{package}.{module}"
        for package, modules in compiled_code.COMPILED.items()
        for module in modules or ()
    }
    assert {"lnsim.base.philox", "lnsim.simulation.neuron_loop"} <= found <= named
    names = {source.name for source in compiled_code._sources()}
    backend = Path(lnsim_numba.__file__).parent
    assert names == {f"{name.rpartition('.')[2]}.py" for name in named} | {
        file.name for file in backend.glob("*.py")
    }


def test_a_folder_that_was_chosen_is_kept(of_user, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", "mine")
    assert compiled_code.folder().parent == Path("mine/lnsim").absolute()


def test_a_relative_folder_of_the_system_is_no_choice(of_user, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compiled_code.folder().parent == Path("/home/someone/.cache/lnsim")


@compiles
def test_code_is_kept_for_the_next_process_and_each_type(kept):
    first, second = compiled_code.compiled()(triple), compiled_code.compiled()(triple)
    assert first(2.0) == second(2.0) == 6.0
    assert sum(first.stats.cache_misses.values()) == sum(second.stats.cache_hits.values()) == 1
    assert not second.stats.cache_misses and second.stats.cache_path == str(kept)
    assert second(np.ones(2)).tolist() == [3.0, 3.0]
    assert len(list(kept.iterdir())) == 2


@compiles
def test_other_versions_have_other_files(kept, monkeypatch):
    compiled_code.compiled()(triple)(2.0)
    monkeypatch.setattr(compiled_code, "VERSIONS", ("of another environment",))
    other = compiled_code.compiled()(triple)
    assert other(2.0) == 6.0 and other.stats.cache_misses
    assert len(list(kept.iterdir())) == 2


@compiles
def test_the_names_of_types_say_all_there_is_to_know():
    """A closure's values would not show in the name, nor would a function that is an argument."""
    loops = [
        member
        for name, module in sys.modules.items()
        if name.startswith(("lnsim_numba.", "lnsim."))
        for member in vars(module).values()
        if hasattr(member, "py_func") and isinstance(member._cache, compiled_code._Cache)
    ]
    assert len(loops) > 20
    for loop in loops:
        assert loop.py_func.__closure__ is None
        assert not any(" at 0x" in repr(signature) for signature in loop.signatures)


DAMAGE = {
    "empty": lambda content: b"",
    "short": lambda content: content[:20],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "nonsense": lambda content: bytes(1000),
}


@compiles
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_code_is_compiled_again(damage, kept):
    compiled_code.compiled()(triple)(2.0)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    again = compiled_code.compiled()(triple)
    assert again(2.0) == 6.0 and again.stats.cache_misses
    assert compiled_code._read(file.name) == file.read_bytes()[32:]  # and kept again


def test_nothing_is_left_beside(kept):
    for code in (b"one", b"two"):
        compiled_code._keep("name", code)
        assert compiled_code._read("name") == code
    assert [path.name for path in kept.iterdir()] == ["name"]


def full(self, content):
    raise OSError(28, "No space left on device")


def read_only(kept, monkeypatch):
    kept.mkdir(parents=True)
    kept.chmod(0o500)
    return "Permission denied"


def in_the_way(kept, monkeypatch):
    kept.parents[1].write_bytes(b"a file")
    return "exists|Not a directory"


def full_disk(kept, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, b: (full if kept in self.parents else write)(self, b)
    )
    return "No space left on device"


def no_home(kept, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # HOME unset, user unknown
    return "there is no home folder"


@pytest.mark.parametrize("fault", [read_only, in_the_way, full_disk, no_home])
def test_a_folder_that_cannot_be_written_gives_way_with_one_warning(fault, kept, monkeypatch):
    reason = fault(kept, monkeypatch)
    with bound_by_modes():
        with pytest.warns(RuntimeWarning, match=f"({reason}); it goes to .*") as caught:
            compiled_code._keep("first", b"1")
        compiled_code._keep("second", b"2")  # a warning would be an error
        assert (compiled_code._read("first"), compiled_code._read("second")) == (b"1", b"2")
    assert len(caught) == 1
    assert str(caught[0].message).endswith(" Set NUMBA_CACHE_DIR to a folder that can be written.")
    told = warnings.formatwarning(
        caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno
    )
    assert told.count("\n") == 1
    root = Path(tempfile.gettempdir(), f"lnsim-{os.geteuid()}")
    assert root.stat().st_mode & 0o777 == 0o700


@compiles
def test_a_folder_that_can_only_be_read_is_read(kept):
    compiled_code.compiled()(triple)(2.0)
    kept.chmod(0o500)
    with bound_by_modes():
        second = compiled_code.compiled()(triple)
        assert second(2.0) == 6.0 and not second.stats.cache_misses  # and no warning
        with pytest.warns(RuntimeWarning, match="Permission denied; it goes to"):
            assert second(2) == 6.0
        third = compiled_code.compiled()(triple)
        assert third(2.0) == third(2) == 6.0 and not third.stats.cache_misses


def everyones(root):
    root.mkdir()
    root.chmod(0o777)


def a_link(root):
    (root.parent / "elsewhere").mkdir()
    root.symlink_to(root.parent / "elsewhere")


def a_file(root):
    root.write_bytes(b"")


@pytest.mark.parametrize("prepare", [everyones, a_link, a_file])
def test_no_code_is_run_from_where_others_may_write(prepare, kept, tmp_path, monkeypatch):
    full_disk(kept, monkeypatch)
    root = tmp_path / f"lnsim-{os.geteuid()}"
    with pytest.warns(RuntimeWarning):
        compiled_code._keep("name", b"code")
    assert compiled_code._read("name") == b"code"
    root.rename(tmp_path / "before")
    prepare(root)
    monkeypatch.setattr(compiled_code, "_warned", False)
    if root.is_dir():
        (tmp_path / "before" / kept.name).rename(root / kept.name)
    assert compiled_code._read("name") is None
    with pytest.warns(RuntimeWarning, match="every process compiles anew"):
        compiled_code._keep("name", b"code")


def test_no_folder_for_temporary_files_is_no_fault(kept, monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    full_disk(kept, monkeypatch)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.warns(RuntimeWarning, match="every process compiles anew"):
        compiled_code._keep("name", b"code")
    assert compiled_code._read("name") is None


def test_the_workers_of_a_sweep_leave_the_warning_to_their_parent(kept, monkeypatch):
    parent = types.SimpleNamespace(join=threading.Event().wait)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with warnings.catch_warnings():
        processes.begin_worker()
        # Else it is an error.
        compiled_code._warn("Permission denied", "every process compiles anew")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        monkeypatch.setattr(compiled_code, "_warned", False)
        compiled_code._warn("Permission denied", "every process compiles anew")


def fresh(*command, **environment):
    """Runs Python anew, as a user does who has set nothing but `environment`."""
    unset = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PYTHONPATH", "PYTHONWARNINGS")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    return subprocess.run(
        [sys.executable, "-P", *command], env={**inherited, **environment},
        encoding="utf-8", capture_output=True, timeout=300,
    )  # fmt: skip


DRAW = "import numpy, lnsim.base.philox as p; p._fill(numpy.empty(5, 'u8'), numpy.ones(2, 'u8'), 0)"


@compiles
def test_a_home_that_is_none_costs_one_line(tmp_path):
    done = fresh("-c", DRAW, HOME="/dev/null", TMPDIR=str(tmp_path))
    place = tmp_path / f"lnsim-{os.geteuid()}" / compiled_code._digest()
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("lnsim:0: RuntimeWarning: compiled code cannot be kept in /dev/")
    assert done.stderr.count("\n") == 1 and f"it goes to {place}." in done.stderr
    assert len(list(place.iterdir())) == 2
    before = {path: path.stat().st_ino for path in place.iterdir()}
    done = fresh("-c", DRAW, HOME="/dev/null", TMPDIR=str(tmp_path))  # it uses what the first kept
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    assert f"the code in {place} is used. Set NUMBA_CACHE_DIR" in done.stderr
    assert {path: path.stat().st_ino for path in place.iterdir()} == before


AT_ONCE = f"""
import os, numpy, lnsim.base.philox
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        code = 70
        try:
            {DRAW}
            code = 0
        finally:
            os._exit(code)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
"""


@compiles
def test_many_processes_compile_at_once(tmp_path):
    done = fresh("-c", AT_ONCE, NUMBA_CACHE_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    place = tmp_path / "lnsim" / compiled_code._digest()
    names = sorted(path.name.partition("-")[0] for path in place.iterdir())
    assert names == ["lnsim.base.philox._block", "lnsim.base.philox._fill"]


def test_importing_changes_neither_environment_nor_files(tmp_path):
    script = (
        "import os, sys; before = dict(os.environ); import lnsim; "
        "assert dict(os.environ) == before and 'numba' not in sys.modules"
    )
    done = fresh("-c", script, HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


FROM_ARCHIVE = """
import sys, lnsim.cli.main, lnsim.base.compiled, lnsim_numba
from lnsim.verdicts import page
assert ".whl" in lnsim.__file__ and ".whl" in lnsim_numba.__file__
assert lnsim.base.compiled._digest() == sys.argv[1]
assert page.render(None, [], [], {}).startswith("<!DOCTYPE html>")
size = "steps=20 record_every=10 width=4 dim=2 samples=5 test_samples=5 tracked=2".split()
sys.exit(lnsim.cli.main.main(["run", "label-noise", "--out", sys.argv[2], "--set", *size]))
"""


def test_it_runs_from_an_archive_on_the_path(tmp_path):
    archive = tmp_path / "lnsim.whl"
    with zipfile.ZipFile(archive, "w") as members:
        for name in ("lnsim", "lnsim_numba"):
            (folder,) = find_spec(name).submodule_search_locations
            for file in Path(folder).rglob("*.*"):
                if file.suffix != ".pyc":
                    members.write(file, file.relative_to(Path(folder).parent))
    # The same code: it is compiled.
    keep = {"NUMBA_CACHE_DIR": str(compiled_code.folder().parents[1])}
    command = ("-c", FROM_ARCHIVE, compiled_code._digest(), str(tmp_path / "run"))
    done = fresh("-W", "error", *command, PYTHONPATH=str(archive), **keep)
    assert done.returncode == 0, done.stderr
    assert lnsim.Trajectory.load(tmp_path / "run").status.code == "OK"
    done = fresh("-m", "lnsim", "--version", PYTHONPATH=str(archive))
    assert done.returncode == 0 and done.stdout.startswith("lnsim ")
