"""Every key's special value, such as `0: all`, does what `lnsim list NAME` says of it."""

import dataclasses
import re
from importlib.util import find_spec

import numpy as np
import pytest

from lnsim.cli import main
from lnsim.experiments import _synthetic
from lnsim.figures import curves
from lnsim.models.problems import gaussian_regression
from lnsim.run import experiment as experiments

IMAGES, TEST_IMAGES = 12, 11
SYNTHETIC = ("label-noise", "label-noise-periodic", "oscillation", "oscillation-periodic", "sam")
ANY_MODEL = ("two-layer", "diagonal", "deep", "relu")
ON_IMAGES = ("linearization", "wide-resnet", "wide-resnet-sam", "resnet")
NEED_TORCH = ON_IMAGES[1:]


def small_but_for_torch(*cases):
    """Parameters, of which the first names an experiment; torch's networks are no small cases."""
    return [
        pytest.param(*case, marks=[] if case[0] in NEED_TORCH else pytest.mark.small)
        for case in cases
    ]


TINY = {
    "synthetic": {"samples": 8, "test_samples": 5, "dim": 3, "width": 4, "lr": 0.02, "steps": 6,
                  "record_every": 2, "tracked": 1, "sigma": 0.0, "period": 2},
    "linearization": {"samples": 6, "test_samples": 5, "width": 5, "steps": 4, "record_every": 2},
    "wide-resnet": {"samples": 6, "test_samples": 5, "steps": 2, "record_every": 1,
                    "kernel_every": 1, "curvature_every": 0, "lr": 0.5},
    "resnet": {"samples": 6, "test_samples": 5, "width": 1, "epochs": 2, "record_every": 1,
               "batch_size": 3, "train_measured": 4, "tau": [0.5], "kept_percent": [100, 50],
               "curvature_every": 0},
}  # fmt: skip
TINY["wide-resnet-sam"] = TINY["wide-resnet"]
CURVED = {"curvature_every": 2}
"""Measures the curvature too, which is most of the time of a run on images."""

SAME_AS = {
    ("linearization", "samples"): {"samples": IMAGES},
    ("linearization", "test_samples"): {"test_samples": TEST_IMAGES},
    ("wide-resnet", "samples"): {"samples": IMAGES, **CURVED},
    ("wide-resnet", "test_samples"): {"test_samples": TEST_IMAGES},
    ("wide-resnet-sam", "samples"): {"samples": IMAGES},
    ("wide-resnet-sam", "test_samples"): {"test_samples": TEST_IMAGES},
    ("wide-resnet-sam", "micro_batch"): {"micro_batch": 6},
    ("resnet", "samples"): {"samples": IMAGES},
    ("resnet", "test_samples"): {"test_samples": TEST_IMAGES},
    ("resnet", "batch_size"): {"batch_size": 6},
    ("resnet", "train_measured"): {"train_measured": 6, **CURVED},
}
"""What a special value 0 is by another name: both give the same bits."""

OTHERS = {
    **{(name, "theta_norm"): "as drawn" for name in SYNTHETIC},
    **{(name, "batch_size"): "all" for name in SYNTHETIC if not name.startswith("oscillation")},
    **{(name, "amplitude"): "left out" for name in SYNTHETIC if name.startswith("oscillation")},
    **{(name, "kernel_every"): "never" for name in ("wide-resnet", "wide-resnet-sam")},
    **{(name, "curvature_every"): "never" for name in ON_IMAGES},
    **{(name, "theta_norm"): "as drawn" for name in ANY_MODEL if name != "diagonal"},
    **{
        (name, key): "none, or all"
        for name in ANY_MODEL
        for key in ("batch_size", "rho", "micro_batch", "decay_steps", "drop_every")
    },
}
"""Those that have a test of their own below, or in test_models.py."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of an .npz file of small images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", IMAGES), ("test", TEST_IMAGES)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **arrays)
    return str(path)


def values_of(name, data, changes):
    """The experiment's keys that are set, by name."""
    known = {field.name for field in dataclasses.fields(experiments.load(name).Config)}
    values = {"data": data, **TINY["synthetic" if name in SYNTHETIC else name], **changes}
    return {key: value for key, value in values.items() if key in known}


@pytest.fixture
def run(data):
    """Runs an experiment, and makes all that is made of a trajectory."""

    def run(name, **changes):
        if name in NEED_TORCH:
            pytest.importorskip("torch")
        module = experiments.load(name)
        trajectory = module.run(module.Config(**values_of(name, data, changes)))
        assert module.report(trajectory) and trajectory.summary()["first_and_last"]
        assert trajectory.plot().axes
        return trajectory

    return run


def documented():
    """Every experiment with each of its keys whose meaning has a special value."""
    for name in experiments.names():
        if name in NEED_TORCH and not find_spec("torch"):
            continue
        for field in dataclasses.fields(experiments.load(name).Config):
            meaning = field.metadata["meaning"]
            special = re.search(r"\d: \w|left out", meaning)
            if special and ("of images" not in meaning or name in ON_IMAGES):
                yield name, field.name


@pytest.mark.small
def test_every_special_value_is_tested():
    tested = {
        pair for pair in {**SAME_AS, **OTHERS} if pair[0] not in NEED_TORCH or find_spec("torch")
    }
    assert set(documented()) == tested


