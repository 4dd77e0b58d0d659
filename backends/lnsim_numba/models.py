"""The models by hand: the prediction of a batch, and the pull-back of a derivative through it.

A model is a tuple of sizes; its type chooses the functions, and Numba compiles every kernel that
calls `forward` and `pull_back` once for each.  theta : (P,) holds the parameters as
lnsim.models.base says.

    work(model, batch)                        arrays that the other two share, for a batch size
    forward(model, theta, X, keep, work, f)   writes f : (B, C) for X : (B, r)
    pull_back(model, theta, X, keep, work, g, scale, out)
                                              out += scale sum_b J_b^T g_b, J_b = df_b/dtheta at the
                                              theta that `work` was written for; g : (B, C)

With one sample out may be theta itself: what is read of theta is read before it is written.
keep : (B, H) multiplies the hidden units (dropout), or has no entries.  The derivations are in the
files of lnsim/models.  Batches are products of matrices; one sample is loops, which are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numba.extending import overload

from lnsim_numba import model_deep, model_diagonal, model_two_layer
from lnsim_numba.model_deep import Deep
from lnsim_numba.model_diagonal import Diagonal
from lnsim_numba.model_two_layer import TwoLayer

FUNCTIONS: dict[type, ModuleType] = {
    TwoLayer: model_two_layer,
    Diagonal: model_diagonal,
    Deep: model_deep,
}
"""By the type of a model the module that has its work, forward and pull_back."""


def work(model, batch):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)].work(model, batch)


def forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)].forward(model, theta, X, keep, work, f)


def pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    """See above."""
    return FUNCTIONS[type(model)].pull_back(model, theta, X, keep, work, g, scale, out)


def _function(model: Any, name: str) -> Callable[..., Any]:
    """The function that Numba is to compile for an argument of this type."""
    function: Callable[..., Any] = getattr(FUNCTIONS[model.instance_class], name)
    return function


@overload(work)
def _compile_work(model, batch):  # type: ignore[no-untyped-def]
    function = _function(model, "work")
    return lambda model, batch: function(model, batch)


@overload(forward)
def _compile_forward(model, theta, X, keep, work, f):  # type: ignore[no-untyped-def]
    function = _function(model, "forward")
    return lambda model, theta, X, keep, work, f: function(model, theta, X, keep, work, f)


@overload(pull_back)
def _compile_pull_back(model, theta, X, keep, work, g, scale, out):  # type: ignore[no-untyped-def]
    function = _function(model, "pull_back")
    return lambda model, theta, X, keep, work, g, scale, out: function(
        model, theta, X, keep, work, g, scale, out
    )
