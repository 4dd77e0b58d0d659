"""The two-layer network f(x) = A phi(W x) with the activation relu or erf.

Pull-back.  With h = W x, b = (A^T g) phi'(h): dl/dA = g phi(h)^T, dl/dW = b x^T.  The derivative of
relu at 0 is 0.  erf'(h) = 2/sqrt(pi) exp(-h^2).

Reduction.  phi acts neuron by neuron, so there is no rotation of the hidden layer.  W moves only in
the span of the inputs, and h depends on that part alone: with V : (d, r) an orthonormal basis of
it, the inputs are X V and the first layer W V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates, HiddenLayer, span
from lnsim.models.two_layer import ntk_init

ACTIVATIONS = ("relu", "erf")

Elementwise = Callable[[FloatArray], FloatArray]


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
        return np.asarray(self._along(self._phi, self._slope, h) @ self.A.T)

    def layers(self, X: FloatArray, g: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """See Model."""
        h = X @ self.W.T
        phi = self._along(self._phi, self._slope, h)
        slope = self._along(self._slope, self._curvature, h)
        return [((g @ self.A) * slope, X), (g, phi)]

    def residual_trace(self, X: FloatArray, g: FloatArray) -> float:
        """See Model: sum_i |x_i|^2 sum_k (A^T g_i)_k phi''(w_k x_i)."""
        second = self._curvature(X @ self.W.T) * (g @ self.A)
        return float(np.square(X).sum(axis=1) @ second.sum(axis=1))

    @property
    def balancedness(self) -> float:
        """The root of the sum over neurons of (|A_i|^2 - |w_i|^2)^2; NaN for erf.

        Gradient flow of the ReLU network conserves each of them.
        """
        if self.activation != "relu":
            return float("nan")
        outgoing, ingoing = np.square(self.A).sum(axis=0), np.square(self.W).sum(axis=1)
        return float(np.linalg.norm(outgoing - ingoing))

    def _phi(self, h: FloatArray) -> FloatArray:
        if self.activation == "relu":
            return np.maximum(h, 0.0)
        from scipy.special import erf

        return np.asarray(erf(h))

    def _slope(self, h: FloatArray) -> FloatArray:
        """phi'."""
        if self.activation == "relu":
            return (h > 0.0).astype(np.float64)
        return np.asarray(2.0 / np.sqrt(np.pi) * np.exp(-np.square(h)))

    def _curvature(self, h: FloatArray) -> FloatArray:
        """phi'', of relu without the point mass at 0."""
        return np.zeros_like(h) if self.activation == "relu" else -2.0 * h * self._slope(h)

    @staticmethod
    def _along(function: Elementwise, derivative: Elementwise, h: Any) -> Any:
        """The function of h, or, for a complex h = h_0 + i e v, of h_0 and its change along v."""
        if np.isrealobj(h):
            return function(h)
        return function(h.real) + 1j * (derivative(h.real) * h.imag)

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
