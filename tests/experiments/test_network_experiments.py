"""Networks on images: what their experiments claim, resuming them, presets, bad input."""

import json
import subprocess
import sys
import threading
import types
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import empirical_ntk, linearize, network_engine
from lnsim_torch.networks import wide_resnet as build_wide_resnet
from lnsim_torch.samples import place
from lnsim_torch.training.recipe import Recipe

from lnsim.base import plugins, threads
from lnsim.cli import main
from lnsim.experiments import _images, resnet, wide_resnet, wide_resnet_sam
from lnsim.figures import canvas
from lnsim.images import erf_network
from lnsim.run import experiment as experiments
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory

CLASSES = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of an .npz file of small images: the mean of their class, and noise."""
    rng = np.random.default_rng(0)
    looks = rng.integers(40, 216, (CLASSES, 8, 8, 3))
    arrays = {}
    for name, count in (("train", 60), ("test", 40)):
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(-40, 40, (count, 8, 8, 3))
        arrays[f"{name}_images"] = np.clip(looks[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"{name}_labels"] = labels.astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **arrays)
    return str(path)


def small_wide(data, cls=wide_resnet.Config, **changes):
    setting = cls(
        data=data, samples=20, test_samples=20, steps=40, record_every=10, kernel_every=20
    )
    return replace(setting, **changes)


def small_resnet(data, **changes):
    setting = resnet.Config(
        data=data, samples=50, test_samples=40, width=2, tau=[0.0, 0.6], epochs=12, batch_size=10,
        lr=0.1, record_every=4, train_measured=0, kept_percent=[100, 50.0, 10],
    )  # fmt: skip
    return replace(setting, **changes)


@pytest.fixture(scope="module")
def wide(data):
    return wide_resnet.run(small_wide(data))


@pytest.fixture(scope="module")
def residual(data):
    return resnet.run(small_resnet(data))


def same(left, right):
    """Whether two trajectories have the same bits, in records and in state."""
    for ours, others in ((left.arrays, right.arrays), (left.state, right.state)):
        assert list(ours) == list(others)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, others[name], err_msg=name)
    return left.status == right.status


def at_the_end(trajectory, name, *arms):
    return [trajectory[f"{arm}_{name}"][-1] for arm in arms]


def test_label_noise_leaves_the_lazy_regime(wide):
    clean, noisy, linear = at_the_end(wide, "train_loss", "clean", "noisy", "linearized")
    assert noisy > 1.2 * clean
    assert abs(clean - linear) < 0.5 * abs(noisy - linear)
    start = wide["clean_first_layer_norm"][0]
    clean, noisy = at_the_end(wide, "first_layer_norm", "clean", "noisy")
    assert start - noisy > 1.1 * (start - clean) > 0
    clean, noisy = at_the_end(wide, "ntk_distance", "clean", "noisy")
    assert noisy > 1.03 * clean > 0


def test_sam_shrinks_the_first_layer_and_moves_the_kernel(data, wide):
    trajectory = wide_resnet_sam.run(small_wide(data, wide_resnet_sam.Config))
    start = trajectory["sam_first_layer_norm"][0]
    clean, sam = at_the_end(trajectory, "first_layer_norm", "clean", "sam")
    assert start - sam > 1.1 * (start - clean) > 0
    clean, sam = at_the_end(trajectory, "ntk_distance", "clean", "sam")
    assert sam > 1.1 * clean > 0
    # Gradient descent and the linearisation are those of the other experiment.
    np.testing.assert_array_equal(trajectory["clean_train_loss"], wide["clean_train_loss"])
    np.testing.assert_allclose(
        trajectory["linearized_test_loss"], wide["linearized_test_loss"], rtol=1e-6
    )
    assert "SAM" in wide_resnet_sam.EXPERIMENT.report(trajectory)[0]
    assert len(wide_resnet_sam.figure(trajectory).axes) == 4


def test_the_linearised_curves_are_those_of_descent_on_the_linearised_network(data, wide):
    images = _images.choose(small_wide(data))
    sets = place(images, normalization="global")
    network = linearize(build_wide_resnet(1, 1).double())
    x, x_test = (part.inputs(slice(None), torch.float64) for part in (sets.train, sets.test))
    y, y_test = (np.eye(CLASSES)[labels] for labels in (images.train_labels, images.test_labels))
    optimizer = torch.optim.SGD(network.parameters(), lr=2.0)
    for _ in range(10):
        optimizer.zero_grad()
        (0.5 * (network(x) - torch.tensor(y)).square().mean()).backward()
        optimizer.step()
    for part, inputs, targets in (("train", x, y), ("test", x_test, y_test)):
        loss = erf_network.loss(network(inputs).detach().numpy(), targets)
        assert wide[f"linearized_{part}_loss"][1] == pytest.approx(loss, rel=1e-4)


def test_what_is_observed_is_that_of_the_trained_network(data, wide):
    x = place(_images.choose(small_wide(data)), normalization="global").train.inputs(slice(None))
    network = build_wide_resnet(1, 1)
    start = empirical_ntk(network, x)
    weights = {
        name.removeprefix("noisy.state.network."): torch.tensor(value)
        for name, value in wide.state.items()
        if name.startswith("noisy.state.network.")
    }
    network.load_state_dict(weights)
    moved = float((empirical_ntk(network, x) - start).norm() / start.norm())
    assert wide["noisy_ntk_distance"][-1] == pytest.approx(moved, rel=1e-3)
    first = next(iter(weights.values()))
    assert wide["noisy_first_layer_norm"][-1] == pytest.approx(float(first.norm()), rel=1e-6)
    assert wide["kernel_step"].tolist() == [0, 20, 40]
    assert wide["images"].tolist() == [20, 20]


def test_the_arms_of_a_resnet_differ_in_their_noise_alone(residual):
    assert residual["epoch"].tolist() == [0, 4, 8, 12]
    assert residual.steps.tolist() == [0, 20, 40, 60]
    for name in resnet.SERIES:
        assert residual[name].shape == (2, 4)
        assert residual[name][0, 0] == residual[name][1, 0]
    quiet, noisy = residual["train_loss"][:, -1]
    assert noisy > 1.2 * quiet
    np.testing.assert_array_equal(residual["tau"], [0.0, 0.6])


def test_pruning_starts_at_the_accuracy_of_all_weights(residual):
    assert residual["kept_percent"].tolist() == [100, 50, 10]
    np.testing.assert_array_equal(
        residual["pruned_accuracy"][:, 0], residual["test_accuracy"][:, -1]
    )


def test_the_summary_has_every_level_of_noise(residual, wide):
    summary = residual.summary()
    assert summary["tau"] == residual["tau"].tolist()
    for name in (*resnet.SERIES, "pruned_accuracy"):
        ends = [residual[name][:, 0].tolist(), residual[name][:, -1].tolist()]
        assert summary["first_and_last"][name] == ends
    kernel = wide.summary()["first_and_last"]["noisy_ntk_distance"]
    assert kernel == wide["noisy_ntk_distance"][[0, -1]].tolist()


@pytest.mark.parametrize(
    ("experiment", "setting"), [(wide_resnet, small_wide), (resnet, small_resnet)]
)
def test_a_run_stopped_in_its_second_arm_goes_on_to_the_same_bits(
    data, wide, residual, tmp_path, monkeypatch, experiment, setting
):
    monkeypatch.setattr(threads, "number", lambda: 1)  # one arm after the other
    whole = wide if experiment is wide_resnet else residual
    asked = []

    def stop():
        """True at the second record of the second arm: an arm's last record does not ask."""
        asked.append(None)
        return len(asked) == len(whole.steps) - 1 + 2

    kept = []
    stopped = experiment.run(setting(data), stop=stop, checkpoint=kept.append, checkpoint_every=0.0)
    assert stopped.status.code == "STOPPED" and stopped.status.step == whole.steps[1]
    for i, earlier in enumerate((stopped, kept[0])):
        earlier.save(tmp_path / str(i))
        again = experiment.run(
            setting(data),
            resume=Trajectory.load(tmp_path / str(i)),
            checkpoint=kept.append,
            checkpoint_every=0.0,
        )
        assert same(again, whole)


