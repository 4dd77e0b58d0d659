"""What a run of training needs of its network, its data and its recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lnsim_torch.distributed import group
from lnsim_torch.samples import Data
from lnsim_torch.training.batches import MOST_CLASSES
from lnsim_torch.training.recipe import Execution, Recipe


@contextmanager
def memory_errors_explained(data: Data, recipe: Recipe) -> Iterator[None]:
    """Turns an out-of-memory error into a ValueError that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        size = recipe.batch_size or len(data.train)
        raise ValueError(
            f"not enough memory on {data.device} for batch_size {size}:"
            " lower batch_size, or the network's width"
        ) from error


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_run(parameters: list[Tensor], data: Data, recipe: Recipe, execution: Execution) -> None:
    """Raises ValueError for arguments that do not fit together."""
    if not parameters:
        raise ValueError("network must have parameters that require grad, but has none")
    if any(p.is_inference() for p in parameters):
        raise ValueError(
            "network must be made outside inference_mode: inference tensors cannot be trained"
        )
    execution.check(data.device.type)
    recipe.check_batches(len(data.train), group().size)
    if recipe.sigma > 0 and data.classes > MOST_CLASSES:
        raise ValueError(
            f"sigma must be 0 with more than {MOST_CLASSES} classes, got {recipe.sigma}"
        )
    if recipe.augment and data.train.images.ndim != 4:
        raise ValueError(
            "augment needs images (N, height, width, channels),"
            f" got shape {tuple(data.train.images.shape)}"
        )


def check_layout(network: nn.Module, device: torch.device) -> None:
    """Raises ValueError where oneDNN in torch 2.13 and 2.15 writes past the end of its memory.

    It does so in the backward pass of strided 1x1 convolutions of few channels, channels last.
    """
    for name, module in network.named_modules():
        strided = isinstance(module, nn.Conv2d) and max(module.stride) > max(module.kernel_size)
        if strided and device.type == "cpu":
            raise ValueError(
                f"channels_last must be off on cpu: {name!r} is a strided 1x1 convolution"
            )


@torch.no_grad()
def check_outputs(network: nn.Module, data: Data, dtype: torch.dtype) -> None:
    """Raises ValueError unless the network maps an image to one output for each class."""
    x = data.train.inputs(slice(0, 1), dtype)
    try:
        f = network.eval()(x)
    except RuntimeError as error:
        if _out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"network does not take images {tuple(x.shape[1:])}: {reason}") from error
    if f.shape != (1, data.classes):
        raise ValueError(
            f"network must return {data.classes} outputs, one for each class,"
            f" got {tuple(f.shape[1:])}"
        )
