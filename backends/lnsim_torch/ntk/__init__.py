"""Empirical tangent kernels, exact and layer by layer."""

from lnsim_torch.ntk.kernel import empirical_ntk

__all__ = ["empirical_ntk"]
