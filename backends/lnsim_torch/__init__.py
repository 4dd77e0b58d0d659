"""The torch backend: networks by autograd, their empirical kernels and their linearisation."""

from __future__ import annotations

from lnsim_torch.linear import TorchEngine
from lnsim_torch.linearization.descent import linearize, mse_predictor
from lnsim_torch.ntk.kernel import empirical_ntk

__all__ = ["TorchEngine", "empirical_ntk", "linear_engine", "linearize", "mse_predictor"]


def linear_engine(device: str = "cpu", *more: str) -> TorchEngine:
    """The engine for lnsim.backend.load; `more`: the device number, if any, and the dtype."""
    if more and more[0].isdigit():
        device, more = f"{device}:{more[0]}", more[1:]
    return TorchEngine(device, *more)
