"""Arithmetic without reduced precision, whatever the process has switched on for its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

EXACT = ("ieee", "none")
"""Exact precisions of float32 products; "none" is torch's default if none was set."""


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Inside: no TF32, no bfloat16 in float32 products, no autocast; restored afterwards."""
    backends: Any = torch.backends
    operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    operations += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    precisions = [(operation, operation.fp32_precision) for operation in operations]
    reduced = [(operation, value) for operation, value in precisions if value not in EXACT]
    try:
        for operation, _ in reduced:
            operation.fp32_precision = "ieee"
        autocast = torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
            yield
    finally:
        for operation, value in reduced:
            operation.fp32_precision = value
