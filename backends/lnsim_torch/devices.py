"""Where torch computes: the CPU, or one of the CUDA devices."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raises ValueError for a device that is not there."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from error
    if place.type == "cpu":
        return
    if place.type != "cuda":
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: torch finds {torch.cuda.device_count()} CUDA devices"
        )
