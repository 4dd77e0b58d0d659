"""The command `papers`, and `reproduce --papers`, as a user runs them."""

import json
import re

import pytest

from lnsim.cli import main
from lnsim.experiments.papers import NAMES


def test_papers_are_listed_a_line_or_two_each(capsys):
    assert main.main(["papers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*NAMES]


def test_a_paper_is_run_and_compared(tmp_path, capsys):
    assert main.main(["papers", "lewkowycz_2020", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.startswith("Lewkowycz et al. 2020\n")
    assert len(re.findall(r"^holds ", text, re.MULTILINE)) == 5
    assert "published: at most 2; ours 1.87" in text
    assert (tmp_path / "lewkowycz_2020" / "figure.png").is_file()


def test_the_page_of_papers_has_what_was_judged_and_goes_on(tmp_path, capsys):
    command = ["reproduce", "--papers", "lewkowycz-2020,kunin_2024", "--out", str(tmp_path)]
    assert main.main(command) == 0
    first = capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="kunin_2024"' in page and page.count("data:image/png;base64,") == 2
    assert "<script" not in page and "http" not in re.sub(r"https?://\S*w3.org\S*", "", page)
    sections = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))["sections"]
    assert [len(section["verdicts"]) for section in sections] == [5, 4]
    written = (tmp_path / "kunin_2024" / "delta_0" / "trajectory.npz").stat().st_mtime_ns
    assert main.main(command) == 0
    assert capsys.readouterr().out == first
    again = (tmp_path / "kunin_2024" / "delta_0" / "trajectory.npz").stat().st_mtime_ns
    assert again == written


@pytest.mark.parametrize(
    "command", [["papers", "kunin"], ["reproduce", "--out", "x", "--papers", "kunin_2024,kunin"]]
)
def test_an_unknown_paper_is_named_with_the_nearest(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(command) == 2
    assert "unknown paper 'kunin'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
