"""The command line, as a user types it."""

import gc
import json
import signal
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import metadata

import numpy as np
import pytest

import lnsim
from lnsim.cli import exits
from lnsim.cli import main as cli_main
from lnsim.cli.main import main
from lnsim.run import experiment as experiments

SMALL = ["--set", "samples=20", "--set", "dim=4", "--set", "width=30", "--set", "lr=1e-2",
         "--set", "steps=300", "--set", "record_every=20"]  # fmt: skip
FILES = {"config.toml", "trajectory.npz", "summary.json", "environment.json",
         "figure.png", "figure.pdf"}  # fmt: skip


def run(folder, *more):
    return main(["run", "label-noise", "--out", str(folder), *SMALL, *more])


@pytest.mark.small
def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lnsim {metadata.version('lnsim')}\n"


@pytest.mark.small
def test_a_run_folder_is_complete_and_repeats_bit_for_bit(tmp_path, capsys):
    assert run(tmp_path / "a") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert str(tmp_path / "a") in lines[-1]
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text(encoding="utf-8"))
    assert config["experiment"] == "label-noise" and config["steps"] == 300
    assert (
        main(["run", "--config", str(tmp_path / "a/config.toml"), "--out", str(tmp_path / "b")])
        == 0
    )
    for name in ("trajectory.npz", "figure.png", "figure.pdf", "summary.json", "config.toml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.small
def test_every_documented_array_is_there(tmp_path):
    assert run(tmp_path) == 0
    documented = {
        *("step", "train_loss", "test_loss", "norm_mean", "norm_squared", "second_layer_norm"),
        *("alignment_mean", "cosine_mean", "interpolator_distance", "lazy_fraction"),
        *("ntk_distance", "tracked_neurons", "tracked_norm", "tracked_alignment"),
        *("tracked_second_layer", "cloud_step", "cloud_norm", "cloud_alignment"),
        *("final_W", "final_a"),
    }
    with np.load(tmp_path / "trajectory.npz", allow_pickle=False) as arrays:
        assert documented <= set(arrays.files)
        assert arrays["final_W"].shape == (30, 4)
        assert arrays["cloud_norm"].shape == (arrays["cloud_step"].size, 30)
        assert arrays["tracked_norm"].shape == (16, arrays["tracked_neurons"].size)
        np.testing.assert_array_equal(arrays["step"], np.arange(0, 301, 20))
    again = lnsim.Trajectory.load(tmp_path)
    assert str(again.status) == "finished after 300 steps"
    assert again.provenance["versions"]["numpy"] == np.__version__


@pytest.mark.small
def test_resume_goes_on_to_the_same_bits(tmp_path):
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "split", "--set", "steps=130") == 0
    assert main(["run", "--resume", "--out", str(tmp_path / "split"), "--set", "steps=300"]) == 0
    for name in ("trajectory.npz", "figure.png"):
        whole, split = ((tmp_path / f / name).read_bytes() for f in ("whole", "split"))
        assert whole == split, name


