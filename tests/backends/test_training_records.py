"""The training loop: recording, stopping, going on."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch.training.train import Execution, Result, evaluate, smoothed, train
from small_training import (  # noqa: F401
    CLASSES,
    RECIPE,
    _one_thread,
    naive_inputs,
    norm,
    same,
    small_data,
    small_images,
    small_mlp,
    small_resnet,
)

# Recording, stopping, going on.

RICH = replace(
    RECIPE, momentum=0.8, rho=0.05, tau=0.4, sigma=0.1, augment=True, weight_decay=1e-3, lr=0.05
)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_stopped_run_goes_on_bit_for_bit(at):
    whole = train(small_resnet(), small_data(), RICH, observe=norm)
    asked = iter(range(0, 12, 3))
    part = train(small_resnet(), small_data(), RICH, observe=norm, stop=lambda: next(asked) == at)
    assert (part.status.code, part.status.step) == ("STOPPED", at)
    file = io.BytesIO()
    np.savez(file, **{f"records_{k}": v for k, v in part.records.items()}, **part.state)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    records = {k.removeprefix("records_"): loaded.pop(k) for k in [*loaded] if "records_" in k}
    part = Result(records, loaded, part.status)
    rest = train(small_resnet(seed=9), small_data(), RICH, observe=norm, resume=part)
    same(rest.records, whole.records)
    same(rest.state, whole.state)
    assert rest.status == whole.status


def test_a_finished_run_can_be_made_longer():
    short = train(small_mlp(), small_data(), replace(RECIPE, steps=7))
    assert short.records["step"].tolist() == [0, 3, 6, 7]
    longer = train(small_mlp(seed=1), small_data(), RECIPE, resume=short)
    whole = train(small_mlp(), small_data(), RECIPE)
    same(longer.records, whole.records)
    same(longer.state, whole.state)
    again = train(small_mlp(seed=1), small_data(), RECIPE, resume=whole)
    same(again.records, whole.records)


def test_a_run_does_not_depend_on_when_it_records():
    often, seldom = (
        train(small_resnet(), small_data(), replace(RICH, record_every=every)) for every in (1, 5)
    )
    assert often.records["step"].tolist() == list(range(13))
    assert seldom.records["step"].tolist() == [0, 5, 10, 12]
    same(often.state, seldom.state)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(often.records[name][::5], seldom.records[name][:-1])


def test_checkpoints_are_results_to_go_on_from():
    kept = []
    whole = train(small_mlp(), small_data(), RECIPE, checkpoint=kept.append, checkpoint_every=0)
    assert [result.status.step for result in kept] == [0, 3, 6, 9]
    assert {result.status.code for result in kept} == {"STOPPED"}
    rest = train(small_mlp(), small_data(), RECIPE, resume=kept[1])
    same(rest.state, whole.state)
    train(small_mlp(), small_data(), RECIPE, checkpoint=kept.append, checkpoint_every=1e6)
    assert [result.status.step for result in kept[4:]] == [0]


def test_progress_where_the_error_stream_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    shown = train(small_mlp(), small_data(), RICH, progress=True)
    same(shown.records, train(small_mlp(), small_data(), RICH).records)


def test_progress_and_torch_s_own_generator():
    seen = []
    before = torch.random.get_rng_state()
    train(small_mlp(), small_data(), RICH, progress=seen.append)
    assert seen == list(range(1, 13))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_bar_counts_images(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(small_mlp(), small_data(), RECIPE, progress="tau = 0.1")
    shown = capsys.readouterr().err
    assert "tau = 0.1: 100%" in shown and "image/s, loss 0." in shown
    assert ", accuracy " in shown


def test_smoothing_weighs_the_past():
    values = np.array([1.0, 0.0, 0.0, 4.0])
    np.testing.assert_allclose(smoothed(values, 0.5), [1, 1 / 3, 1 / 7, (0.125 + 4) / 1.875])
    np.testing.assert_array_equal(smoothed(values, 0.0), values)
    result = train(small_mlp(), small_data(), replace(RECIPE, smoothing=0.6))
    expected = smoothed(result.records["test_accuracy"], 0.6)
    np.testing.assert_array_equal(result.records["smoothed_test_accuracy"], expected)


def test_the_training_loss_can_be_of_some_images():
    images = small_images()
    result = train(small_mlp(), small_data(), replace(RECIPE, steps=0, train_measured=10))
    chosen = np.arange(10) * 25 // 10
    f = small_mlp()(naive_inputs(images)[chosen])
    y = F.one_hot(torch.tensor(images.train_labels[chosen]), CLASSES)
    expected = 0.5 * (f - y).square().mean()
    assert result.records["train_loss"][0] == pytest.approx(expected.item(), rel=1e-12)


def test_evaluation_adds_batches_up(monkeypatch):
    network, data = small_mlp(), small_data()
    whole = evaluate(network, data.train, "squared")
    monkeypatch.setattr("lnsim_torch.training.evaluation.AT_ONCE", 4)
    assert evaluate(network, data.train, "squared") == pytest.approx(whole, rel=1e-12)


def test_a_diverged_run_says_so_and_shows_no_nan():
    result = train(small_mlp(), small_data(), replace(RECIPE, lr=1e80, batch_size=0))
    assert (result.status.code, result.status.step) == ("DIVERGED", 3)
    assert result.records["step"].tolist() == [0]
    assert all(np.isfinite(values).all() for values in result.records.values())
    with pytest.raises(ValueError, match="cannot resume: the earlier run diverged"):
        train(small_mlp(), small_data(), RECIPE, resume=result)


def test_memory_layout_changes_rounding_alone():
    recipe = replace(RECIPE, steps=3)
    first, last = (
        train(small_resnet().double(), small_data(), recipe, Execution(channels_last=layout))
        for layout in (False, True)
    )
    np.testing.assert_allclose(first.records["train_loss"], last.records["train_loss"], rtol=1e-9)
