"""Progress: a bar on a terminal, a function, or nothing."""

import io
import sys

import pytest

from lnsim.base.progress import of_steps, reports

pytestmark = pytest.mark.small


def test_progress_is_reported_to_a_function():
    seen = []
    with of_steps(seen.append, 10, 0) as report:
        report(3)
        report(10)
    assert seen == [3, 10]


@pytest.mark.parametrize("progress", [None, False])
def test_no_progress_is_shown_unless_asked_for(progress, capsys):
    with of_steps(progress, 10, 0) as report:
        report(3)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_for_a_terminal_alone(monkeypatch):
    """Nothing is written to a file, nor where the error stream is closed."""
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    for stream in (terminal, file, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with of_steps(True, 40, 10) as report:
            report(30)
        with reports(True, lambda bar, name: bar.set_description(name), unit="run") as report:
            report("sam")
    assert "30.0/40.0" in terminal.getvalue() and "sam" in terminal.getvalue()
    assert file.getvalue() == ""
