"""The README's code runs as it stands, and its commands are commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lnsim import cli, cli_sweep, config, experiments
from lnsim.sweep_grid import parse_axis

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CODE = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if re.match(r"(torchrun .* -m )?lnsim ", line)
]
QUICK = [["lnsim", "list"], ["lnsim", "info"], ["lnsim", "theory", "--set", "sigma=2"]]


@pytest.mark.parametrize("number", range(len(CODE)))
def test_code_runs_verbatim(number, tmp_path):
    if "torch" in CODE[number]:
        pytest.importorskip("torch")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE[number]], check=True, cwd=tmp_path, timeout=300
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_commands(words):
    arguments = cli._parser().parse_args(words[words.index("lnsim") + 1 :])
    if arguments.command is cli._run:
        values = dict(config.parse_assignment(text) for text in arguments.assignments)
        config.build(experiments.load(arguments.experiment).Config, values)
    if arguments.command is cli_sweep._sweep:
        known = set(vars(experiments.load(arguments.experiment).Config()))
        assert {parse_axis(text)[0] for text in arguments.grid} <= known


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_quick_commands_run_verbatim(words, capsys):
    assert words in COMMANDS
    assert cli.main(words[1:]) == 0
    assert capsys.readouterr().out
