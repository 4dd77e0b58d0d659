"""SAM in the training loop: micro-batches, batch norm, draws, refusals (and test_training.py)."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch.training.train import Execution, train
from small_training import (  # noqa: F401
    CLASSES,
    RECIPE,
    Growing,
    _one_thread,
    naive_inputs,
    same,
    small_data,
    small_images,
    small_mlp,
    small_resnet,
)
from torch import nn


def test_sam_takes_running_statistics_from_the_first_pass():
    """Both passes see one batch; a step without size leaves what one pass leaves."""
    networks_of = [small_resnet() for _ in range(2)]
    for network, rho in zip(networks_of, (0.0, 0.5), strict=True):
        train(network, small_data(), replace(RECIPE, steps=1, lr=1e-30, rho=rho))
    for plain, sam in zip(*(network.buffers() for network in networks_of), strict=True):
        assert torch.equal(plain, sam)


@pytest.mark.parametrize("make", [small_mlp, small_resnet])
@pytest.mark.parametrize("size", [0, 7])
@pytest.mark.parametrize("perturbation", ["batch", "process"])
def test_a_micro_batch_of_the_whole_batch_is_sam_bit_for_bit(make, size, perturbation):
    recipe = replace(RECIPE, batch_size=size, rho=0.3, tau=0.2, momentum=0.5, augment=True)
    whole = train(make(), small_data(), recipe)
    divided = replace(recipe, micro_batch=size or 25, perturbation=perturbation)
    result = train(make(), small_data(), divided)
    same(result.records, whole.records)
    same(result.state, whole.state)
    # Without rho there is nothing to perturb.
    plain = train(make(), small_data(), replace(recipe, rho=0.0))
    one_by_one = train(make(), small_data(), replace(recipe, rho=0.0, micro_batch=1))
    same(one_by_one.state, plain.state)


def test_micro_batches_move_running_statistics_by_their_mean_once_a_step():
    """Each from the statistics before the step, in a forward pass at the weights before it."""
    recipe = replace(RECIPE, steps=1, batch_size=8, lr=1e-30, rho=0.5, micro_batch=4)
    trained, start = small_resnet().double(), small_resnet().double()
    train(trained, small_data(), recipe)
    order = np.random.default_rng([recipe.seed, 8, 0]).permutation(25)
    x = naive_inputs(small_images())
    parts = []
    for chosen in (order[:4], order[4:8]):
        network = small_resnet().double()
        network.train()(x[chosen])
        parts.append(dict(network.named_buffers()))
    before = dict(start.named_buffers())
    assert len(before) > 10
    for name, buffer in trained.named_buffers():
        expected = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(buffer.double(), expected.double(), rtol=1e-12, atol=1e-14)
        assert not torch.equal(buffer, before[name])
        if name.endswith("num_batches_tracked"):
            assert buffer == 1


def test_buffers_that_training_does_not_change_keep_their_bits():
    network = small_mlp()
    values = {"a": torch.tensor([-torch.inf, 0.1, 1e300], dtype=torch.float64),
              "b": torch.tensor([True, False]), "c": torch.tensor([2**60 + 1])}  # fmt: skip
    for name, value in values.items():
        network.register_buffer(name, value.clone())
    train(network, small_data(), replace(RECIPE, batch_size=6, rho=0.1, micro_batch=2))
    assert all(torch.equal(network.get_buffer(name), value) for name, value in values.items())


class Remembering(nn.Module):
    """Dropout's masks of training."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, h):
        mask = F.dropout(torch.ones(12))
        if self.training:
            self.masks.append(mask)
        return h * mask


def around(inside):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), inside, nn.Linear(12, CLASSES))


def test_every_micro_batch_has_draws_of_its_own_and_both_passes_have_the_same():
    inside = Remembering()
    recipe = replace(RECIPE, rho=0.1, batch_size=6, micro_batch=2, steps=4)
    train(around(inside), small_data(), recipe)
    masks = torch.stack(inside.masks)
    assert torch.equal(masks[::2], masks[1::2])
    assert len(masks[::2]) == len(masks[::2].unique(dim=0)) == 4 * 3


def test_a_buffer_that_comes_in_training_is_refused():
    recipe = replace(RECIPE, rho=0.1, batch_size=6)
    train(around(Growing()), small_data(), recipe)
    with pytest.raises(ValueError, match=r"network must have its buffer '2\.seen' from the start"):
        train(around(Growing()), small_data(), replace(recipe, micro_batch=2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "perturbation 'process' needs a batch that 3 processes share equally, got 25 samples"),
        (
            {"batch_size": 12, "micro_batch": 6},
            "micro_batch must divide the 4 samples of each of 3 processes, got 6",
        ),
        ({"batch_size": 2}, "batch_size must be at least the 3 processes, got 2"),
    ],
)
def test_shares_that_are_refused(changes, says):
    recipe = replace(RECIPE, **{"batch_size": 0, "perturbation": "process", **changes})
    with pytest.raises(ValueError, match=says) as error:
        recipe.check_batches(25, 3)
    assert "\n" not in str(error.value)
    replace(recipe, batch_size=12, micro_batch=2).check_batches(25, 3)


def test_processes_that_perturbed_alone_do_not_become_more_or_fewer():
    recipe = replace(RECIPE, rho=0.1, perturbation="process")
    part = train(small_mlp(), small_data(), replace(recipe, steps=6))
    assert part.state["processes"] == 1
    train(small_mlp(), small_data(), recipe, resume=part)
    part.state["processes"] = np.array(2)
    says = "cannot resume: 2 processes perturbed each by its own share, and now there are 1"
    with pytest.raises(ValueError, match=says):
        train(small_mlp(), small_data(), recipe, resume=part)
    of_any = train(small_mlp(), small_data(), replace(recipe, micro_batch=7, steps=6))
    assert "processes" not in of_any.state


def test_without_a_gradient_sam_stays_where_it_is():
    layers = nn.Linear(192, 3, bias=False), nn.Linear(3, CLASSES, bias=False)
    for layer in layers:
        nn.init.zeros_(layer.weight)
    recipe = replace(RECIPE, steps=2, record_every=1, rho=5.0)
    result = train(nn.Sequential(nn.Flatten(), *layers), small_data(), recipe)
    assert np.isfinite(result.records["train_loss"]).all()
    assert not any(layer.weight.detach().any() for layer in layers)


def test_words_are_no_flags():
    for made in (lambda: replace(RECIPE, augment="no"), lambda: Execution(compile="no")):
        with pytest.raises(TypeError, match="must be True or False, got 'no'"):
            made()
