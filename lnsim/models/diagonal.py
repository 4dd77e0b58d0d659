"""The diagonal linear network f(x) = <beta, x> with beta a product of its parameters.

    product       beta = u v               (Andriushchenko et al. 2022; Pesme et al. 2021)
    difference    beta = u^D - v^D         (Woodworth et al. 2020, "Kernel and rich regimes")
    square        beta = v v               (HaoChen et al. 2021)

entry by entry.  Pull-back: with s = g x, entry by entry, du = s v, dv = s u for the product,
du = D s u^(D-1), dv = -D s v^(D-1) for the difference, and dv = 2 s v for the square.

There is no symmetry that a rotation of the inputs or of hidden units would have: it trains dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.models.base import Model
from lnsim.theory import flatness

FORMS = ("product", "difference", "square")


@dataclass(frozen=True)
class Diagonal(Model):
    """u, v : (d,), and how they make beta: see FORMS; `square` has no u (None).

    `power` is D of the form "difference".  Raises TypeError or ValueError for wrong types, shapes
    that do not fit, NaN or infinity, an unknown form, a power below 1.
    """

    u: FloatArray | None
    v: FloatArray
    form: str = "product"
    power: int = 2

    kernel: ClassVar = "diagonal"

    def __post_init__(self) -> None:
        checks.choice("form", self.form, FORMS)
        object.__setattr__(self, "power", checks.integer("power", self.power, 1, 64))
        v = checks.array("v", self.v, 1)
        object.__setattr__(self, "v", v)
        if (self.u is None) != (self.form == "square"):
            raise ValueError(
                "u must be None for the form 'square' and an array for the others, "
                f"got {type(self.u).__name__} for {self.form!r}"
            )
        if self.u is not None:
            u = checks.array("u", self.u, 1)
            checks.shape("u", u, v.shape, f"v has {v.size} entries")
            object.__setattr__(self, "u", u)

    @property
    def parameters(self) -> dict[str, FloatArray]:
        """u and v, or v alone."""
        return {"v": self.v} if self.u is None else {"u": self.u, "v": self.v}

    def with_parameters(self, arrays: Sequence[FloatArray]) -> Diagonal:
        """See Model."""
        return self._with(u=None if len(arrays) == 1 else arrays[0], v=arrays[-1])

    def about(self) -> dict[str, object]:
        """See Model."""
        return {"model": self.kernel, "form": self.form, "power": self.power}

    def shape(self) -> tuple[int, ...]:
        """d, the number of the form in FORMS, the power."""
        return (self.dim, FORMS.index(self.form), self.power)

    @property
    def dim(self) -> int:
        """d, the input dimension."""
        return self.v.size

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def hidden(self) -> int:
        """d for the product, whose coordinates are hidden units u_i x_i; 0 for the others."""
        return self.dim if self.form == "product" else 0

    @property
    def beta(self) -> FloatArray:
        """The predictor, shape (d,)."""
        if self.u is None:
            return self.v * self.v
        if self.form == "product":
            return self.u * self.v
        return np.asarray(self.u**self.power - self.v**self.power)

    @property
    def predictor(self) -> FloatArray:
        """beta, shape (1, d)."""
        return self.beta[None]

    def predict(self, X: FloatArray) -> FloatArray:
        """See Model."""
        return (X @ self.beta)[:, None]

    def layers(self, X: FloatArray, g: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        """See Model: one unit for each array, whose inputs are x times d beta / du, d beta / dv."""
        if self.u is None:
            return [(g, X * (2.0 * self.v))]
        if self.form == "product":
            return [(g, X * self.v), (g, X * self.u)]
        D = self.power
        return [(g, X * (D * self.u ** (D - 1))), (g, X * (-D * self.v ** (D - 1)))]

    def residual_trace(self, X: FloatArray, g: FloatArray) -> float:
        """See Model: sum_j s_j (d^2 beta_j / du_j^2 + d^2 beta_j / dv_j^2), s = X^T g."""
        s = g[:, 0] @ X
        if self.u is None:
            return float(2.0 * s.sum())
        D = self.power
        if self.form == "product" or D == 1:
            return 0.0
        return float(D * (D - 1) * (s @ (self.u ** (D - 2) - self.v ** (D - 2))))

    def least_trace(self, gram: FloatArray) -> float:
        """See Model."""
        return float(flatness.least_trace_diagonal(self.beta, gram, self.form, self.power))

    @property
    def balancedness(self) -> float:
        """|u^2 - v^2| for the product, whose two layers are diagonal matrices; else NaN."""
        if self.u is None or self.form != "product":
            return float("nan")
        return float(np.linalg.norm(self.u**2 - self.v**2))


def diagonal_init(dim: int, scale: float = 0.1, form: str = "product", power: int = 2) -> Diagonal:
    """Every coordinate alike: u = scale, v = 0 (product), u = v = scale (the others).

    So beta = 0 at the start, but for the square, where it is scale^2.  Raises ValueError for values
    out of range.
    """
    dim = checks.integer("dim", dim, 1, checks.MOST_ENTRIES)
    alike = np.full(dim, checks.number("scale", scale))
    checks.choice("form", form, FORMS)
    if form == "product":
        return Diagonal(alike, np.zeros(dim), form, power)
    return Diagonal(None if form == "square" else alike, alike.copy(), form, power)
