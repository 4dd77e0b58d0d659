"""Function-space linearisation: against a plain loop from the equations, the theory, bad input."""

import math
import os
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erf
from small_images import CLASSES, small, small_images

from lnsim.base import plugins
from lnsim.experiments import linearization
from lnsim.figures import canvas
from lnsim.images import data as images
from lnsim.images import erf_network
from lnsim_numba import erf_network as numba_network


@pytest.fixture
def data(tmp_path):
    """The path of an .npz file of small images."""
    path = tmp_path / "images.npz"
    np.savez(path, **small_images())
    return str(path)


def task_and_network(config):
    source = images.load(config.data)
    task = erf_network.choose(source, config.samples, config.test_samples, CLASSES, config.seed)
    return task, erf_network.standard_init(config.width, task.X.shape[1], CLASSES, config.seed)


def naive_run(config, noisy):
    """The equations as they stand, on all inputs: losses and norms at every record."""
    task, network = task_and_network(config)
    W1, b1, W2, b2 = (a.copy() for a in (network.W1, network.b1, network.W2, network.b2))
    words = np.random.Philox(key=np.array([config.seed, 0], dtype=np.uint64))
    records = []
    for t in range(config.steps + 1):
        phi = erf(task.X @ W1.T + b1)
        f = phi @ W2.T + b2
        if t % config.record_every == 0 or t == config.steps:
            f_test = erf(task.X_test @ W1.T + b1) @ W2.T + b2
            norms = np.sqrt((W1**2).sum(axis=1))
            records.append(
                (np.mean((f - task.y) ** 2) / 2, np.mean((f_test - task.y_test) ** 2) / 2,
                 norms.mean(), norms.std())
            )  # fmt: skip
        y = np.zeros_like(f)
        for j in range(config.samples):
            word = int(words.random_raw())
            label = int(task.labels[j])
            if noisy and word % 2**32 < config.tau * 2**32:
                high = word >> 32
                if config.flip == "any":
                    label = high * CLASSES >> 32
                else:
                    others = [c for c in range(CLASSES) if c != label]
                    label = others[high * (CLASSES - 1) >> 32]
            y[j, label] = 1.0
        D = (f - y) / f.size
        Delta = (D @ W2) * 2.0 / math.sqrt(math.pi) * np.exp(-((task.X @ W1.T + b1) ** 2))
        W2 = W2 - config.lr * D.T @ phi
        b2 = b2 - config.lr * D.sum(axis=0)
        W1 = W1 - config.lr * Delta.T @ task.X
        b1 = b1 - config.lr * Delta.sum(axis=0)
    return np.array(records).T


def recorded(trajectory, curve):
    kinds = ("train_loss", "test_loss", "norm_mean", "norm_std")
    return np.array([trajectory[f"{curve}_{kind}"] for kind in kinds])


@pytest.mark.parametrize(
    "changes",
    [{"flip": "any"}, {"flip": "other", "tau": 0.9, "seed": 3}, {"samples": 1}, {"samples": 7}],
)
def test_the_reduced_runs_are_those_of_the_equations(data, changes):
    config = small(data, **changes)
    trajectory = linearization.run(config)
    np.testing.assert_array_equal(trajectory.steps, [0, 20, 40, 60])
    for curve in ("clean", "noisy"):
        naive = naive_run(config, noisy=curve == "noisy")
        np.testing.assert_allclose(recorded(trajectory, curve), naive, rtol=1e-11)


def test_in_single_precision_the_runs_are_the_same_to_its_rounding(data):
    config = small(data, samples=20, width=64, steps=3000, record_every=100, lr=0.02)
    double, single = (
        linearization.run(replace(config, dtype=dtype)) for dtype in ("float64", "float32")
    )
    assert double["clean_train_loss"][-1] < 0.3 * double["clean_train_loss"][0]
    for name in linearization.SERIES:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-7, err_msg=name)


@pytest.mark.small
def test_without_flips_both_runs_are_one(data):
    trajectory = linearization.run(small(data, tau=0.0, steps=4, record_every=3, width=6))
    for kind in ("train_loss", "test_loss", "norm_mean", "norm_std", "ntk_distance"):
        np.testing.assert_array_equal(trajectory[f"clean_{kind}"], trajectory[f"noisy_{kind}"])
    assert trajectory.steps.tolist() == [0, 3, 4]


