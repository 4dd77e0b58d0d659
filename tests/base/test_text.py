"""Text, in and out: files in UTF-8 whatever the locale, values, commands that can be pasted."""

import json
import math
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lnsim.base import config as configs
from lnsim.base import files
from lnsim.cli.folders import how_to_resume
from lnsim.cli.main import main
from lnsim.experiments.label_noise import Config
from lnsim.run.folder import in_shell
from lnsim.sweeps.grid import axes, parse_axis

pytestmark = pytest.mark.small

SMALL = ["steps=20", "record_every=10", "width=4", "dim=2", "samples=5", "tracked=2"]

WRITTEN = {
    "lr=.001": 0.001,
    "lr=1.e-3": 0.001,
    "lr=1E-3": 0.001,
    "lr=5.": 5.0,
    "lr=-5.E+3": -5000.0,
    "lr=+.5": 0.5,
    "lr= 0.1 ": 0.1,
    "steps=+1": 1,
    "steps=1_000": 1000,
    "ledger=True": True,
    "ledger=False": False,
    "ledger=true": True,
    "tau=[.5, 1., 0.25]": [0.5, 1.0, 0.25],
    "data=": "",
    "data=ü.npz": "ü.npz",
    "data='1.'": "1.",
    "data=runs/5./True.npz": "runs/5./True.npz",
    "data=..": "..",
    "data=1..2": "1..2",
    "data=.1.2": ".1.2",
    "law=Trueish": "Trueish",
    "width=007": "007",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_values_as_people_write_them(text):
    key, value = configs.parse_assignment(text)
    assert key == text.partition("=")[0]
    assert (value, type(value)) == (WRITTEN[text], type(WRITTEN[text]))


def test_numbers_that_are_none():
    assert math.isnan(configs.parse_assignment("lr=nan")[1])
    with pytest.raises(ValueError, match="lr cannot be set to None: leave it out for its default"):
        configs.parse_assignment("lr=None")
    with pytest.raises(TypeError, match="ledger must be true or false, got 'yes'"):
        configs.build(Config, dict([configs.parse_assignment("ledger=yes")]))


def test_grids_take_the_same_values():
    grid = dict(map(parse_axis, ["lr=.001,1.e-2,+1", "ledger=True,False", "sigma=.5:1.:2"]))
    assert axes(Config, grid) == {
        "lr": [0.001, 0.01, 1.0], "ledger": [True, False], "sigma": [0.5, 1.0],
    }  # fmt: skip


def test_the_command_line_takes_them(tmp_path, capsys):
    words = [*SMALL, "lr=.001", "sigma=1.", "ledger=True"]
    assert main(["run", "label-noise", "--out", str(tmp_path), "--set", *words]) == 0
    written = configs.read_toml(tmp_path / "config.toml")
    assert (written["lr"], written["sigma"], written["ledger"]) == (0.001, 1.0, True)
    assert main(["run", "label-noise", "--out", str(tmp_path / "b"), "--set", "lr=None"]) == 2
    assert "leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_config_files_with_and_without_a_mark(mark, tmp_path):
    file = tmp_path / "config.toml"
    file.write_bytes(mark + "# σ\r\ndata = 'ü'\r\n".encode())
    assert configs.read_toml(file) == {"data": "ü"}
    file.write_bytes(mark + '{"data": "ü"}'.encode())
    assert files.read_json(file) == {"data": "ü"}


def test_a_config_file_of_another_encoding_is_refused(tmp_path):
    file = tmp_path / "config.toml"
    for encoding in ("latin-1", "utf-16"):
        file.write_bytes("data = 'ü'".encode(encoding))
        with pytest.raises(ValueError, match=r"cannot read .*config\.toml: 'utf-8' codec"):
            configs.read_toml(file)


# In a locale of ASCII, where text files would be too; every text file without an encoding is an
# error, but for those of other packages.
ELSEWHERE = """
import json, pathlib, sys, warnings
for module in ("lnsim", "lnsim_numba"):
    warnings.filterwarnings("error", category=EncodingWarning, module=module)
import lnsim
from lnsim.cli import main as cli
out, *words = sys.argv[1:]
run = ["run", "label-noise", "--config", "mine.toml", "--out", out]
assert cli.main([*run, "--set", *words]) == 0
assert cli.main(["verify", out]) == 0
"""


def test_no_locale_changes_what_is_read_and_written(tmp_path):
    (tmp_path / "mine.toml").write_bytes("\ufeff# σ = 1, größer\nsigma = 1.0\n".encode())
    environment = {
        **os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ELSEWHERE, "out", *SMALL],
        cwd=tmp_path, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert configs.read_toml(tmp_path / "out" / "config.toml")["sigma"] == 1.0


def test_names_of_files_that_are_no_text_are_written_as_they_are(tmp_path):
    name = os.fsdecode("ü".encode() + b"\xff")
    files.write_text(tmp_path / "file", configs.to_toml({"data": name}))
    assert (tmp_path / "file").read_bytes() == b'data = "\xc3\xbc\xff"\n'
    in_ascii = "ü.npz".encode().decode("ascii", "surrogateescape")
    files.write_text(tmp_path / "file", configs.to_toml({"data": in_ascii}))
    assert tomllib.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"data": "ü.npz"}
    files.write_json(tmp_path / "file", {"data": name})
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == {"data": name}


NAMES = ["plain", "with space", "it's", 'a "word"', "ü", "$HOME", "a;b", "*", "-x", "~", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_are_printed_can_be_pasted(name):
    command = how_to_resume(Path("runs") / name)
    assert shlex.split(command) == ["lnsim", "run", "--resume", "--out", f"runs/{name}"]
    said = subprocess.run(
        ["sh", "-c", f"printf %s {in_shell(Path(name))}"], capture_output=True, check=True
    ).stdout.decode()
    assert Path(said) == Path(name) and not said.startswith("-")


def test_the_sweep_says_how_to_draw_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = "ü's folder"
    assert main(["sweep", "label-noise", "--grid", "sigma=1.", "--out", out, "--set", *SMALL]) == 0
    command = capsys.readouterr().out.strip().partition("draw it with: ")[2]
    assert shlex.split(command) == ["lnsim", "plot", out]


def test_a_plain_name_is_not_quoted():
    assert how_to_resume(Path("runs/label-noise-2")).endswith(" --out runs/label-noise-2")
