"""The README's code runs as it stands, and its commands are commands.

All of them, verbatim and in order, some two hours: python -m pytest -m slow tests/test_readme.py
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lnsim.base import config as configs
from lnsim.cli import main, sweep
from lnsim.run import experiment as experiments
from lnsim.sweeps.grid import parse_axis

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CODE = [text for language, text in BLOCKS if language == "python"]
LINES = [line for language, text in BLOCKS if not language for line in text.splitlines()]
COMMANDS = [
    shlex.split(line, comments=True)
    for line in LINES
    if re.match(r"(torchrun .* -m )?lnsim ", line)
]
TO_RUN = [line for line in LINES if "-m pytest" not in line]  # which runs this: see .ci/run
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
    arguments = main._parser().parse_args(words[words.index("lnsim") + 1 :])
    if arguments.command is main._run:
        values = dict(configs.parse_assignment(text) for text in arguments.assignments)
        configs.build(experiments.load(arguments.experiment).Config, values)
    if arguments.command is sweep._sweep:
        known = set(vars(experiments.load(arguments.experiment).Config()))
        assert {parse_axis(text)[0] for text in arguments.grid} <= known


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_quick_commands_run_verbatim(words, capsys):
    assert words in COMMANDS
    assert main.main(words[1:]) == 0
    assert capsys.readouterr().out


def test_a_package_index_is_given_no_picture_that_it_does_not_have(monkeypatch):
    given = {}
    setuptools = types.SimpleNamespace(setup=lambda **words: given.update(words))
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(ROOT / "setup.py"))
    shown, read = given["long_description"].splitlines(), README.splitlines()
    pictures = re.compile(r"!\[(.+)\]\((.+)\)")
    differing = [(a, b) for a, b in zip(shown, read, strict=True) if a != b]
    assert len(differing) == README.count("![") > 0
    for ours, line in differing:
        words, path = pictures.fullmatch(line).groups()
        assert (ROOT / path).is_file()
        assert ours == f"*{words}* (`{path}` in the source archive)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A clone of the project, with all that the README's commands name, and their environment.

    Images are those of LNSIM_CIFAR10, or random ones; a torchvision that has them stands for the
    one that would download them.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("the README's asv command compares two commits, and this copy has no history")
    place = tmp_path_factory.mktemp("readme") / "lnsim"
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    for name, commit in (("COMMIT1", "HEAD~1"), ("COMMIT2", "HEAD")):
        subprocess.run(["git", "tag", name, commit], cwd=place, check=True)
    given = os.environ.get("LNSIM_CIFAR10")
    arrays = dict(np.load(given)) if given else images(np.random.default_rng(0))
    np.savez(place / "FILE.npz", **arrays)
    (place / "fake" / "torchvision").mkdir(parents=True)
    (place / "fake" / "torchvision" / "__init__.py").touch()
    (place / "fake" / "torchvision" / "datasets.py").write_text(DATASETS, encoding="utf-8")
    for name, sigma in zip("abc", (2, 4, 8), strict=True):
        out = ["--out", str(place / "runs" / name)]
        assert main.main(["run", "label-noise", *out, "--set", f"sigma={sigma}", "steps=1e5"]) == 0
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    packages = [str(place / "fake"), os.environ.get("PYTHONPATH", "")]
    return place, {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(filter(None, packages)),
    }


DATASETS = """
import numpy as np

class CIFAR10:
    def __init__(self, root, train, download):
        part = "train" if train else "test"
        with np.load("FILE.npz") as arrays:
            self.data = arrays[part + "_images"]
            self.targets = arrays[part + "_labels"].tolist()
"""


def images(rng):
    """Arrays of images in place of CIFAR-10, as many as the small presets ask for."""
    arrays = {}
    for part, count in (("train", 1_500), ("test", 1_500)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("line", TO_RUN, ids=[line.split("#")[0].strip() for line in TO_RUN])
def test_every_command_runs_verbatim_and_in_order(line, checkout):
    place, environment = checkout
    done = subprocess.run(
        ["bash", "-c", line], cwd=place, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    )
    # asv exits with 1 also where it found a commit slower, as on a busy machine it will.
    compared = "asv continuous" in line and "BENCHMARKS" in done.stdout
    assert done.returncode == 0 or compared, done.stdout


@pytest.mark.small
@pytest.mark.parametrize("address", ["", "https://files.example/lnsim/main/"])
def test_pictures_on_a_package_index(address, tmp_path, monkeypatch):
    shutil.copy(ROOT / "README.md", tmp_path)
    script = tmp_path / "setup.py"
    shutil.copy(ROOT / "setup.py", script)
    (tmp_path / "setup.cfg").write_text(f"[lnsim]\npictures = {address}\n", encoding="utf-8")
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path(str(script))
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures and all((ROOT / path).is_file() for path in pictures)
    shown = re.findall(r"!\[.*?\]\((.*?)\)", given["long_description"])
    assert shown == [f"{address}{path}" for path in pictures if address]