def test_the_kernel_compiles_once_for_each_type(data):
    linearization.run(small(data))
    linearization.run(small(data, samples=9, width=5, dtype="float32"))
    if hasattr(numba_network.descend, "signatures"):
        assert len(numba_network.descend.signatures) == 2


def test_the_mean_kernel_is_that_of_the_plain_jacobian(data):
    config = small(data, width=5)
    task, network = task_and_network(config)
    state = erf_network.state_at_start(network, config.samples, 1)
    state.coefficients += 0.01 * np.random.default_rng(0).standard_normal((1, config.samples, 5))
    start = erf_network.reduce(task, network)
    W1 = network.W1 + state.coefficients[0].T @ task.X
    b1 = network.b1 + state.coefficients[0].sum(axis=0)

    def jacobian(X):
        slope = 2.0 / math.sqrt(math.pi) * np.exp(-((X @ W1.T + b1) ** 2))
        phi = erf(X @ W1.T + b1)
        rows = []
        for x, s, p in zip(X, slope, phi, strict=True):
            for c in range(CLASSES):
                of_W1 = np.outer(network.W2[c] * s, x).ravel()
                of_W2 = np.outer(np.eye(CLASSES)[c], p).ravel()
                rows.append(np.concatenate([of_W1, network.W2[c] * s, of_W2, np.eye(CLASSES)[c]]))
        return np.array(rows)

    H, H_test = erf_network.preactivations(state, start)
    for found, X, in (
        (erf_network.mean_kernel(H, H, state.W2, start.gram)[0], task.X),
        (erf_network.mean_kernel(H_test, H, state.W2, start.cross)[0], task.X_test),
    ):  # fmt: skip
        full = (jacobian(X) @ jacobian(task.X).T).reshape(len(X), CLASSES, -1, CLASSES)
        np.testing.assert_allclose(found, np.einsum("icjc->ij", full) / CLASSES, rtol=1e-12)


def test_the_linearisation_is_the_limit_of_long_descent_with_its_kernel(data):
    config = small(data)
    task, network = task_and_network(config)
    start = erf_network.reduce(task, network)
    state = erf_network.state_at_start(network, config.samples, 1)
    H, H_test = erf_network.preactivations(state, start)
    K = erf_network.mean_kernel(H, H, state.W2, start.gram)[0]
    K_test = erf_network.mean_kernel(H_test, H, state.W2, start.cross)[0]
    time, parts = 400.0, {}
    for steps in (4000, 8000):
        lr = config.lr * time / steps
        f = erf_network.outputs(H, state)[0]
        f_test = erf_network.outputs(H_test, state)[0]
        for _ in range(steps):
            move = lr * (f - task.y) / f.size
            f, f_test = f - K @ move, f_test - K_test @ move
        parts[steps] = f, f_test
    linear = erf_network.linearize(state, start, task, config.lr)
    for i, found in enumerate((linear.train(time), linear.test(time))):
        # The error of descent is of first order in its step: two steps take it away.
        limit = 2.0 * parts[8000][i] - parts[4000][i]
        np.testing.assert_allclose(found, limit, rtol=0, atol=3e-6)
    np.testing.assert_allclose(linear.train(0), erf_network.outputs(H, state)[0], atol=1e-14)
    np.testing.assert_array_equal(linear.test(0), erf_network.outputs(H_test, state)[0])
    np.testing.assert_allclose(linear.train(math.inf), task.y, atol=1e-12)


