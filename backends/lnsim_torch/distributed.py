"""Data-parallel training: every process takes its share of each batch, and gradients are summed.

The command line enters `joined(device)` around a run that `torchrun` started (which sets RANK,
WORLD_SIZE and LOCAL_RANK), passes the device that it yields to the experiment, and writes, prints
and shows progress on rank 0 only.  training/train.py asks `group()`:

* Process r of K takes samples r, r + K, ... of every batch, and divides its sum of losses by the
  size of the whole batch, so that the sum of all gradients is that of a single process.
* Batch norm normalises by the whole batch, not by a process's share: `synchronised` also sums its
  statistics over processes, forward and backward.  So K processes equal one, up to rounding.
* Where each process perturbs SAM's weights by the gradient of whole micro-batches of its own
  (training/sam.py), it takes consecutive samples instead, and batch norm normalises by the
  micro-batch, so without `synchronised`.
* All processes hold the same weights, draw the same random numbers and take the same decisions,
  except that each draws the network's own random numbers (dropout) for its share (randomness.py),
  and moves its weights alone while SAM perturbs them by its own samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnsim_torch.devices import check_device


class Group(NamedTuple):
    """The number of this process, and the number of all processes."""

    rank: int
    size: int

    def share(self, start: int, stop: int) -> slice:
        """This process's share of start ... stop - 1."""
        return slice(start + self.rank, stop, self.size)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replaces tensors of one dtype by their sums over all processes, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        parts = message.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, condition: bool, device: torch.device) -> bool:
        """Whether `condition` is true on any process."""
        count = torch.tensor([float(condition)], device=device)
        self.add_up([count])
        return bool(count)


def group() -> Group:
    """The processes of this run: those that `joined` connected, otherwise this one only."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group(0, 1)


@contextmanager
def joined(device: str = "cpu") -> Iterator[str]:
    """Connects the processes that torchrun started; yields the device of this one.

    "cuda" becomes "cuda:LOCAL_RANK"; gloo carries the messages on the CPU, NCCL on CUDA.  Without
    torchrun's environment it does nothing.  Raises ValueError for "cuda:N", which all processes
    would share, and if there are fewer devices than processes.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        if device != "cuda":
            raise ValueError(f"device must be cpu or cuda under torchrun, got {device!r}")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        check_device(device)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def synchronised(network: nn.Module) -> Iterator[None]:
    """Inside, the batch norms of `network` normalise by the batches of all processes together."""
    norms = [module for module in network.modules() if type(module) is nn.BatchNorm2d]
    if group().size == 1:
        norms = []
    for module in norms:
        module.__class__ = _SharedBatchNorm
    try:
        yield
    finally:
        for module in norms:
            module.__class__ = nn.BatchNorm2d


class _AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes; backward sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradient)


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over the batches of all processes."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        z = x.to(self.weight.dtype)
        count = z.new_tensor([z.numel() / z.shape[1]])
        sums = _AllReduceSum.apply(torch.cat([z.sum((0, 2, 3)), count]))
        count = sums[-1]
        mean = sums[:-1] / count
        z = z - mean[:, None, None]
        variance = _AllReduceSum.apply(z.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self._update_statistics(mean, variance * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (z * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Updates the running statistics as nn.BatchNorm2d does."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("batch norm must keep running statistics with a momentum")
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.get_buffer("num_batches_tracked").add_(1)
