"""Products of the Hessian and of the Gauss-Newton matrix with vectors, as operators of curvlinops.

curvlinops averages over micro-batches.  Its own products cannot be taken in several threads at a
time, in which the arms of a run train: they use forward-mode differentiation, whose level torch
keeps once for the whole process.  They also map over the columns of a matrix, with the memory of
all columns at once.  Here all is reverse mode, on any module that can be differentiated twice, and
a matrix is multiplied column by column:

    H v = d/dtheta <grad L(theta), v>                               (Pearlmutter 1994),
    G v = J^T (d^2 l / df^2) J v,       J v = d/du <J^T u, v>       (Schraudolph 2002).

This module alone imports curvlinops, and `operator` imports it when it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator, which curvlinops needs, calls what torch has deprecated.
    warnings.simplefilter("ignore")
    from curvlinops import GGNLinearOperator, HessianLinearOperator

Tensors = Sequence[Tensor]


class Hessian(HessianLinearOperator):
    """The Hessian of the mean loss."""

    def _product(self, X: Tensor, y: Tensor, v: Tensors) -> Tensors:
        loss = self._loss_func(self._model_func(X), y)
        return _derivative(_gradient([loss], self._params), self._params, v)

    def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        """See curvlinops: M and the result are a list of (*shape of a parameter, columns)."""
        columns = zip(*(m.unbind(-1) for m in M), strict=True)
        products = [self._product(X, y, column) for column in columns]
        return [torch.stack(of_all, dim=-1) for of_all in zip(*products, strict=True)]


class GaussNewton(Hessian, GGNLinearOperator):
    """The Gauss-Newton matrix of the mean loss."""

    def _product(self, X: Tensor, y: Tensor, v: Tensors) -> Tensors:
        f = self._model_func(X)
        u = torch.zeros_like(f, requires_grad=True)
        Jv = _derivative(_gradient([f], self._params, [u]), [u], v)
        at = f.detach().requires_grad_()
        HJv = _derivative(_gradient([self._loss_func(at, y)], [at]), [at], Jv)
        return torch.autograd.grad([f], self._params, HJv, materialize_grads=True)


def _gradient(outputs: Tensors, inputs: Tensors, weights: Tensors | None = None) -> Tensors:
    """The gradient of <outputs, weights> at `inputs`, which can be differentiated again."""
    return torch.autograd.grad(outputs, inputs, weights, create_graph=True, materialize_grads=True)


def _derivative(of: Tensors, inputs: Tensors, weights: Tensors) -> Tensors:
    """The gradient of <of, weights> at `inputs`; zero where it does not depend on them."""
    pairs = [(t, weight) for t, weight in zip(of, weights, strict=True) if t.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in inputs]
    dependent, theirs = zip(*pairs, strict=True)
    return torch.autograd.grad(dependent, inputs, theirs, materialize_grads=True)


OPERATORS = {"hessian": Hessian, "gauss-newton": GaussNewton}
