"""A figure that fails, for whatever reason, loses nothing, fails no run, and is told in a line."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawn_once import drawn_once

import lnsim
from lnsim.cli import main as cli
from lnsim.cli.main import main
from lnsim.experiments import label_noise, sam
from lnsim.figures import animation, canvas, output
from lnsim.run import experiment as experiments
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps.sweep import sweep
from lnsim.verdicts.reproduce import reproduce

SMALL = {"samples": 20, "dim": 4, "width": 20, "lr": 1e-2, "steps": 60, "record_every": 20}
ASSIGNED = ["--set", *(f"{key}={value}" for key, value in SMALL.items())]
NUMBERS = {"config.toml", "trajectory.npz", "summary.json", "environment.json"}
FIGURES = {"figure.png", "figure.pdf"}
FAULTS = [
    MemoryError(),
    OSError(28, "No space left on device"),
    RuntimeError("latex was not able to process:\n" + "a long log\n" * 500),
    ValueError("Image size of 100000x100000 pixels is too large"),
    ImportError("libfreetype.so.6: cannot open shared object file"),
    subprocess.CalledProcessError(1, ["ffmpeg"]),
]


def raising(fault):
    def fail(*arguments, **options):
        raise fault

    return fail


def names(folder):
    return {path.name for path in folder.iterdir()}


def one_line(text, *words):
    assert text.count("\n") == 1 and len(text) < 600, text
    assert text.startswith("lnsim: ") and all(word in text for word in words), text


def run_whose_figure_fails(where, fault, folder):
    """The exit code of such a run."""
    place = (label_noise, "figure") if where == "drawn" else (canvas, "render")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*place, raising(fault))
        return main(["run", "label-noise", "--out", str(folder), *ASSIGNED])


@pytest.mark.small
@pytest.mark.parametrize("where", ["drawn", "written"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_run_whose_figure_fails_is_kept(fault, where, tmp_path, capsys):
    folder = tmp_path / "a run"
    assert run_whose_figure_fails(where, fault, folder) == 4
    said = capsys.readouterr()
    one_line(said.err, "no figure, ", type(fault).__name__, f"lnsim plot '{folder}'")
    assert said.out.endswith(f"run folder    {folder}\n")
    assert names(folder) == NUMBERS
    assert Trajectory.load(folder).status.code == "OK"


@pytest.mark.small
@pytest.mark.parametrize("where", ["drawn", "written"])
def test_a_figure_that_failed_is_drawn_later(where, tmp_path):
    assert run_whose_figure_fails(where, MemoryError(), tmp_path) == 4
    assert main(["plot", str(tmp_path)]) == 0
    assert names(tmp_path) == NUMBERS | FIGURES
    kept = (tmp_path / "figure.png").read_bytes()
    assert main(["run", "label-noise", "--out", str(tmp_path), *ASSIGNED, "--force"]) == 0
    assert (tmp_path / "figure.png").read_bytes() == kept


@pytest.mark.small
def test_an_earlier_runs_figure_does_not_pass_for_this_ones(tmp_path, monkeypatch, capsys):
    arguments = ["run", "label-noise", "--out", str(tmp_path), *ASSIGNED]
    assert main([*arguments, "ledger=true"]) == 0
    assert names(tmp_path) == NUMBERS | FIGURES | {"ledger.png", "ledger.pdf"}
    monkeypatch.setattr(canvas, "render", raising(MemoryError()))
    assert main([*arguments, "--force"]) == 4
    assert names(tmp_path) == NUMBERS


@pytest.mark.small
def test_a_run_that_diverged_says_so_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(canvas, "render", raising(MemoryError()))
    assert main(["run", "label-noise", "--out", str(tmp_path), *ASSIGNED, "lr=50.0"]) == 3
    undrawn, diverged = capsys.readouterr().err.splitlines()
    assert "no figure, MemoryError" in undrawn and "diverged at step" in diverged


@pytest.mark.small
@pytest.mark.parametrize("name", experiments.names())
def test_a_figure_of_any_experiment_may_fail(name, tmp_path):
    """This one has nothing of what the figure needs."""
    bare = Trajectory({"step": np.array([0])}, {"experiment": name}, Status("OK", 0))
    assert output.write(bare, tmp_path).startswith("no figure, ")
    assert names(tmp_path) == set()


@pytest.mark.small
def test_matplotlib_itself_may_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr("lnsim.figures.canvas")
    monkeypatch.setitem(sys.modules, "lnsim.figures.canvas", None)
    assert main(["run", "label-noise", "--out", str(tmp_path), *ASSIGNED]) == 4
    one_line(capsys.readouterr().err, "ModuleNotFoundError")
    assert names(tmp_path) == NUMBERS
    assert main(["plot", str(tmp_path)]) == 4
    one_line(capsys.readouterr().err, "ModuleNotFoundError")


def test_a_matplotlibrc_that_is_no_text_costs_the_figure_alone(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: 10 # gr\xf6\xdfe\n")
    command = [sys.executable, "-m", "lnsim", "run", "label-noise", "--out", "run", *ASSIGNED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4 and "no figure, UnicodeDecodeError" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "run") == NUMBERS


@pytest.mark.small
def test_ctrl_c_is_no_fault_of_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "render", raising(KeyboardInterrupt()))
    assert main(["run", "label-noise", "--out", str(tmp_path), *ASSIGNED]) == 130
    assert names(tmp_path) == NUMBERS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    label_noise.run(label_noise.Config(**SMALL)).save(folder)
    return folder


@pytest.mark.small
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("more", [[], ["--column", "norm_mean"]], ids=["figure", "curve"])
def test_plot_tells_what_failed(more, fault, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(canvas, "render", raising(fault))
    assert main(["plot", str(finished), "--out", str(tmp_path), *more]) == 4
    said = capsys.readouterr()
    one_line(said.err, "no figure, ", type(fault).__name__)
    assert not said.out and names(tmp_path) == set() and names(finished) == NUMBERS


@pytest.mark.small
def test_a_film_that_fails_is_told(finished, tmp_path, monkeypatch, capsys):
    for fault in FAULTS:
        if not isinstance(fault, ValueError):
            monkeypatch.setattr(animation, "_stage", raising(fault))
            assert main(["plot", str(finished), "--animate", str(tmp_path / "film.gif")]) == 4
            one_line(capsys.readouterr().err, "no figure, ", type(fault).__name__)
    assert names(tmp_path) == set()


def test_a_map_of_a_sweep_that_fails_is_told(tmp_path, monkeypatch, capsys):
    base = {key: value for key, value in SMALL.items() if key != "lr"}
    grid = {"lr": [1e-3, 1e-2], "sigma": [1.0, 2.0]}
    with ThreadPoolExecutor(1) as executor:
        sweep("label-noise", grid, out=tmp_path, base=base, executor=executor)
    before = names(tmp_path)
    monkeypatch.setattr(canvas, "render", raising(MemoryError()))
    assert main(["plot", str(tmp_path)]) == 4
    one_line(capsys.readouterr().err, "no figure, MemoryError")
    assert names(tmp_path) == before
    assert "lazy 4; no figure, MemoryError</p>" in lnsim.Sweep.load(tmp_path)._repr_html_()


@pytest.mark.small
def test_a_notebook_shows_the_table_without_it(finished, monkeypatch):
    trajectory = Trajectory.load(finished)
    whole = trajectory._repr_html_()
    assert "<img" in whole
    monkeypatch.setattr(canvas, "render", raising(MemoryError()))
    bare = trajectory._repr_html_()
    assert "<p>no figure, MemoryError</p>" in bare and "<img" not in bare
    assert whole[: whole.index("<img")] in bare.replace("<p>no figure, MemoryError</p>", "")


TINY = {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 200, "record_every": 7}
OVERRIDES = {name: {**TINY, "period": 100} if "periodic" in name else TINY
             for name in ("label-noise", "label-noise-periodic", "oscillation",
                          "oscillation-periodic", "sam")}  # fmt: skip
OVERRIDES |= {"large-steps": {"samples": 12, "dim": 4, "width": 10, "count": 5, "steps": 20}}


def test_a_page_goes_without_a_figure_that_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam" / "figure.png").write_bytes(b"of an earlier run")
    monkeypatch.setattr(sam, "figure", raising(MemoryError("1 GiB")))
    told = []
    with drawn_once():
        verdicts = reproduce(tmp_path, overrides=OVERRIDES, undrawn=told.append)
    runs = ("sam", "sam-without-rho", "sam-with-label-noise", "sam-full-batch")
    assert told == [f"{run}: no figure, MemoryError: 1 GiB" for run in runs]
    page = (tmp_path / "index.html").read_text()
    assert page.count("(not drawn)") == 3 and page.count("data:image/png;base64,") == 8
    assert page.count('class="verdict"') == len(verdicts)
    assert names(tmp_path / "sam") == NUMBERS and names(tmp_path / "label-noise") > FIGURES

    def made(out, *, undrawn, **options):
        undrawn("sam: no figure, MemoryError")
        return verdicts

    monkeypatch.setattr("lnsim.verdicts.reproduce.reproduce", made)
    assert cli.main(["reproduce", "--out", str(tmp_path), "--force"]) == 4
    said = capsys.readouterr()
    assert said.err == "lnsim: sam: no figure, MemoryError\n"
    assert len(said.out.splitlines()) == len(verdicts) + 1
