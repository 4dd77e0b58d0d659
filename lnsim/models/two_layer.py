"""The two-layer linear network f(x) = a^T W x and its initialisations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray


@dataclass(frozen=True)
class Network:
    """First layer W : (m, d), neuron i is row i; second layer a : (m,).

    Raises TypeError or ValueError for wrong types, shapes that do not fit, NaN or infinity.
    """

    W: FloatArray
    a: FloatArray

    def __post_init__(self) -> None:
        W = checks.array("W", self.W, 2)
        a = checks.array("a", self.a, 1)
        checks.shape("a", a, (len(W),), f"W has {len(W)} rows")
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "a", a)

    @property
    def width(self) -> int:
        """m, the number of hidden neurons."""
        return self.W.shape[0]

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.W.shape[1]

    @property
    def theta(self) -> FloatArray:
        """The effective predictor W^T a, shape (d,)."""
        return self.W.T @ self.a


def ntk_init(width: int, dim: int, seed: int = 0) -> Network:
    """NTK initialisation: W_ij ~ N(0, 1/d), a_i ~ N(0, 1/m), independent.

    Raises ValueError for sizes out of range.
    """
    width = checks.integer("width", width, 1, checks.MOST_ENTRIES)
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    rng = streams.generator(seed, "init")
    W = rng.standard_normal((width, dim)) / np.sqrt(dim)
    return Network(W, rng.standard_normal(width) / np.sqrt(width))
