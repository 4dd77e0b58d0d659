"""The deep linear network f(x) = W_L ... W_1 x, with or without skips.

W_l : (m_l, m_{l-1}) with m_0 = d and m_L = C.  With skips, hidden layer l > 1 is I + W_l and so is
layer 1 where it is square; the last layer has none.

Pull-back.  With h_0 = x, h_l = W_l h_{l-1} and b_L = g, b_{l-1} = W_l^T b_l: dl/dW_l = b_l
h_{l-1}^T.  With a skip h_l = h_{l-1} + W_l h_{l-1} and b_{l-1} = b_l + W_l^T b_l.

Reduction, without skips.  The gradients of W_l and W_{l+1} are M_l S with M_l = [W_l | W_{l+1}^T] :
(m_l, m_{l-1} + m_{l+1}), a product from the right, as for two layers (reduction.py): with the thin
QR M_l(0) = Q_l R_l, M_l(t) = Q_l R_l(t).  So layer l is replaced by min(m_l, m_{l-1} + m_{l+1})
neurons, one layer after another with the widths already reduced, and W_1 moves only in the span of
the inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Coordinates, Model, orthonormal_columns, span
from lnsim.theory import flatness


@dataclass(frozen=True)
class DeepLinear(Model):
    """Weights W_1 ... W_L, W_l : (m_l, m_{l-1}), L >= 1; `residual` adds skips to hidden layers.

    Raises TypeError or ValueError for wrong types, shapes that do not fit, NaN or infinity, and
    skips of hidden layers of different widths.
    """

    weights: tuple[FloatArray, ...]
    residual: bool = False

    kernel: ClassVar = "deep"

    def __post_init__(self) -> None:
        if isinstance(self.weights, np.ndarray) or not isinstance(self.weights, Sequence):
            raise TypeError(f"weights must be a sequence of matrices, got {type(self.weights)}")
        if not self.weights:
            raise ValueError("weights must have at least one layer (depth >= 1), got none")
        weights = tuple(
            checks.array(f"weights[{layer}]", W, 2) for layer, W in enumerate(self.weights)
        )
        for layer in range(1, len(weights)):
            width = weights[layer - 1].shape[0]
            checks.shape(
                f"weights[{layer}]", weights[layer], (len(weights[layer]), width),
                f"weights[{layer - 1}] has {width} rows",
            )  # fmt: skip
            if self.residual and layer < len(weights) - 1 and len(weights[layer]) != width:
                raise ValueError(
                    f"weights[{layer}] must be square for a skip, got {weights[layer].shape}"
                )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "residual", checks.flag("residual", self.residual))

    @property
    def parameters(self) -> dict[str, FloatArray]:
        """W1 : (m_1, d), ..., WL : (C, m_{L-1})."""
        return {f"W{layer}": W for layer, W in enumerate(self.weights, start=1)}

    def with_parameters(self, arrays: Sequence[FloatArray]) -> DeepLinear:
        """See Model."""
        return self._with(weights=tuple(arrays))

    def about(self) -> dict[str, object]:
        """See Model."""
        return {"model": self.kernel, "residual": self.residual}

    def shape(self) -> tuple[int, ...]:
        """d, m_1, ..., m_L."""
        return (self.dim, *(len(W) for W in self.weights))

    @property
    def skips(self) -> tuple[bool, ...]:
        """For every layer whether it adds its input to its output."""
        last = len(self.weights) - 1
        return tuple(
            self.residual and layer < last and W.shape[0] == W.shape[1]
            for layer, W in enumerate(self.weights)
        )

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.weights[0].shape[1]

    @property
    def outputs(self) -> int:
        """C, the number of outputs."""
        return len(self.weights[-1])

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.weights)

    @property
    def hidden(self) -> int:
        """m_1 + ... + m_{L-1}."""
        return sum(len(W) for W in self.weights[:-1])

    @property
    def predictor(self) -> FloatArray:
        """W_L ... W_1, shape (C, d)."""
        first, *others = self.weights
        product = first + np.eye(self.dim) if self.skips[0] else first
        for W, skip in zip(others, self.skips[1:], strict=True):
            product = W @ product + (product if skip else 0.0)
        return product

    def predict(self, X: FloatArray) -> FloatArray:
        """See Model."""
        return X @ self.predictor.T

    def layers(self, X: FloatArray, g: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """See Model and the pull-back above."""
        inputs = [X]
        for W, skip in zip(self.weights[:-1], self.skips, strict=False):
            inputs.append(inputs[-1] @ W.T + (inputs[-1] if skip else 0.0))
        pairs = []
        for W, skip, h in zip(self.weights[::-1], self.skips[::-1], inputs[::-1], strict=True):
            pairs.append((g, h))
            g = g @ W + (g if skip else 0.0)
        return pairs[::-1]

    def least_trace(self, gram: FloatArray) -> float:
        """See Model; the gradient by W_l is that by I + W_l."""
        return float(flatness.least_trace(self.predictor, gram, self.depth))

    @property
    def balancedness(self) -> float:
        """See Model; of I + W_l where there is a skip: gradient flow conserves it."""
        layers = [
            W + np.eye(len(W)) if skip else W
            for W, skip in zip(self.weights, self.skips, strict=True)
        ]
        pairs = itertools.pairwise(layers)
        return max((float(flatness.imbalance(A, B)) for A, B in pairs), default=0.0)

    def reduced(self, X: FloatArray, *, hidden: bool, inputs: bool) -> Coordinates[DeepLinear]:
        """See Model and the derivation above; with skips nothing is reduced."""
        if any(self.skips):
            return Coordinates(self, X)
        weights: list[FloatArray] = list(self.weights)
        bases: list[list[FloatArray | None]] = [[None, None] for _ in weights]
        rest: list[FloatArray | None] = [None] * len(weights)
        sides = []
        V = span(X) if inputs else None
        if V is not None:
            trained = weights[0] @ V
            rest[0] = weights[0] - trained @ V.T
            weights[0], X, bases[0][1] = trained, X @ V, V
            sides.append("inputs")
        for layer in range(len(weights) - 1 if hidden else 0):
            ingoing, outgoing = weights[layer], weights[layer + 1]
            if len(ingoing) > ingoing.shape[1] + len(outgoing):
                Q, R = np.linalg.qr(np.hstack([ingoing, outgoing.T]))
                weights[layer] = R[:, : ingoing.shape[1]]
                weights[layer + 1] = R[:, ingoing.shape[1] :].T
                bases[layer][0] = Q
                bases[layer + 1][1] = Q
                sides.append("hidden")
        if not sides:
            return Coordinates(self, X)
        model = DeepLinear(tuple(weights))
        pairs = tuple((left, right) for left, right in bases)
        return Coordinates(model, X, pairs, tuple(rest), tuple(dict.fromkeys(sides)))


def deep_init(
    dim: int,
    widths: Sequence[int],
    outputs: int = 1,
    seed: int = 0,
    *,
    scale: float = 1.0,
    start: str = "ntk",
    residual: bool = False,
) -> DeepLinear:
    """A deep linear network at its start, hidden layers of `widths`, entries times `scale`.

    `start`: "ntk" (N(0, 1/m_{l-1})), "identity" (ones on the diagonal, zero elsewhere) or
    "balanced" (W_{l+1}^T W_{l+1} = W_l W_l^T: orthogonal factors with singular values `scale`).
    Raises ValueError for sizes or a start out of range, TypeError for wrong types.
    """
    checks.choice("start", start, ("ntk", "identity", "balanced"))
    scale = checks.number("scale", scale)
    if residual and start == "balanced":
        raise ValueError("start must be 'ntk' or 'identity' with skips: they break the balance")
    if isinstance(widths, str) or not isinstance(widths, Sequence | np.ndarray):
        raise TypeError(f"widths must be a sequence of integers, got {widths!r}")
    sizes = [checks.integer("dim", dim, 1, checks.MOST_ENTRIES)]
    sizes += [checks.integer("width", width, 1, checks.MOST_ENTRIES) for width in widths]
    sizes.append(checks.integer("outputs", outputs, 1, checks.MOST_ENTRIES))
    rng = streams.generator(seed, "init")
    weights = []
    ranks = min(sizes)
    basis = orthonormal_columns(rng, sizes[0], ranks) if start == "balanced" else None
    for before, after in itertools.pairwise(sizes):
        if start == "ntk":
            W = rng.standard_normal((after, before)) / np.sqrt(before)
        elif start == "identity":
            W = np.eye(after, before)
        else:
            assert basis is not None
            following = orthonormal_columns(rng, after, ranks)
            W = following @ basis.T
            basis = following
        weights.append(scale * W)
    return DeepLinear(tuple(weights), residual)
