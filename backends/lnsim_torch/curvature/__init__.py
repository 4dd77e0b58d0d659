"""Curvature of a network's loss: top eigenvalues, trace and spectral density of the Hessian.

    from lnsim_torch.curvature import Curvature, top_eigenvalues, trace

    hessian = Curvature(network, x, y, torch.nn.CrossEntropyLoss())
    sharpness, second = top_eigenvalues(hessian, 2)
    value, error = trace(hessian)

`measures` has what is measured, `operator` what it is measured of, and what curvlinops does in it.
"""

from lnsim_torch.curvature.measures import Density, Trace, density, top_eigenvalues, trace
from lnsim_torch.curvature.operator import MATRICES, Curvature, CurvatureError

__all__ = [
    "MATRICES",
    "Curvature",
    "CurvatureError",
    "Density",
    "Trace",
    "density",
    "top_eigenvalues",
    "trace",
]
