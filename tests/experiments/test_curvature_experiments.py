"""Sharpness, trace, kernel alignment and rank, as the experiments on images record them."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import empirical_ntk, network_engine
from lnsim_torch.curvature import Curvature, top_eigenvalues, trace
from lnsim_torch.networks import resnet18
from lnsim_torch.networks import wide_resnet as build_wide_resnet
from lnsim_torch.samples import place
from small_experiments import same, small_resnet, small_wide
from small_images import small, small_images
from torch.nn.functional import one_hot

from lnsim.cli import main
from lnsim.experiments import _images, linearization, resnet, wide_resnet
from lnsim.run import curves
from lnsim.simulation.trajectory import Trajectory
from lnsim.simulation.verify import verify


def trained(trajectory, arm, network):
    """The network of an arm at its end, in double precision."""
    prefix = f"{arm}.state.network."
    weights = {
        name.removeprefix(prefix): torch.tensor(value)
        for name, value in trajectory.state.items()
        if name.startswith(prefix)
    }
    network.load_state_dict(weights)
    return network.double()


def squared(f, y):
    return 0.5 * (f - y).square().mean()


def test_sharpness_of_a_wide_resnet_is_that_of_the_trained_network(data, wide):
    train = place(_images.choose(small_wide(data)), normalization="global").train
    x, y = train.inputs(slice(None), torch.float64), one_hot(train.targets, 10).double()
    assert wide["curvature_step"].tolist() == [0, 40]
    for arm in ("clean", "noisy"):
        network = trained(wide, arm, build_wide_resnet(1, 1))
        hessian = Curvature(network, x, y, squared)
        assert wide[f"{arm}_sharpness"][-1] == pytest.approx(top_eigenvalues(hessian)[0], rel=2e-3)
        value = trace(hessian, network_engine.TRACE_PRODUCTS, seed=0).value
        assert wide[f"{arm}_hessian_trace"][-1] == pytest.approx(value, rel=2e-3)
    assert wide["clean_sharpness"][0] == wide["noisy_sharpness"][0]


def test_alignment_and_rank_are_those_of_the_kernel_summed_over_outputs(data, wide):
    train = place(_images.choose(small_wide(data)), normalization="global").train
    network = trained(wide, "noisy", build_wide_resnet(1, 1))
    K = empirical_ntk(network, train.inputs(slice(None), torch.float64), outputs="sum").numpy()
    Y = np.eye(10)[train.labels]
    centre = np.eye(len(K)) - 1 / len(K)
    ours, labels = centre @ K @ centre, centre @ Y @ Y.T @ centre
    cosine = (ours * labels).sum() / np.linalg.norm(ours) / np.linalg.norm(labels)
    assert wide["noisy_kernel_alignment"][-1] == pytest.approx(cosine, rel=1e-3)
    shares = np.linalg.eigvalsh(K) / np.trace(K)
    rank = np.exp(-(shares * np.log(shares)).sum())
    assert wide["noisy_kernel_rank"][-1] == pytest.approx(rank, rel=1e-3)
    assert wide["noisy_kernel_rank"].shape == wide["kernel_step"].shape


def test_sharpness_of_a_resnet_is_that_of_the_trained_network_in_eval_mode(data, residual):
    train = place(_images.choose(small_resnet(data))).train
    x = train.inputs(slice(None), torch.float64)
    assert residual["curvature_step"].tolist() == [0, 60]
    for i, tau in enumerate(residual["tau"]):
        network = trained(residual, f"tau = {tau}", resnet18(width=2))
        hessian = Curvature(network, x, train.targets, torch.nn.CrossEntropyLoss())
        sharpness = top_eigenvalues(hessian)[0]
        assert residual["sharpness"][i, -1] == pytest.approx(sharpness, rel=5e-3)
    assert residual["hessian_trace"].shape == (2, 2)


@pytest.mark.parametrize(
    ("every", "steps"), [(40, [0, 40]), (15, [0, 20, 30]), (1, [0, 10, 20, 30, 40]), (0, None)]
)
def test_it_is_measured_at_the_first_record_from_every_multiple_on(data, every, steps, monkeypatch):
    """At 40 nothing is due where `every` is 15: the next multiple is 45."""
    measured = []

    def curvature(network, samples, loss, seed):
        measured.append(loss)
        return {"sharpness": 1.0, "hessian_trace": 2.0}

    monkeypatch.setattr(network_engine, "curvature", curvature)
    run = wide_resnet.run(small_wide(data, curvature_every=every, kernel_every=0))
    if steps is None:
        assert "curvature_step" not in run.arrays and not measured
        return
    assert run["curvature_step"].tolist() == steps and len(measured) == 2 * len(steps)
    np.testing.assert_array_equal(run["noisy_sharpness"], np.ones(len(steps)))
    (noisy,) = [curve for curve in curves.find(run, "sharpness") if curve.arm == "noisy"]
    assert noisy.times.tolist() == steps
    column = curves.table(run)["clean_hessian_trace"]
    np.testing.assert_array_equal(np.isfinite(column), np.isin(run.steps, steps))


def test_where_the_loss_has_no_finite_curvature_the_run_goes_on(data, monkeypatch):
    def fails(*given, **named):
        raise network_engine.CurvatureError("a product with the hessian matrix is not finite")

    monkeypatch.setattr(network_engine, "top_eigenvalues", fails)
    run = resnet.run(small_resnet(data))
    assert run.status.code == "OK" and np.isnan(run["sharpness"]).all()
    assert not any("sharpness" in line for line in resnet.report(run))
    assert resnet.figure(run).axes


def tampered(trajectory, name):
    changed = trajectory[name].copy()
    changed[..., -1] *= 1.1
    return replace(trajectory, arrays={**trajectory.arrays, name: changed})


@pytest.mark.parametrize("name", ["clean_sharpness", "noisy_hessian_trace", "noisy_kernel_rank"])
def test_another_number_is_found_out(wide, name):
    result = verify(tampered(wide, name), seed=0)
    assert not result.same and any(name in line for line in result.lines)
    # Where sums are rounded otherwise, numbers agree within a tolerance.
    moved = {**wide.provenance, "processes": 2}
    assert verify(replace(wide, provenance=moved), seed=0).same
    result = verify(replace(tampered(wide, name), provenance=moved), seed=0)
    assert not result.same and any(name in line for line in result.lines)


@pytest.fixture
def erf(tmp_path):
    np.savez(tmp_path / "images.npz", **small_images())
    return small(str(tmp_path / "images.npz"), curvature_every=20, steps=80)


def test_a_linearization_that_was_stopped_goes_on_to_the_same_bits(erf, tmp_path):
    whole = linearization.run(erf)
    assert whole["curvature_step"].tolist() == [0, 20, 40, 60, 80]
    assert whole["clean_sharpness"].shape == (5,)
    assert whole["noisy_kernel_alignment"].shape == whole["step"].shape
    done = []
    stopped = linearization.run(erf, progress=done.append, stop=lambda: bool(done))
    assert stopped.status.code == "STOPPED"
    stopped.save(tmp_path / "run")
    again = linearization.run(erf, resume=Trajectory.load(tmp_path / "run"))
    assert same(again, whole)
    assert verify(whole, seed=0).same
    result = verify(tampered(whole, "noisy_sharpness"), seed=0)
    assert any("noisy_sharpness" in line for line in result.lines)
    # Where the time is up, what was recomputed is compared.
    for trajectory in (whole, tampered(whole, "noisy_sharpness")):
        result = verify(trajectory, seed=0, seconds=0.0)
        assert result.same, result.lines
    moved = {**whole.arrays, "curvature_step": whole["curvature_step"] + 1}
    assert not verify(replace(whole, arrays=moved), seconds=0.0).same
    short = {**whole.arrays, "noisy_sharpness": whole["noisy_sharpness"][:-1]}
    assert not verify(replace(whole, arrays=short)).same


def test_runs_from_before_there_was_the_key_go_on_without_it(erf, tmp_path, capsys):
    """Such a run has neither the key nor the arrays."""
    without = linearization.run(replace(erf, curvature_every=0, steps=40))
    assert without.config["curvature_every"] == 0
    config = {k: v for k, v in without.config.items() if k != "curvature_every"}
    replace(without, config=config, provenance={}).save(tmp_path / "run")
    folder = str(tmp_path / "run")
    words = ["run", "--resume", "--out", folder, "--set", "steps=80"]
    assert main.main(words) == 0 and main.main(["verify", folder, "--seed", "0"]) == 0
    assert main.main(["plot", folder]) == 0
    longer = Trajectory.load(folder)
    assert longer.config == {**config, "steps": 80}
    assert longer.arrays.keys() == without.arrays.keys()
    with pytest.raises(ValueError, match="curvature_every was None and is 20 now"):
        linearization.run(erf, resume=longer)
    assert "all the same" in capsys.readouterr().out


@pytest.mark.parametrize(("sharpness", "shown"), [(1.0, True), (0.11, True), (30.0, False)])
def test_the_line_of_full_batch_descent_is_drawn_where_it_flattens_nothing(wide, sharpness, shown):
    """It is at 2 / lr = 1."""
    arms = {f"{arm}_sharpness": np.full(2, sharpness) for arm in ("clean", "noisy")}
    figure = wide_resnet.figure(replace(wide, arrays={**wide.arrays, **arms}))
    (axes,) = [axes for axes in figure.axes if "sharpness" in axes.get_ylabel()]
    assert {line.get_label() for line in axes.lines} >= {"gradient descent", "label noise"}
    lines = [line.get_ydata() for line in axes.lines if line.get_label().startswith("_")]
    assert lines == ([[1.0, 1.0]] if shown else [])
    assert shown == any("eta" in text.get_text() for text in axes.texts)


def test_sharpness_of_a_resnet_is_drawn_over_its_epochs(residual):
    figure = resnet.figure(residual)
    axes = figure.axes[3]
    assert (len(figure.axes), axes.get_xlabel()) == (4, "epoch")
    assert "sharpness" in axes.get_ylabel()
    for line, sharpness in zip(axes.lines, residual["sharpness"], strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.array([[0.0, 12.0], sharpness]).T)
    without = {
        name: values
        for name, values in residual.arrays.items()
        if name not in ("sharpness", "hessian_trace", "curvature_step")
    }
    assert len(resnet.figure(replace(residual, arrays=without)).axes) == 3