@pytest.mark.small
def test_the_summary_has_the_lazy_escape(tmp_path, capsys):
    assert run(tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    times = lnsim.Trajectory.load(tmp_path).phases()
    first, last = (None if np.isnan(t) else t for t in (times.first_escape, times.last_escape))
    assert (summary["first_escape"], summary["last_escape"]) == (first, last)
    assert first is not None
    assert f"first neuron near step {round(float(first)):,}" in capsys.readouterr().out


@pytest.mark.parametrize("name", experiments.names())
def test_every_key_is_explained(name, capsys):
    assert main(["list", name]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for field in fields(experiments.load(name).Config):
        assert f"{field.name} = " in out
        assert field.metadata["meaning"] in words


def test_the_second_sigterm_changes_nothing_and_ctrl_c_interrupts():
    stop = exits.Stop()
    stop.handle(signal.SIGTERM, None)
    stop.handle(signal.SIGTERM, None)
    assert stop() and stop.code == 143
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


@pytest.mark.small
def test_a_diverging_run_exits_with_3_and_says_where(tmp_path, capsys):
    assert run(tmp_path, "--set", "lr=50.0") == 3
    output = capsys.readouterr()
    assert "diverged at step" in output.err
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "DIVERGED" and f"step {summary['step']}" in output.err
    assert (tmp_path / "figure.png").exists()


@pytest.mark.small
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "lr=0.0"], "lr must be"),
        (["--set", "lr=nan"], "lr must be"),
        (["--set", "lr=inf"], "lr must be"),
        (["--set", "lr=fast"], "lr must be of type float, got 'fast'"),
        (["--set", "sigma=-1"], "sigma must be"),
        (["--set", "steps=-1"], "steps must be at least 0, got -1"),
        (["--set", "steps=1.5"], "steps must be of type int"),
        (["--set", "width=0"], "width must be at least 1, got 0"),
        (["--set", "dim=0"], "dim must be at least 1, got 0"),
        (["--set", "samples=0"], "samples must be at least 1, got 0"),
        (["--set", "record_every=0"], "record_every must be at least 1, got 0"),
        (["--set", "law=cauchy"], "law must be one of"),
        (["--set", "momentum=1.0"], "momentum must be below 1"),
        (["--set", "sgima=3"], "did you mean 'sigma'?"),
        (["--set", "sigma"], "expected KEY=VALUE"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--backend", "abacus"], "backend 'abacus' is not installed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, arguments, says):
    folder = tmp_path / "deep" / "run"
    assert run(folder, *arguments) == 2
    output = capsys.readouterr()
    assert says in output.err and output.err.count("\n") == 1 and not output.out
    assert not folder.parent.exists()