def test_a_wide_clean_run_follows_the_linearisation(data):
    distances = []
    for width in (40, 2000):
        trajectory = linearization.run(small(data, width=width, steps=400, lr=0.01))
        left, right = trajectory["clean_train_loss"], trajectory["linearized_train_loss"]
        assert left[0] == pytest.approx(right[0], rel=1e-12)
        distances.append(abs(left[-1] / right[-1] - 1))
        assert trajectory["clean_ntk_distance"][0] == 0.0
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.small
def test_images_are_chosen_by_the_seed_and_normalised_set_by_set(data):
    source = images.load(data)
    task = erf_network.choose(source, 12, 5, CLASSES, seed=1)
    for X in (task.X, task.X_test):
        assert X.shape[1] == 48
        assert X.mean() == pytest.approx(0, abs=1e-14) and X.std() == pytest.approx(1)
    assert (task.y.argmax(axis=1) == task.labels).all() and (task.y.sum(axis=1) == 1).all()
    assert len(np.unique(task.X, axis=0)) == 12
    again, other = (erf_network.choose(source, 12, 5, CLASSES, seed=s) for s in (1, 2))
    np.testing.assert_array_equal(task.X, again.X)
    assert not np.array_equal(task.X, other.X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stopped_run_goes_on_to_the_same_bits(data, tmp_path, dtype):
    config = small(data, dtype=dtype)
    whole = linearization.run(config)
    asked = []
    stopped = linearization.run(config, stop=lambda: len(asked) == 1 or asked.append(None))
    assert (stopped.status.code, stopped.status.step) == ("STOPPED", 20)
    checkpoints = []
    linearization.run(config, checkpoint=checkpoints.append, checkpoint_every=0.0)
    shorter = linearization.run(replace(config, steps=33))
    for earlier in (stopped, checkpoints[-1], shorter, whole):
        earlier.save(tmp_path / "run")
        again = linearization.run(config, resume=type(whole).load(tmp_path / "run"))
        assert again.status.code == "OK" and again.steps.tolist() == [0, 20, 40, 60]
        for name in linearization.SERIES:
            np.testing.assert_array_equal(again[name], whole[name], err_msg=name)
        for name, value in whole.state.items():
            np.testing.assert_array_equal(again.state[name], value, err_msg=name)


def test_what_is_recorded_does_not_change_the_run(data, monkeypatch):
    often = linearization.run(small(data, record_every=1))
    monkeypatch.setattr(linearization, "STEPS_AT_ONCE", 7)
    rarely = linearization.run(small(data, record_every=60))
    for name, value in often.state.items():
        np.testing.assert_array_equal(value, rarely.state[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 40}, "past the end"),
        ({"record_every": 15}, "record_every was 20 and is 15 now"),
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"width": 23}, "width was"),
    ],
)
def test_a_run_does_not_go_on_from_another(data, changes, message):
    earlier = linearization.run(small(data))
    with pytest.raises(ValueError, match=message):
        linearization.run(small(data, **changes), resume=earlier)


def test_a_run_that_diverges_says_so_and_keeps_what_is_finite(data):
    trajectory = linearization.run(small(data, lr=1e6, steps=400))
    assert trajectory.status.code == "DIVERGED" and trajectory.status.step > 0
    assert trajectory.steps[-1] < trajectory.status.step
    for name in linearization.SERIES:
        assert np.isfinite(trajectory[name]).all()
    with pytest.raises(ValueError, match="diverged"):
        linearization.run(small(data, lr=1e6, steps=400), resume=trajectory)


@pytest.mark.parametrize("lr", [1e6, 40.0])
def test_nothing_is_drawn_from_where_a_run_diverged_and_the_figure_says_so(data, lr):
    trajectory = linearization.run(small(data, lr=lr, steps=400, record_every=1, curvature_every=1))
    step = trajectory.status.step
    assert trajectory.status.code == "DIVERGED"
    figure = trajectory.plot()
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.texts] == [f"diverged at step {step}"]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        for line in axes.lines:
            if line.get_label().startswith("_"):  # the line 2 / lr
                continue
            times, values = line.get_xydata().T
            assert times.tolist() == list(range(step)) and np.isfinite(values).all()
            if "linearised" not in line.get_label():
                assert low <= values.min() and values.max() <= high


def test_the_loss_at_the_start_does_not_stretch_an_axis_that_leaves_it_out(data):
    trajectory = linearization.run(small(data, steps=400, record_every=10))
    axes = linearization.figure(trajectory).axes[1]
    assert axes.get_xscale() == "log"
    losses = np.array([trajectory[f"{arm}_test_loss"] for arm in ("clean", "noisy", "linearized")])
    assert losses[:, 0].min() > 1.2 * losses[:, 1:].max()
    assert axes.get_ylim()[1] == pytest.approx(1.2 * losses[:, 1:].max())


