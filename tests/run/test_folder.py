"""Locks of folders: who is refused, what is cleared away, what a system may lack."""

import os
import signal

import pytest

from lnsim.base import files
from lnsim.base.signals import without_signals
from lnsim.run.folder import LOCK, holds_something, locked

pytestmark = pytest.mark.small


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            assert os.listdir(tmp_path) == [LOCK] and not holds_something(tmp_path)
            with (
                pytest.raises(ValueError, match=f"another sweep is writing to {tmp_path}"),
                locked(tmp_path, "sweep"),
            ):
                pass
        assert not os.listdir(tmp_path)


def test_a_lock_that_was_left_is_nobodys_and_half_written_files_go(tmp_path):
    (tmp_path / LOCK).write_bytes(b"")
    (tmp_path / f"{files.OURS}summary.json.x").write_bytes(b"half")
    (tmp_path / "summary.json").write_bytes(b"whole")
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [LOCK, "summary.json"]
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_lock_file_that_its_holder_deletes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """A second writer opens the file, the first ends and deletes it, a third makes a new one."""
    import filelock

    lock = filelock.lock_descriptor

    def deleted_before(number, *, blocking):
        (tmp_path / LOCK).unlink()
        return lock(number, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", deleted_before)
    with pytest.raises(ValueError, match="another run is writing"), locked(tmp_path):
        pass


def test_what_only_posix_has_is_not_needed(tmp_path, monkeypatch):
    """Windows opens no folder and has no signal masks."""
    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.delattr(signal, "pthread_sigmask")

    def open_file(path, *arguments, **options):
        assert not os.path.isdir(path)
        return opened(path, *arguments, **options)

    opened = os.open
    monkeypatch.setattr(os, "open", open_file)
    with locked(tmp_path), without_signals({signal.SIGINT}):
        files.write_text(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "text"
