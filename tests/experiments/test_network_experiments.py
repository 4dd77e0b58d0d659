"""Networks on images: what their experiments claim, and resuming them."""

import threading
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import empirical_ntk, linearize, network_engine
from lnsim_torch.networks import wide_resnet as build_wide_resnet
from lnsim_torch.samples import place
from lnsim_torch.training.recipe import Recipe
from small_experiments import CLASSES, same, small_resnet, small_wide

from lnsim.base import threads
from lnsim.experiments import _images, resnet, wide_resnet, wide_resnet_sam
from lnsim.images import erf_network
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory


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
    assert len(wide_resnet_sam.figure(trajectory).axes) == 6


def test_the_forms_of_sam_are_keys_that_an_earlier_run_does_without(data, tmp_path):
    """A run in the default form has the configuration of a run before there were others."""
    setting = small_wide(data, wide_resnet_sam.Config, steps=20, curvature_every=0)
    run = wide_resnet_sam.run(setting)
    forms = {"normalized": False, "micro_batch": 5, "perturbation": "process"}
    assert not forms.keys() & run.config.keys()
    run.save(tmp_path)
    longer = replace(setting, steps=40)
    again = wide_resnet_sam.run(longer, resume=Trajectory.load(tmp_path))
    assert same(again, wide_resnet_sam.run(longer))
    for key, value in forms.items():
        other = wide_resnet_sam.run(replace(setting, **{key: value}))
        assert other.config == {**run.config, key: value}
        np.testing.assert_array_equal(other["clean_train_loss"], run["clean_train_loss"])
        moved = (other["sam_train_loss"] != run["sam_train_loss"]).any()
        assert moved == (key != "perturbation")  # of one process
        with pytest.raises(ValueError, match=f"cannot resume: {key} was None and is {value!r} now"):
            wide_resnet_sam.run(replace(longer, **{key: value}), resume=run)
    words = " ".join(wide_resnet_sam.figure(replace_config(run, forms)).texts[0].get_text().split())
    assert "un-normalised, micro-batches of 5, each process perturbs by its own share" in words
    for key, value, says in (
        ("micro_batch", 3, "micro_batch must divide the batch of 20 samples, got 3"),
        ("perturbation", "rank", "perturbation must be one of batch, process, got 'rank'"),
    ):
        with pytest.raises(ValueError, match=says):
            wide_resnet_sam.run(replace(setting, **{key: value}))


def replace_config(trajectory, changes):
    return replace(trajectory, config={**trajectory.config, **changes})


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
    for earlier in (kept[0], kept[len(kept) // 2], kept[-1]):
        earlier.save(tmp_path, "checkpoint.npz")
        loaded = Trajectory.load(tmp_path, "checkpoint.npz")
        assert same(experiment.run(setting(data), resume=loaded), whole)


@pytest.mark.parametrize("cores", [1, 3])  # of 2: see above
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
        found.append(resnet.run(small_resnet(data, tau=[0.0, 0.5, 0.6], curvature_every=0)))
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
    setting = small_resnet(
        data, tau=[0.0, 0.3, 0.6], epochs=10**6, record_every=10**6, curvature_every=0
    )
    with pytest.raises(OSError, match="no space left"):
        resnet.run(setting, checkpoint=fail, checkpoint_every=0.0)
    assert len(made) == 2


def test_progress_counts_the_steps_of_all_arms(data, monkeypatch):
    seen, numbers = [], iter((1, 2))
    setting = small_wide(data, curvature_every=0)
    for number in numbers:
        monkeypatch.setattr(threads, "number", lambda number=number: number)
        seen.clear()
        stopped = wide_resnet.run(setting, progress=seen.append, stop=lambda: len(seen) >= 50)
        assert seen == list(range(1, len(seen) + 1))
        assert stopped.status.code == "STOPPED" and len(seen) < 80
        wide_resnet.run(setting, progress=seen.append, resume=stopped)
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
