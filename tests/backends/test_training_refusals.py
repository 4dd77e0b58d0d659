"""The training loop: what it refuses, and options for CUDA."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lnsim_torch import networks
from lnsim_torch.training import fused
from lnsim_torch.training.train import Execution, place, train
from small_training import (  # noqa: F401
    CLASSES,
    RECIPE,
    _one_thread,
    same,
    small_data,
    small_images,
    small_mlp,
    small_resnet,
)
from torch import nn

# What is refused.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"record_every": 0}, "record_every must be at least 1"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"lr": [0.1, 0.2]}, "lr must be one number"),
        ({"batch_size": -1}, "batch_size must be at least 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"schedule": "step"}, "schedule must be one of constant, cosine, got 'step'"),
        ({"rho": -0.1}, "rho must be finite and at least 0"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"loss": "hinge"}, "loss must be one of cross_entropy, squared, got 'hinge'"),
        ({"tau": 1.5}, "tau must be a probability, at most 1, got 1.5"),
        ({"tau": -0.5}, "tau must be finite and at least 0"),
        ({"flip": "same"}, "flip must be one of any, other"),
        ({"sigma": -1.0}, "sigma must be finite and at least 0"),
        ({"sigma": 1.0, "loss": "cross_entropy"}, "sigma must be 0 unless loss is squared"),
        ({"smoothing": 1.0}, "smoothing must be below 1"),
        ({"train_measured": -1}, "train_measured must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"micro_batch": -1}, "micro_batch must be at least 0"),
        ({"micro_batch": 2.5}, "micro_batch must be an integer"),
        ({"normalized": "no"}, "normalized must be True or False, got 'no'"),
        ({"perturbation": "device"}, "perturbation must be one of batch, process, got 'device'"),
    ],
)
def test_recipes_that_are_refused(changes, says):
    with pytest.raises((ValueError, TypeError), match=says):
        replace(RECIPE, **changes)


class Hungry(nn.Module):
    """Asks for more memory than there is as soon as there are two images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)

    def forward(self, x):
        if len(x) > 1:
            torch.empty(2**50)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("network", "recipe", "says"),
    [
        (small_mlp(), {"batch_size": 26}, "batch_size must be at most the 25 samples, got 26"),
        (small_mlp(), {"micro_batch": 3}, "micro_batch must divide the batch of 7 samples, got 3"),
        (
            small_mlp(),
            {"rho": 0.1, "batch_size": 0, "micro_batch": 26},
            "micro_batch must divide the batch of 25 samples, got 26",
        ),
        (networks.mlp([192, 3]), {}, r"must return 4 outputs, one for each class, got \(3,\)"),
        (networks.mlp([48, CLASSES]), {}, r"network does not take images \(3, 8, 8\): ."),
        (nn.Flatten(), {}, "network must have parameters that require grad"),
        (Hungry(), {}, "not enough memory on cpu for batch_size 7: lower batch_size"),
    ],
)
def test_networks_that_are_refused(network, recipe, says):
    with pytest.raises(ValueError, match=says) as error:
        train(network, small_data(), replace(RECIPE, **recipe))
    assert "\n" not in str(error.value)


def test_a_layout_that_crashes_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(ValueError, match="channels_last must be off on cpu: '0' is a strided 1x1"):
        train(network, small_data(), RECIPE)
    result = train(network, small_data(), RECIPE, Execution(channels_last=False))
    assert result.status.code == "OK"


def test_executions_that_are_refused():
    with pytest.raises(ValueError, match="precision must be one of bfloat16, float32"):
        Execution(precision="float16")
    for execution, says in (
        (Execution(precision="bfloat16"), "precision must be float32 on cpu"),
        (Execution(compile=True), "compile must be off on cpu"),
    ):
        with pytest.raises(ValueError, match=says):
            train(small_mlp(), small_data(), RECIPE, execution)
    with pytest.raises(ValueError, match="device 'cuda:99' is not available"):
        small_data(device="cuda:99")
    with pytest.raises(ValueError, match="normalization must be one of channel, global"):
        small_data(normalization="batch")
    flat = place(
        small_images()._replace(train_images=np.ones((25, 5)), test_images=np.ones((9, 5)))
    )
    with pytest.raises(ValueError, match="augment needs images"):
        train(networks.mlp([5, 10]), flat, replace(RECIPE, augment=True))


def test_resumes_that_are_refused():
    part = train(small_mlp(), small_data(), replace(RECIPE, steps=6))
    for recipe, network, says in (
        (replace(RECIPE, steps=3), small_mlp(), "at step 6, past the end"),
        (replace(RECIPE, record_every=2), small_mlp(), "recorded at other steps"),
        (
            replace(RECIPE, schedule="cosine"),
            small_mlp(),
            "schedule was for 6 steps, not 12",
        ),
        (replace(RECIPE, momentum=0.5), small_mlp(), "no matching state 'momentum.0'"),
        (RECIPE, networks.mlp([192, 5, CLASSES]), "no matching state 'network.1.1.weight'"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume: .*{says}"):
            train(network, small_data(), recipe, resume=part)


def losses_with(execution, data, tau=0.1, rho=0.0):
    recipe = replace(RECIPE, steps=8, record_every=4, tau=tau, rho=rho, augment=True, lr=0.05)
    return train(small_resnet(), data, recipe, execution).records["train_loss"]


def options_change_rounding_alone(data, rho):
    plain = losses_with(Execution(), data, rho=rho)
    half = "bfloat16"
    for execution, tolerance in (
        (Execution(compile=True), 1e-2),
        (Execution(half), 0.2),
        (Execution(half, compile=True, channels_last=False), 0.2),
    ):
        losses = losses_with(execution, data, rho=rho)
        # Training multiplies rounding, by how much depends on the processor: the start is close.
        np.testing.assert_allclose(losses[0], plain[0], rtol=1e-3)
        np.testing.assert_allclose(losses, plain, rtol=tolerance)
        assert (execution.precision == half) == (abs(losses[0] / plain[0] - 1.0) > 1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_what_is_for_cuda_on_the_cpu(rho, monkeypatch):
    """As torch traces it, the graphs themselves in the compiler's place; arms share them."""
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=kept))
    monkeypatch.setattr(Execution, "check", lambda self, device: None)
    monkeypatch.setattr(fused, "forward_of", lambda network: network)  # as on CUDA
    torch.compiler.reset()
    data = small_data()
    options_change_rounding_alone(data, rho)
    traced = len(graphs)
    assert traced >= 6  # of each precision: training on 7 and on 4 images, testing on 9
    losses_with(Execution(compile=True), data, tau=0.3, rho=rho)
    assert len(graphs) == traced


@pytest.mark.gpu
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_cuda_options_change_rounding_alone(rho):
    options_change_rounding_alone(small_data(device="cuda"), rho)