@pytest.mark.small
def test_bad_files_and_folders(tmp_path, capsys):
    (tmp_path / "bad.toml").write_text("lr = = 3", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, says in (
        (["run", "label-nois"], "did you mean 'label-noise'?"),
        (["run"], "name an experiment"),
        (["run", "label-noise", "--config", str(tmp_path / "bad.toml")], "is not valid TOML"),
        (["run", "label-noise", "--config", str(tmp_path / "none.toml")], "cannot read"),
        (["run", "label-noise", "--out", str(tmp_path / "full")], "is not empty"),
        (["run", "label-noise", "--out", str(tmp_path / "file")], "is a file"),
        (["run", "label-noise", "--out", str(tmp_path / "file" / "deep")], "cannot be written"),
        (["run", "label-noise", "--resume"], "--resume needs --out"),
        (["run", "label-noise", "--resume", "--out", str(tmp_path / "full")], "not a run folder"),
    ):
        assert main(arguments) == 2, arguments
        output = capsys.readouterr()
        assert says in output.err and output.err.count("\n") == 1, (arguments, output.err)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert run(tmp_path / "full", "--force") == 0
    assert (tmp_path / "full" / "mine.txt").read_text(encoding="utf-8") == "keep"


@pytest.mark.small
def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(experiments.names())
    assert max(map(len, lines)) <= 80


def test_as_a_module_and_light_to_import():
    code = """
import sys, lnsim, lnsim.cli
heavy = {"torch", "matplotlib", "distributed", "numba", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "lnsim", "run", "nothing"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 2 and "unknown experiment 'nothing'" in done.stderr


def test_ctrl_c_stops_at_a_record_and_resumes_to_the_same_bits(tmp_path):
    import signal
    import time

    arguments = [sys.executable, "-m", "lnsim", "run", "label-noise", "--set", "width=50",
                 "--set", "steps=3_000_000", "--set", "record_every=2000"]  # fmt: skip
    child = subprocess.Popen(
        [*arguments, "--out", str(tmp_path / "a"), "--checkpoint-every", "0"],
        stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    while not (tmp_path / "a" / "checkpoint.npz").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate()
    assert child.returncode == 130 and "--resume" in output
    resume = [sys.executable, "-m", "lnsim", "run", "--resume", "--out", str(tmp_path / "a")]
    subprocess.run(resume, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    subprocess.run([*arguments, "--out", str(tmp_path / "b")], check=True, capture_output=True)
    a, b = ((tmp_path / f / "trajectory.npz").read_bytes() for f in "ab")
    assert a == b


@pytest.mark.small
def test_one_set_takes_many_assignments_and_leaves_the_experiment_its_name(tmp_path):
    small = [text for text in SMALL if text != "--set"]
    assert main(["run", "--out", str(tmp_path), "--set", *small, "label-noise"]) == 0
    config = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert config["experiment"] == "label-noise" and config["width"] == 30


@pytest.mark.small
def test_resume_refuses_another_configuration(tmp_path, capsys):
    assert run(tmp_path, "--set", "steps=100") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    resume = ["run", "--resume", "--out", str(tmp_path), "--set", "steps=200"]
    for change, says in (
        (["sigma=2"], "sigma was 4.0 and is 2.0 now"),
        (["seed=3"], "seed was 0 and is 3 now"),
        (["ledger=true"], "ledger was False and is True now"),
        (["width=12"], "width was 30 and is 12 now"),
    ):
        capsys.readouterr()
        assert main([*resume, *change]) == 2
        output = capsys.readouterr()
        assert says in output.err and output.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.small
def test_one_line_for_what_argparse_and_files_get_wrong(tmp_path, capsys):
    (tmp_path / "types.toml").write_text(
        'experiment = "label-noise"\nbackend = 3\n', encoding="utf-8"
    )
    (tmp_path / "name.toml").write_text("experiment = 3\n", encoding="utf-8")
    for arguments, says in (
        (["run", "label-noise", "--seed", "1.5"], "invalid int value"),
        (["run", "label-noise", "--resume", "--force"], "not allowed with"),
        (["reproduce"], "required: --out"),
        ([], "required: COMMAND"),
        (["run", "--config", str(tmp_path / "types.toml")], "backend must be a name, got 3"),
        (["run", "--config", str(tmp_path / "name.toml")], "experiment must be a name, got 3"),
        (["run", "label-noise", "--checkpoint-every", "nan"], "--checkpoint-every must be"),
        (["run", "label-noise", "--set", "samples=1e9", "dim=1e6"], "not enough memory"),
        (["run", "--resume", "--out", str(tmp_path)], "is not a run folder"),
        (["theory", str(tmp_path)], "is not a run folder"),
        (["theory", "--set", "sigma=-1"], "sigma must be"),
        (["theory", "sam", "--set", "rho=-1"], "rho must be"),
        (["theory", "oscillation"], "no theory is derived for the dynamics of oscillation"),
    ):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
        output = capsys.readouterr()
        assert code == 2, arguments
        assert says in output.err and output.err.count("\n") == 1, (arguments, output.err)


@pytest.mark.small
def test_force_leaves_nothing_of_the_earlier_run(tmp_path):
    assert run(tmp_path, "--set", "ledger=true") == 0
    assert (tmp_path / "ledger.png").exists()
    assert run(tmp_path, "--force") == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.small
def test_theory_beside_runs_of_other_dynamics(tmp_path, capsys):
    small = ["width=30", "dim=4", "samples=20", "steps=60", "record_every=20"]
    for name in ("oscillation", "sam"):
        folder = tmp_path / name
        assert main(["run", name, "--out", str(folder), "--set", *small]) == 0
        capsys.readouterr()
        assert main(["theory", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"the dynamics of {name}" in " ".join(lines)
        assert max(map(len, lines)) <= 80


@pytest.mark.small
def test_theory_of_sam_where_a_folder_has_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["width=30", "dim=4", "samples=20", "steps=60", "record_every=20"]
    assert main(["theory", "sam", "--set", *small, "rho=0.2"]) == 0
    setting = capsys.readouterr().out
    assert setting.startswith("sam: ") and "measured" not in setting
    assert main(["run", "sam", "--out", "sam", "--set", *small, "rho=0.2"]) == 0
    capsys.readouterr()
    assert main(["theory", "sam"]) == 0
    assert "measured" in capsys.readouterr().out
    assert main(["theory", "sam", "--set", *small, "rho=0.2"]) == 0
    assert capsys.readouterr().out == setting


def test_the_program_ends_without_a_last_search_for_garbage(monkeypatch):
    monkeypatch.setattr(cli_main, "main", lambda: 3)
    before = gc.get_freeze_count()
    try:
        assert cli_main.program() == 3
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
