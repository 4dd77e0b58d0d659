"""Networks on images: divergence, figures, presets, the command line, bad input."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_experiments import same, small_resnet, small_wide

from lnsim.base import plugins
from lnsim.cli import main
from lnsim.experiments import resnet, wide_resnet, wide_resnet_sam
from lnsim.figures import canvas
from lnsim.run import experiment as experiments
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory


def test_a_run_that_diverges_says_so_and_can_be_drawn(data, tmp_path):
    for trajectory, module in (
        (wide_resnet.run(small_wide(data, lr=1e4)), wide_resnet),
        (resnet.run(small_resnet(data, lr=1e30, epochs=1)), resnet),
    ):
        assert trajectory.status.code == "DIVERGED"
        assert module.EXPERIMENT.report(trajectory)
        canvas.save(module.figure(trajectory), tmp_path)
        with pytest.raises(ValueError, match="cannot resume: the earlier run diverged"):
            config = {
                k: v for k, v in trajectory.config.items() if k not in ("experiment", "backend")
            }
            module.run(module.Config(**config), resume=trajectory)


def drawn(axes):
    """The steps at which each line has something, by its label."""
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    return {name: xy[np.isfinite(xy[:, 1]), 0].tolist() for name, xy in lines.items()}


def test_of_an_arm_that_diverged_nothing_is_drawn_from_there_on_and_the_figure_says_so(data):
    short = {"steps": 20, "record_every": 2, "curvature_every": 0}
    setting = small_wide(data, wide_resnet_sam.Config, rho=1e4, lr=4.0, **short)
    trajectory = wide_resnet_sam.run(setting)
    step = trajectory.status.step
    assert trajectory.status == Status("DIVERGED", step) and 0 < step < 20
    figure = trajectory.plot()
    assert f"SAM diverged at step {step}" in [text.get_text() for text in figure.texts]
    every = list(range(0, 21, 2))
    before = [t for t in every if t < step]
    for axes in figure.axes[:3]:
        found = drawn(axes)
        assert (found.pop("SAM"), found.pop("gradient descent")) == (before, every)
        assert found in ({"linearised": every}, {})
    assert np.isnan(trajectory["sam_train_loss"][len(before) :]).all()
    assert trajectory.summary()["first_and_last"]["sam_train_loss"][1] is None
    (axes,) = trajectory.plot("test_loss").axes
    assert drawn(axes)[f"SAM, diverged at step {step}"] == before


def test_of_levels_that_diverged_nothing_is_drawn_from_there_on_and_the_figure_says_so(data):
    trajectory = resnet.run(small_resnet(data, lr=1e30, epochs=2, record_every=1))
    step = trajectory.status.step
    assert trajectory.status == Status("DIVERGED", step) and step <= 5
    figure = trajectory.plot()
    assert f"τ = 0 diverged at step {step}" in [text.get_text() for text in figure.texts]
    loss, accuracy, pruned, sharpness = figure.axes
    assert drawn(loss) == drawn(sharpness) == {r"$\tau$ = 0": [0]}
    assert drawn(pruned) == {r"$\tau$ = 0": []}
    assert {tuple(times) for times in drawn(accuracy).values()} == {(0,)}


def test_an_unstable_linearisation_leaves_the_axis_and_flattens_nothing(data):
    setting = small_wide(data, lr=60.0, steps=20, record_every=2, curvature_every=0)
    trajectory = wide_resnet.run(setting)
    assert trajectory["linearized_test_loss"][-1] > 1e9
    own = [trajectory[f"{arm}_test_loss"] for arm in ("clean", "noisy")]
    for figure in (trajectory.plot(), trajectory.plot("train_loss", "test_loss")):
        axes = figure.axes[1]
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "log"
        assert low <= np.nanmin(own) and np.nanmax(own) < high < 1e3 * np.nanmax(own)


def test_the_figure_says_which_preset_made_it_and_what_was_changed(data, residual, wide):
    text = " ".join(resnet.figure(residual).texts[0].get_text().split())
    assert text.startswith("Preset small, changed: samples = 50, test_samples = 40, width = 2,")
    assert "n = 50 training and 40 test images of images.npz" in text and "lr 0.1" in text
    papers = "Zhang et al. 2026, He et al. 2016, Krizhevsky 2009, Han et al. 2015"
    assert text.endswith(f". Papers: {papers}.")
    assert len(resnet.figure(residual).axes) == 4
    text = " ".join(wide_resnet.figure(wide).texts[0].get_text().split())
    assert "n = 20 training" in text and "lr 2" in text and "label noise 0.5 (any)" in text
    for trajectory, module in ((residual, resnet), (wide, wide_resnet)):
        assert len(module.EXPERIMENT.report(trajectory)) >= 2


@pytest.mark.parametrize("name", ["wide-resnet", "wide-resnet-sam", "resnet"])
def test_what_was_set_goes_over_the_preset(name):
    module = experiments.load(name)
    found = module.with_preset("paper", {"lr": 7.0}, "torch", "cpu")
    assert found["preset"] == "paper" and found["lr"] == 7.0
    config = module.Config(**found)
    assert config.samples == {"resnet": 0}.get(name, 64)
    assert module.with_preset(None, {}, "torch", "cpu") == {"preset": "small"}
    on_cuda = module.with_preset(None, {}, "torch", "cuda:1")
    assert on_cuda["preset"] == "paper"
    # A complete configuration of one preset is not turned into another's by its name.
    with pytest.raises(ValueError, match="the configuration has the preset 'small', not 'paper'"):
        module.with_preset("paper", {"preset": "small"}, "torch", "cpu")


def run_cli(*words):
    return main.main(["run", *map(str, words)])


def as_assignments(config):
    return [f"{key}={json.dumps(value)}" for key, value in vars(config).items()]


def test_the_configuration_that_is_written_repeats_the_run(data, residual, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    assert run_cli("resnet", "--set", *as_assignments(small_resnet(data)), "--out", first) == 0
    assert 'preset = "small"' in (first / "config.toml").read_text(encoding="utf-8")
    assert run_cli("--config", first / "config.toml", "--out", again) == 0
    assert same(Trajectory.load(first), Trajectory.load(again))
    assert same(Trajectory.load(first), residual)
    assert {"figure.png", "figure.pdf", "summary.json"} <= {p.name for p in first.iterdir()}
    assert capsys.readouterr().out.count("run folder") == 2


def test_two_processes_are_one_and_one_of_them_writes(data, tmp_path, capsys):
    # So small a batch norm multiplies rounding errors from step to step: few and short ones.
    setting = small_resnet(data, lr=1e-3, epochs=4, record_every=1, tau=[0.6])
    words = ["run", "resnet", "--device", "cpu", "--set", *as_assignments(setting), "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "lnsim", *words, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert main.main([*words, str(tmp_path / "one")]) == 0
    two, one = Trajectory.load(tmp_path / "two"), Trajectory.load(tmp_path / "one")
    assert one["train_loss"][0, -1] != one["train_loss"][0, 0]
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "large"], "preset must be one of paper, small, got 'large'"),
        (["--set", "preset=3"], "preset must be one of paper, small, got 3"),
        (["--set", "samples=61"], "samples must be at most the 60 images of data, got 61"),
        (["--set", "samples=-1"], "samples must be at least 0"),
        (["--set", "data="], "no data: give --set data=FILE.npz"),
        (["--set", "data=nowhere.npz"], "'nowhere.npz' is no file"),
        (["--set", "kept_percent=[50,0]"], "kept_percent must be above 0 and at most 100, got 0"),
        (["--set", "kept_percent=[101]"], "kept_percent must be above 0 and at most 100, got 101"),
        (["--set", "kept_percent=[]"], "kept_percent must be a list of different numbers, got []"),
        (["--set", "tau=[0.1,0.1]"], "tau must be a list of different numbers"),
        (["--set", "tau=[0.1,1.5]"], "tau must be a probability, at most 1, got 1.5"),
        (["--set", "tau=['a']"], "tau must be a number, got 'a'"),
        (["--set", "batch_size=2000", "samples=0"], "batch_size must be at most the 60 samples"),
        (["--set", "width=0"], "width must be at least 1"),
        (["--set", "epochs=-1"], "epochs must be at least 0"),
        (["--set", "precision=float16"], "precision must be one of bfloat16, float32"),
        (["--backend", "numba"], "backend 'numba' has no networks to train: use 'torch'"),
        (["--device", "cuda:9999"], "is not available"),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_bad_input_is_told_in_one_line(data, tmp_path, capsys, words, message):
    out = tmp_path / "run"
    code = run_cli("resnet", "--set", f"data={data}", "samples=20", "test_samples=0", *words,
                   "--out", out)  # fmt: skip
    told = capsys.readouterr().err
    assert code == main.BAD_INPUT and not out.exists()
    assert message in told and told.count("\n") == 1


def test_a_wide_resnet_refuses_what_it_cannot_do(data):
    with pytest.raises(ValueError, match="kernel_every must be a multiple of record_every 10"):
        wide_resnet.run(small_wide(data, kernel_every=25))
    with pytest.raises(ValueError, match="preset must be one of paper, small, got 'large'"):
        wide_resnet.run(small_wide(data, preset="large"))


def test_images_must_have_three_channels(tmp_path):
    sets = {f"{name}_images": np.zeros((9, 16)) for name in ("train", "test")}
    sets |= {f"{name}_labels": np.arange(9) for name in ("train", "test")}
    np.savez(tmp_path / "flat.npz", **sets)
    with pytest.raises(ValueError, match=r"must hold images \(N, height, width, 3\), got shape"):
        resnet.run(small_resnet(str(tmp_path / "flat.npz")))


def test_an_experiment_without_presets_refuses_one(capsys):
    assert run_cli("sam", "--preset", "small") == main.BAD_INPUT
    assert capsys.readouterr().err == "lnsim: this experiment has no presets, got 'small'\n"


def test_missing_torch_is_told_with_the_name_of_the_extra(data, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(plugins, "importlib", types.SimpleNamespace(import_module=missing))
    for module, setting in ((wide_resnet, small_wide), (resnet, small_resnet)):
        with pytest.raises(ValueError, match=r"it needs torch: pip install 'lnsim\[torch\]'"):
            module.run(setting(data))
