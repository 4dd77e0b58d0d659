"""Loss and accuracy of a network on a set of images, with the functions that training uses too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnsim.base import checks
from lnsim_torch.distributed import group
from lnsim_torch.samples import Samples
from lnsim_torch.training.recipe import LOSSES, PLAIN, Execution

AT_ONCE, IN_CACHE = 1000, 64
"""Samples in a batch, and images (N, H, W, channels) in one on the CPU, where more are slower."""


def evaluate(
    network: nn.Module, samples: Samples, loss: str, execution: Execution = PLAIN
) -> tuple[float, float]:
    """Mean loss and accuracy on `samples`, such as data.test; sets the network to eval mode."""
    checks.choice("loss", loss, LOSSES)
    if not isinstance(samples, Samples):
        raise TypeError(f"samples must be Samples, such as data.test, got {type(samples).__name__}")
    dtype = next(network.parameters()).dtype
    totals = sums(network.eval(), samples, loss, dtype, execution)
    group().add_up([totals])
    mean_loss, accuracy = (totals / len(samples)).tolist()
    return mean_loss, accuracy


@torch.no_grad()
def sums(
    network: Callable[[Tensor], Tensor],
    samples: Samples,
    loss: str,
    dtype: torch.dtype,
    execution: Execution,
) -> Tensor:
    """Summed loss and number of correct predictions over this process's share of `samples`; (2,).

    The sums are float64 and stay on the device, so that the host does not wait for them.
    """
    processes = group()
    total = torch.zeros(2, dtype=torch.float64, device=samples.targets.device)
    small = samples.images.ndim == 4 and samples.images.device.type == "cpu"
    at_once = IN_CACHE if small else AT_ONCE
    for start in range(0, len(samples), at_once):
        part = processes.share(start, min(start + at_once, len(samples)))
        f = outputs(network, inputs(samples, part, dtype, execution), execution)
        targets = samples.targets[part]
        total[0] += summed_loss(f, targets, loss)
        total[1] += (f.argmax(1) == targets).sum()
    return total


def inputs(
    samples: Samples, chosen: Tensor | slice, dtype: torch.dtype, execution: Execution
) -> Tensor:
    """The chosen images as input of a network, in the memory format of its weights."""
    x = samples.inputs(chosen, dtype)
    return x if execution.channels_last else x.contiguous()


def outputs(network: Callable[[Tensor], Tensor], x: Tensor, execution: Execution) -> Tensor:
    """network(x) : (B, C) computed in `execution.precision`, as float32 or float64."""
    if execution.precision == "float32":
        f = network(x)
        return f.to(torch.promote_types(f.dtype, torch.float32))
    with torch.autocast(x.device.type, torch.bfloat16):
        return network(x).float()


def summed_loss(f: Tensor, labels: Tensor, loss: str, noise: Tensor | None = None) -> Tensor:
    """The sum over the batch of the losses of outputs f : (B, C).

    "squared" is half the mean square over the C outputs; targets are one-hot plus `noise` : (B, C).
    """
    if loss == "cross_entropy":
        return F.cross_entropy(f, labels, reduction="sum")
    y = F.one_hot(labels, f.shape[1]).to(f.dtype)
    y = y if noise is None else y + noise
    return 0.5 * (f - y).square().mean(dim=1).sum()