@pytest.mark.parametrize(
    ("experiment", "setting"), [(wide_resnet, small_wide), (resnet, small_resnet)]
)
def test_arms_stopped_side_by_side_go_on_to_the_same_bits(
    data, wide, residual, tmp_path, monkeypatch, experiment, setting
):
    monkeypatch.setattr(threads, "number", lambda: 2)
    whole = wide if experiment is wide_resnet else residual
    kept, both = [], threading.Barrier(2)

    def stop():
        both.wait(60)  # fails unless both arms are in training
        return True

    stopped = experiment.run(setting(data), stop=stop, checkpoint=kept.append, checkpoint_every=0.0)
    assert stopped.status == Status("STOPPED", 0)
    assert {name for name in stopped.state if name.endswith(".status")} == {
        name for name in whole.state if name.endswith(".status")
    }
    again = experiment.run(setting(data), resume=stopped, checkpoint=kept.append,
                           checkpoint_every=0.0)  # fmt: skip
    assert same(again, whole)
    for earlier in kept:
        earlier.save(tmp_path, "checkpoint.npz")
        loaded = Trajectory.load(tmp_path, "checkpoint.npz")
        assert same(experiment.run(setting(data), resume=loaded), whole)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize(
    ("experiment", "setting"), [(wide_resnet, small_wide), (resnet, small_resnet)]
)
def test_the_number_of_cores_changes_no_bit(
    data, wide, residual, monkeypatch, experiment, setting, cores
):
    monkeypatch.setattr(threads, "number", lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        found = experiment.run(setting(data))
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert found.provenance["threads"]["torch"] == 1
    assert same(found, wide if experiment is wide_resnet else residual)


def test_arms_after_one_that_diverges_are_dropped_and_those_before_it_are_not(data, monkeypatch):
    lr_at = Recipe.lr_at
    monkeypatch.setattr(
        Recipe, "lr_at", lambda recipe, step: 1e9 if recipe.tau == 0.5 else lr_at(recipe, step)
    )
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(threads, "number", lambda cores=cores: cores)
        found.append(resnet.run(small_resnet(data, tau=[0.0, 0.5, 0.6])))
        assert found[-1].status == Status("DIVERGED", 20)
        loss = found[-1]["test_loss"]
        assert np.isfinite(loss[0]).all()
        np.testing.assert_array_equal(np.isfinite(loss[1]), [True, False, False, False])
        assert np.isnan(loss[2]).all()
    assert same(*found)


def test_an_arm_that_fails_stops_the_others(data, monkeypatch):
    monkeypatch.setattr(threads, "number", lambda: 2)
    seen = []

    def fail(partial):
        seen.append(partial)
        if len(seen) > 1:
            raise OSError("cannot write: no space left")

    made, build = [], network_engine.resnet18

    def counted(**given):
        made.append(given)
        return build(**given)

    monkeypatch.setattr(network_engine, "resnet18", counted)
    # The other one would be in training for days, until its next record; the third is not begun.
    setting = small_resnet(data, tau=[0.0, 0.3, 0.6], epochs=10**6, record_every=10**6)
    with pytest.raises(OSError, match="no space left"):
        resnet.run(setting, checkpoint=fail, checkpoint_every=0.0)
    assert len(made) == 2


def test_progress_counts_the_steps_of_all_arms(data, monkeypatch):
    seen, numbers = [], iter((1, 2))
    for number in numbers:
        monkeypatch.setattr(threads, "number", lambda number=number: number)
        seen.clear()
        stopped = wide_resnet.run(
            small_wide(data), progress=seen.append, stop=lambda: len(seen) >= 50
        )
        assert seen == list(range(1, len(seen) + 1))
        assert stopped.status.code == "STOPPED" and len(seen) < 80
        wide_resnet.run(small_wide(data), progress=seen.append, resume=stopped)
        assert seen == list(range(1, 81))


def test_a_finished_run_goes_on_when_it_is_made_longer(data, wide):
    shorter = wide_resnet.run(small_wide(data, steps=20))
    assert same(wide_resnet.run(small_wide(data), resume=shorter), wide)


def test_a_finished_resnet_is_not_trained_again(data, residual, monkeypatch):
    monkeypatch.setattr("lnsim_torch.network_engine.train", None)
    assert same(resnet.run(small_resnet(data), resume=residual), residual)


def test_a_run_does_not_go_on_from_another(data, residual, tmp_path):
    with pytest.raises(ValueError, match=r"lr was 0\.1 and is 0\.2 now"):
        resnet.run(small_resnet(data, lr=0.2), resume=residual)
    with np.load(data) as archive:
        others = dict(archive)
    others["train_labels"] = others["train_labels"][::-1]
    np.savez(tmp_path / "others.npz", **others)
    moved = {**residual.config, "data": str(tmp_path / "others.npz")}
    earlier = replace(residual, config=moved)
    with pytest.raises(ValueError, match="the earlier run had other data"):
        resnet.run(small_resnet(moved["data"]), resume=earlier)


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
    setting = small_wide(data, wide_resnet_sam.Config, rho=1e4, lr=4.0, steps=20, record_every=2)
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
    loss, accuracy, pruned = figure.axes
    assert drawn(loss) == {r"$\tau$ = 0": [0]} and drawn(pruned) == {r"$\tau$ = 0": []}
    assert {tuple(times) for times in drawn(accuracy).values()} == {(0,)}


def test_an_unstable_linearisation_leaves_the_axis_and_flattens_nothing(data):
    trajectory = wide_resnet.run(small_wide(data, lr=60.0, steps=20, record_every=2))
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
    assert len(resnet.figure(residual).axes) == 3
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
    with pytest.raises(ValueError, match="the configuration is of preset 'small', not 'paper'"):
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