@pytest.mark.parametrize(("name", "key"), small_but_for_torch(*SAME_AS))
def test_0_is_all_of_them(run, name, key):
    same_as = SAME_AS[name, key]
    zero, named = run(name, **{**same_as, key: 0}), run(name, **same_as)
    assert zero.config.get(key, 0) == 0
    assert zero.arrays.keys() == named.arrays.keys() and zero.state.keys() == named.state.keys()
    for there, here in ((zero.arrays, named.arrays), (zero.state, named.state)):
        for array, values in there.items():
            np.testing.assert_array_equal(values, here[array], err_msg=array)


@pytest.mark.parametrize(
    ("name", "more", "panels"), [("wide-resnet", CURVED, 6), ("wide-resnet-sam", {}, 4)]
)
def test_a_kernel_that_is_never_measured_is_left_out_and_changes_nothing(run, name, more, panels):
    never, always = run(name, kernel_every=0, **more), run(name, **more)
    kernel = {array for array in always.arrays if array.endswith("ntk_distance")}
    assert len(kernel) == 2
    for array, values in always.arrays.items():
        if array in kernel or "kernel_" in array:  # kernel_step, and what else is measured there
            assert never[array].size == 0
        else:
            np.testing.assert_array_equal(never[array], values, err_msg=array)
    assert kernel <= always.summary()["first_and_last"].keys()
    assert not kernel & never.summary()["first_and_last"].keys()
    assert not any("kernel" in line for line in experiments.load(name).report(never))
    assert len(always.plot().axes) == panels
    labels = [axes.get_ylabel() for axes in never.plot().axes]
    assert len(labels) == panels - 1 and not any("kernel" in label for label in labels)
    with pytest.raises(ValueError, match="no curve 'ntk_distance' in this trajectory"):
        never.plot("ntk_distance")
    both = curves.figure([never, always], ["never", "always"])  # what both have
    assert not any("K_0" in axes.get_ylabel() for axes in both.axes)


@pytest.mark.parametrize("name", small_but_for_torch(*((name,) for name in ON_IMAGES)))
def test_a_curvature_that_is_never_measured_is_left_out_and_changes_nothing(run, name):
    never, always = run(name, curvature_every=0), run(name, **CURVED)
    added = always.arrays.keys() - never.arrays.keys()
    names = {"curvature_step"} | {
        array
        for array in always.arrays
        if array.endswith(("sharpness", "hessian_trace", "kernel_alignment", "kernel_rank"))
    }
    assert added == names and len(added) == (3 if name == "resnet" else 9)
    for array, values in never.arrays.items():
        np.testing.assert_array_equal(always[array], values, err_msg=array)
    made_by = experiments.load(name)
    lines = [line for line in made_by.report(always) if "sharpness" in line]
    assert lines and all(len(line) <= 80 for line in lines)
    assert not any("sharpness" in line for line in made_by.report(never))
    with pytest.raises(ValueError, match="no curve 'sharpness' in this trajectory"):
        never.plot("sharpness")
    assert always.plot("sharpness").axes


@pytest.mark.parametrize(
    ("name", "key"),
    small_but_for_torch(
        ("linearization", "samples"),
        ("wide-resnet", "kernel_every"),
        ("resnet", "curvature_every"),
    ),
)
def test_the_commands_take_it(data, tmp_path, capsys, name, key):
    if name in NEED_TORCH:
        pytest.importorskip("torch")
    given = [f"{k}={value}" for k, value in values_of(name, data, {key: 0}).items()]
    out = str(tmp_path / "run")
    assert main.main(["run", name, "--out", out, "--device", "cpu", "--set", *given]) == 0
    assert main.main(["plot", out]) == main.main(["verify", out]) == 0
    assert "all the same" in capsys.readouterr().out


@pytest.mark.small
@pytest.mark.parametrize("name", SYNTHETIC)
def test_labels_are_as_drawn_for_theta_norm_0(run, name):
    as_drawn = gaussian_regression(8, 3, 0, test_samples=5).theta_star
    np.testing.assert_array_equal(run(name, theta_norm=0)["theta_star"], as_drawn)
    assert np.linalg.norm(run(name, theta_norm=3)["theta_star"]) == pytest.approx(3)


def descended(config, rho):
    """The weights after full-batch descent on the clean labels, the equations as they stand."""
    problem, network = _synthetic.start(config)
    X, y, W, a = problem.X, problem.y, network.W, network.a

    def gradient(W, a):
        z = X.T @ (X @ (W.T @ a) - y) / len(y)
        return np.outer(a, z), W @ z

    for _ in range(config.steps):
        dW, da = gradient(W, a)
        if rho:
            norm = np.sqrt((dW**2).sum() + (da**2).sum())
            dW, da = gradient(W + rho * dW / norm, a + rho * da / norm)
        W, a = W - config.lr * dW, a - config.lr * da
    return W, a


@pytest.mark.small
@pytest.mark.parametrize("name", ["label-noise", "label-noise-periodic", "sam"])
def test_a_step_is_on_all_samples_for_batch_size_0(run, name):
    trajectory = run(name, batch_size=0)
    config = _synthetic.config_of(experiments.load(name).Config, trajectory.config)
    W, a = descended(config, trajectory.config.get("rho", 0.0))
    np.testing.assert_allclose(trajectory["final_W"], W, rtol=1e-10)
    np.testing.assert_allclose(trajectory["final_a"], a, rtol=1e-10)


@pytest.mark.small
@pytest.mark.parametrize("name", ["oscillation", "oscillation-periodic"])
def test_an_amplitude_that_is_left_out_follows_the_learning_rate(run, name):
    assert run(name, lr=0.0625).config["amplitude"] == pytest.approx(0.5)
    assert run(name, lr=0.0625, amplitude=0.2).config["amplitude"] == 0.2
