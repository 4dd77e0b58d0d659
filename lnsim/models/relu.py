"""The two-layer network f(x) = A phi(W x) with the activation relu or erf.

Pull-back.  With h = W x, b = (A^T g) phi'(h): dl/dA = g phi(h)^T, dl/dW = b x^T.  The derivative of
relu at 0 is 0.  erf'(h) = 2/sqrt(pi) exp(-h^2).

Reduction.  phi acts neuron by neuron, so there is no rotation of the hidden layer.  W moves only in
the span of the inputs, and h depends on that part alone: with V : (d, r) an orthonormal basis of
it, the inputs are X V and the first layer W V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates, HiddenLayer, span
from lnsim.models.two_layer import ntk_init

ACTIVATIONS = ("relu", "erf")


@dataclass(frozen=True)
class ReLUNetwork(HiddenLayer):
    """First layer W : (m, d); second layer A : (C, m), or (m,) for one output.

    Raises TypeError or ValueError for wrong types, shapes that do not fit, NaN or infinity, an
    unknown activation.
    """

    W: FloatArray
    A: FloatArray
    activation: str = "relu"

    kernel: ClassVar = "relu"

    def __post_init__(self) -> None:
        checks.choice("activation", self.activation, ACTIVATIONS)
        W = checks.array("W", self.W, 2)
        A = checks.array("A", np.atleast_2d(self.A), 2)
        checks.shape("A", A, (len(A), len(W)), f"W has {len(W)} rows")
        object.__setattr__(self, "W", W)
        object.__setattr__(self, "A", A)

    @property
    def parameters(self) -> dict[str, FloatArray]:
        """W : (m, d) and A : (C, m)."""
        return {"W": self.W, "A": self.A}

    def with_parameters(self, arrays: Sequence[FloatArray]) -> ReLUNetwork:
        """See Model."""
        W, A = arrays
        return self._with(W=W, A=A)

    def about(self) -> dict[str, object]:
        """See Model."""
        return {"model": self.kernel, "activation": self.activation}

    def shape(self) -> tuple[int, ...]:
        """d, m, C, the number of the activation in ACTIVATIONS."""
        return (self.dim, self.hidden, self.outputs, ACTIVATIONS.index(self.activation))

    @property
    def outputs(self) -> int:
        """C, the number of outputs."""
        return len(self.A)

    def predict(self, X: FloatArray) -> FloatArray:
        """See Model."""
        h = X @ self.W.T
        if self.activation == "relu":
            return np.maximum(h, 0.0) @ self.A.T
        from scipy.special import erf

        return np.asarray(erf(h) @ self.A.T)

    def reduced(self, X: FloatArray, *, hidden: bool, inputs: bool) -> Coordinates[ReLUNetwork]:
        """See Model: the input side alone."""
        V = span(X) if inputs else None
        if V is None:
            return Coordinates(self, X)
        trained = self.W @ V
        model = ReLUNetwork(trained, self.A, self.activation)
        turns = ((None, V), (None, None))
        return Coordinates(model, X @ V, turns, (self.W - trained @ V.T, None), ("inputs",))


def relu_init(
    width: int,
    dim: int,
    seed: int = 0,
    *,
    outputs: int = 1,
    activation: str = "relu",
    start: str = "ntk",
    scale: float = 1.0,
    balance: float = 0.0,
) -> ReLUNetwork:
    """A network with the weights that `ntk_init` draws at this start."""
    network = ntk_init(width, dim, seed, outputs=outputs, start=start, scale=scale, balance=balance)
    return ReLUNetwork(network.W, network.A, activation)
