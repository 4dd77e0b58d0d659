"""The devices that torch computes on: the CPU or a CUDA device."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raises ValueError for a device that is not available."""
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from error
    if parsed.type == "cpu":
        return
    if parsed.type != "cuda":
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not available: torch finds {torch.cuda.device_count()}"
            " CUDA devices"
        )
