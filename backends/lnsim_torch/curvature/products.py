"""Products of the Hessian and of the Gauss-Newton matrix with vectors, as operators of curvlinops.

curvlinops averages over micro-batches.  Its own products cannot be taken in several threads at a
time, in which the arms of a run train: they use forward-mode differentiation, whose level torch
keeps once for the whole process.  They also map over the columns of a matrix, with the memory of
all columns at once.  Here all is reverse mode, on any module that can be differentiated twice, and
a matrix is multiplied column by column:

    H v = d/dtheta <grad L(theta), v>                               (Pearlmutter 1994),
    G v = J^T (d^2 l / df^2) J v,       J v = d/du <J^T u, v>       (Schraudolph 2002).

grad L, and J^T u at u = 0, do not depend on v.  While the parameters stay, `kept` holds them with
their graphs, of every micro-batch, and a product is the derivative of them alone.

This module alone imports curvlinops, and `operator` imports it when it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator, which curvlinops needs, calls what torch has deprecated.
    warnings.simplefilter("ignore")
    from curvlinops import GGNLinearOperator, HessianLinearOperator

Tensors = Sequence[Tensor]


class Hessian(HessianLinearOperator):
    """The Hessian of the mean loss."""

    kept: dict[int, Any] | None = None
    """The first derivatives of each micro-batch; None where every product takes them anew."""

    def _first(self, X: Tensor, y: Tensor) -> Any:
        """What products with any vector have in common."""
        return _gradient([self._loss_func(self._model_func(X), y)], self._params)

    def _second(self, gradient: Tensors, v: Tensors) -> Tensors:
        """The product with v."""
        return self._derivative(gradient, self._params, v)

    def _derivative(self, of: Tensors, inputs: Tensors, weights: Tensors) -> Tensors:
        """The gradient of <of, weights> at `inputs`; zero where it does not depend on them."""
        pairs = [(t, weight) for t, weight in zip(of, weights, strict=True) if t.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in inputs]
        dependent, theirs = zip(*pairs, strict=True)
        return torch.autograd.grad(
            dependent, inputs, theirs, materialize_grads=True, retain_graph=self.kept is not None
        )

    def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        """See curvlinops: M and the result are a list of (*shape of a parameter, columns)."""
        columns = zip(*(m.unbind(-1) for m in M), strict=True)
        products = [self._second(self._first_kept(X, y), column) for column in columns]
        return [torch.stack(of_all, dim=-1) for of_all in zip(*products, strict=True)]

    def _first_kept(self, X: Tensor, y: Tensor) -> Any:
        if self.kept is None:
            return self._first(X, y)
        # The operator holds the micro-batches, so that no two ever have the same id.
        if id(X) not in self.kept:
            self.kept[id(X)] = self._first(X, y)
        return self.kept[id(X)]


class GaussNewton(Hessian, GGNLinearOperator):
    """The Gauss-Newton matrix of the mean loss."""

    def _first(self, X: Tensor, y: Tensor) -> Any:
        f = self._model_func(X)
        u = torch.zeros_like(f, requires_grad=True)
        at = f.detach().requires_grad_()
        slope = _gradient([self._loss_func(at, y)], [at])
        return f, u, _gradient([f], self._params, [u]), at, slope

    def _second(self, first: Any, v: Tensors) -> Tensors:
        f, u, pulled, at, slope = first
        Jv = self._derivative(pulled, [u], v)
        HJv = self._derivative(slope, [at], Jv)
        return self._derivative([f], self._params, HJv)


def _gradient(outputs: Tensors, inputs: Tensors, weights: Tensors | None = None) -> Tensors:
    """The gradient of <outputs, weights> at `inputs`, which can be differentiated again."""
    return torch.autograd.grad(outputs, inputs, weights, create_graph=True, materialize_grads=True)


OPERATORS = {"hessian": Hessian, "gauss-newton": GaussNewton}
