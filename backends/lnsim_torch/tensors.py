"""What the engines of this package do with tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lnsim.base.checks import FloatArray


def ratio(numerator: Tensor, norm: Tensor) -> Tensor:
    """numerator / norm, and 0 where the norm is 0."""
    return torch.where(norm > 0, numerator / torch.where(norm > 0, norm, 1.0), 0.0)


def to_numpy(tensor: Tensor) -> FloatArray:
    """The numbers of `tensor` as a float64 array on the host."""
    return tensor.detach().cpu().numpy().astype(np.float64)