def test_report_and_figure(data, tmp_path):

    for steps in (60, 0):
        trajectory = linearization.run(small(data, steps=steps))
        assert len(linearization.report(trajectory)) == 6
        figure = linearization.figure(trajectory)
        assert len(figure.axes) == 6
        canvas.save(figure, tmp_path)
    assert "linearised" in linearization.report(trajectory)[0]
    assert {path.suffix for path in tmp_path.iterdir()} >= {".png", ".pdf"}


@pytest.mark.small
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 1.5}, "tau must be a probability, at most 1, got 1.5"),
        ({"tau": -0.1}, "tau must be finite and at least 0"),
        ({"tau": math.nan}, "tau must be finite"),
        ({"flip": "both"}, "flip must be one of any, other, got 'both'"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64"),
        ({"samples": -1}, "samples must be at least 0"),
        ({"test_samples": -1}, "test_samples must be at least 0"),
        ({"samples": 31}, "samples must be at most the 30 images of data, got 31"),
        ({"test_samples": 21}, "test_samples must be at most the 20 images of data"),
        ({"width": 0}, "width must be at least 1"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"record_every": 0}, "record_every must be at least 1"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"data": ""}, "no data: give --set data=FILE.npz"),
        ({"data": "nowhere.npz"}, "'nowhere.npz' is no file"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(data, changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        linearization.run(replace(small(data), **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.small
def test_what_is_not_installed_is_named(data, monkeypatch):
    with pytest.raises(ValueError, match="backend 'abacus' is not installed"):
        linearization.run(small(data), backend="abacus")
    with pytest.raises(ValueError, match="on the cpu alone: for 'cuda' use 'torch'"):
        linearization.run(small(data), device="cuda")
    package = types.ModuleType("lnsim_needy")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "lnsim_needy", package)
    with pytest.raises(ValueError, match=r"no module lnsim_needy\.erf_network was found"):
        linearization.run(small(data), backend="needy")


@pytest.mark.small
def test_missing_torch_is_told_with_the_name_of_the_extra(data, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(plugins, "importlib", types.SimpleNamespace(import_module=missing))
    with pytest.raises(ValueError, match=r"it needs torch: pip install 'lnsim\[torch\]'"):
        linearization.run(small(data), backend="torch")
    monkeypatch.setattr(erf_network, "load_engine", lambda backend: types.SimpleNamespace(
        check_device=lambda device: None))  # fmt: skip
    with pytest.raises(ValueError, match=r"data=cifar10 needs torch: pip install 'lnsim\[torch\]'"):
        linearization.run(small("cifar10"))


@pytest.mark.skipif(
    "LNSIM_CIFAR10" not in os.environ,
    reason="it needs real images, which are not ours to ship: give LNSIM_CIFAR10=FILE.npz",
)
def test_the_papers_claim_on_real_images():
    trajectory = linearization.run(linearization.Config(data=os.environ["LNSIM_CIFAR10"]))
    last = {name: trajectory[name][-1] for name in linearization.SERIES}
    assert last["noisy_train_loss"] > 100 * last["clean_train_loss"]
    assert last["clean_test_loss"] == pytest.approx(last["linearized_test_loss"], rel=0.02)
    assert last["noisy_test_loss"] < last["clean_test_loss"]
    assert last["noisy_norm_mean"] < last["clean_norm_mean"]
    assert last["noisy_norm_mean"] < trajectory["noisy_norm_mean"][0]


@pytest.mark.small
def test_a_file_of_another_byte_order_is_the_same_run(data, tmp_path):
    other = {name: array.astype(">i4") for name, array in small_images().items()}
    np.savez(tmp_path / "other.npz", **other)
    loaded = images.load(str(tmp_path / "other.npz"))
    assert all(array.dtype.isnative for array in loaded)
    ours, theirs = (linearization.run(small(path)) for path in (data, str(tmp_path / "other.npz")))
    for name, values in ours.arrays.items():
        np.testing.assert_array_equal(theirs[name], values, err_msg=name)
