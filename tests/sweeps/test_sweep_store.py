"""The results file: killed at any moment, opened by two, damaged, foreign, or of the future."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lnsim
from lnsim.cli.main import main
from lnsim.run.folder import locked
from lnsim.sweeps import store

COLUMNS = {"lr": "REAL", "width": "INTEGER", "ledger": "INTEGER", "status": "TEXT"}
VALUES = st.fixed_dictionaries(
    {
        "lr": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "width": st.none() | st.integers(-(2**63), 2**63 - 1),
        "ledger": st.booleans(),
        "status": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    }
)
KEPT = {"key": "k", "lr": 0.1, "width": 20, "ledger": False, "status": "OK"}


def new_file(folder, rows=(KEPT,)):
    """A results file with these rows."""
    path = folder / store.FILE
    store.create(path, COLUMNS, {"experiment": "label-noise", "swept": ["lr"], "base": {}})
    with closing(store.Writer(path)) as writer:
        writer.add(rows)
    return path


@pytest.mark.small
@given(rows=st.lists(VALUES, max_size=5))
def test_what_goes_in_comes_out(tmp_path_factory, rows):
    path = new_file(
        tmp_path_factory.mktemp("f"), [{"key": str(i), **r} for i, r in enumerate(rows)]
    )
    _, found = store.read(path)
    assert [{k: v for k, v in row.items() if k != "key"} for row in found] == rows


@pytest.mark.small
def test_a_point_cannot_be_stored_twice_and_a_failed_batch_leaves_nothing(tmp_path):
    path = new_file(tmp_path)
    with closing(store.Writer(path)) as writer, pytest.raises(sqlite3.IntegrityError):
        writer.add([{**KEPT, "key": "new"}, KEPT])
    assert [row["key"] for row in store.read(path)[1]] == ["k"]


@pytest.mark.small
def test_one_line_reads_it_without_lnsim(tmp_path):
    path = new_file(tmp_path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select lr, status from points").fetchall() == [(0.1, "OK")]


@pytest.mark.small
@pytest.mark.parametrize("table", ["meta", "points"])
def test_a_text_that_became_bytes_is_refused(tmp_path, table):
    path = new_file(tmp_path, [{**KEPT, "key": "1", "lr": 0.1}])
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        column = {"meta": "value", "points": "status"}[table]
        database.execute(f"UPDATE {table} SET {column} = CAST({column} AS BLOB)")
    with pytest.raises(ValueError, match="does not have its digest"):
        store.read(path)


@pytest.mark.small
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless_and_the_file_is_left_alone(tmp_path_factory, data):
    rows = [{**KEPT, "key": str(i), "lr": i / 7} for i in range(40)]
    path = new_file(tmp_path_factory.mktemp("f"), rows)
    whole, sound = path.read_bytes(), store.read(path)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 20))):
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        assert store.read(path) == sound
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    assert path.read_bytes() == bytes(damaged)


@pytest.mark.small
def test_every_bit_of_a_point_is_watched(tmp_path):
    path = new_file(tmp_path, [{**KEPT, "status": "a word to be found"}])
    content = bytearray(path.read_bytes())
    content[content.index(b"word")] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: point 'k' does not have its digest"):
        store.read(path)


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-5000])


def _short(path):
    path.write_bytes(path.read_bytes()[:50])


def _text(path):
    path.write_text("nothing of the kind\n" * 20)


def _empty(path):
    path.write_bytes(b"")


def _zeros(path):
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def _foreign(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table points (key text primary key, lr real)")
        database.commit()


def _future(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma user_version = 99")


def _meta(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update meta set value = '[\"lr\"]' where name = 'swept'")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_truncated, "is damaged"),
        (_short, "is not an SQLite file"),
        (_text, "is not an SQLite file"),
        (_empty, "is not an SQLite file"),
        (_zeros, "is damaged"),
        (_foreign, "is an SQLite file, but not of a sweep"),
        (_future, "has schema 99; this version of lnsim reads only schema 1"),
        (_meta, "the table meta does not have its digest"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_by_all_and_left_alone(tmp_path, capsys, spoil, says):
    command = ["sweep", "label-noise", "--out", str(tmp_path), "--grid", "sigma=1,2",
               "--set", "steps=0", "width=5", "dim=2", "samples=5"]  # fmt: skip
    sweep_of_two(tmp_path)
    path = tmp_path / store.FILE
    spoil(path)
    before = path.read_bytes()
    for arguments in (command, ["plot", str(tmp_path)], ["plot", str(tmp_path), "--csv", "-"]):
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert says in output.err and output.err.count("\n") == 1 and not output.out
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [store.FILE]


def sweep_of_two(folder, values=(1.0, 2.0), **base):
    """A small sweep in this process."""
    base = {"steps": 0, "width": 5, "dim": 2, "samples": 5, **base}
    with ThreadPoolExecutor(1) as executor:
        return lnsim.sweep(
            "label-noise", {"sigma": values}, out=folder, base=base, executor=executor
        )


@pytest.mark.small
def test_a_journal_that_a_killed_writer_left_is_read_past_and_then_rolled_back(tmp_path):
    path = new_file(tmp_path)
    _, rows = store.read(path)
    code = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(path)!r})
database.execute("pragma cache_size = 1")
database.execute("begin")
for i in range(2000):
    database.execute("insert into points (key, status) values (?, ?)", (str(i), "x" * 100))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code])
    journal = tmp_path / f"{store.FILE}-journal"
    before = path.read_bytes(), journal.read_bytes()
    assert store.read(path)[1] == rows
    assert (path.read_bytes(), journal.read_bytes()) == before
    with closing(store.Writer(path)) as writer:
        writer.add([{**KEPT, "key": "later"}])
    assert [row["key"] for row in store.read(path)[1]] == ["k", "later"]
    assert not journal.exists()


@pytest.mark.small
def test_two_sweeps_into_one_folder_are_never_mixed(tmp_path):
    sweep_of_two(tmp_path, [1.0])
    before = (tmp_path / store.FILE).read_bytes()
    with locked(tmp_path, "sweep"), pytest.raises(ValueError, match="another sweep is writing"):
        sweep_of_two(tmp_path)
    assert (tmp_path / store.FILE).read_bytes() == before
    assert sweep_of_two(tmp_path).new == 1


@pytest.mark.small
def test_a_lock_without_results_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "sweep"):
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)


# No two of these points can be run together: the sweep is of many short tasks.
GRID = {"width": "5:34:30"}
BASE = {"dim": 3, "samples": 20, "test_samples": 20, "steps": 2000, "record_every": 100}
POINTS = 90


@contextlib.contextmanager
def begun(folder):
    """The sweep of GRID as a process of its own, once it has committed something."""
    with subprocess.Popen(
        [sys.executable, "-m", "lnsim", "sweep", "label-noise", "--out", str(folder),
         *(f"--grid={key}={values}" for key, values in GRID.items()), "--seeds=3",
         *(f"--set={key}={value}" for key, value in BASE.items())],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True,
    ) as child:  # fmt: skip
        try:
            path = folder / store.FILE
            while not (path.exists() and store.read(path)[1]):
                assert child.poll() is None, child.communicate()
                time.sleep(0.01)
            yield child
        finally:
            child.kill()


def goes_on(folder):
    """The same sweep, once more: it runs what was missing and nothing else."""
    _, committed = store.read(folder / store.FILE)
    assert 0 < len(committed) < POINTS
    with ThreadPoolExecutor(1) as executor:
        sweep = lnsim.sweep("label-noise", GRID, seeds=3, out=folder, base=BASE, executor=executor)
    assert sweep.new == POINTS - len(committed)
    _, rows = store.read(folder / store.FILE)
    assert rows[: len(committed)] == committed and len({row["key"] for row in rows}) == POINTS
    return sweep.rows


def test_killed_in_the_middle_it_loses_nothing_and_goes_on(tmp_path):
    with begun(tmp_path) as child:
        child.send_signal(signal.SIGSTOP)  # there is no hurry then
        workers = _children(child.pid)
        with pytest.raises(ValueError, match="another sweep is writing"):
            sweep_of_two(tmp_path)
        child.kill()
    while any(map(_alive, workers)):
        time.sleep(0.01)
    assert goes_on(tmp_path) == whole(tmp_path / "whole")


def test_ctrl_c_keeps_what_arrived_and_says_how_to_go_on(tmp_path):
    with begun(tmp_path) as child:
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all processes at once
        output, error = child.communicate()
    assert child.returncode == 130 and not error
    assert output.startswith("stopped with ") and output.count("\n") == 1
    assert goes_on(tmp_path) == whole(tmp_path / "whole")


def whole(folder):
    """The points of GRID, never interrupted."""
    with ThreadPoolExecutor(1) as executor:
        return lnsim.sweep(
            "label-noise", GRID, seeds=3, out=folder, base=BASE, executor=executor
        ).rows


def _children(pid):
    """The processes that a process started, where the system tells."""
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file,
    ):
        return file.read().split()
    return []


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
