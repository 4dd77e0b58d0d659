"""Every dynamics for every model: SGD, GD and SAM's family with any loss and noise.

One step on a batch of B samples, in micro-batches of k:

    g_b = dl/df at theta,      G = (1/k) sum_b J_b^T g_b                  of a micro-batch
    theta' = theta + h G       h = rho / |G|, or rho                      in the layers that move
    grad += (k/B) (1/k) sum_b J'_b^T g'_b

with J', g' at theta', or one of the two at theta (`through`); without SAM grad = G.  Then noise is
added to grad, V <- mu V + grad + w theta, theta <- theta - lr V, and noise is added to theta.

The derivative of a loss by the prediction f, with the target y : (C,):

    squared          f - y
    logistic         -y / (1 + exp(y f)),  y = -1 or 1
    cross-entropy    softmax(f) - y,       y a row of the identity
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lnsim.backend import ModelState, Segment, kernel_of
from lnsim.base.checks import FloatArray
from lnsim.base.compiled import compiled
from lnsim.base.threads import in_blocks
from lnsim.dynamics import Dynamics
from lnsim.models.base import Model
from lnsim_numba.call import rates, scalars
from lnsim_numba.common import BARE, EXACT, FAST, has_diverged, larger
from lnsim_numba.models import Deep, Diagonal, TwoLayer, forward, pull_back, work

SQUARED, LOGISTIC, CROSS_ENTROPY = 0, 1, 2
LOSSES = {"squared": SQUARED, "logistic": LOGISTIC, "cross-entropy": CROSS_ENTROPY}

RATES = scalars("lr", "rho", "momentum", "weight_decay")

DYNAMICS = {"descent": RATES}
"""By the kernel of a dynamics the scalars it is trained with."""


class Form(NamedTuple):
    """The loss, the micro-batches of a batch, and the form of SAM.

    normalized: whether rho is divided by the gradient's norm.  first, last: the parameters that
    move.  new_loss, new_jacobian: which of g and J are taken at the moved weights.
    memory: how much of the last noise on parameters is added to the next, -1 or 0.
    """

    loss: int
    parts: int
    normalized: bool
    first: int
    last: int
    new_loss: bool
    new_jacobian: bool
    memory: float


@compiled(**BARE)
def derivative(loss, f, targets, g):  # type: ignore[no-untyped-def]
    """Writes dl/df to g : (B, C); returns the largest |f - y|^2, or |f|^2, of a sample."""
    worst = 0.0
    for b in range(f.shape[0]):
        square = 0.0
        if loss == SQUARED:
            for c in range(f.shape[1]):
                g[b, c] = f[b, c] - targets[b, c]
                square += g[b, c] * g[b, c]
        elif loss == LOGISTIC:
            g[b, 0] = -targets[b, 0] / (1.0 + np.exp(targets[b, 0] * f[b, 0]))
            square = f[b, 0] * f[b, 0]
        else:
            top = f[b, 0]
            for c in range(1, f.shape[1]):
                top = max(top, f[b, c])
            total = 0.0
            for c in range(f.shape[1]):
                g[b, c] = np.exp(f[b, c] - top)
                total += g[b, c]
                square += f[b, c] * f[b, c]
            for c in range(f.shape[1]):
                g[b, c] = g[b, c] / total - targets[b, c]
        if larger(square, worst):
            worst = square
    return worst


@compiled(**BARE)
def _gather(X, index, xs):  # type: ignore[no-untyped-def]
    """Writes the samples `index` : (B,) of X to xs : (B, r)."""
    for b in range(index.size):
        source, copy = X[index[b]], xs[b]
        for j in range(X.shape[1]):
            copy[j] = source[j]


@compiled(**BARE)
def _fill(array, value):  # type: ignore[no-untyped-def]
    """array[:] = value."""
    for p in range(array.size):
        array[p] = value


@compiled(**BARE)
def _train(  # type: ignore[no-untyped-def]
    model, theta, V, last, X, index, targets, gradient, parameters, keep, lr, rates, form, steps,
    xs, f, g, moved_g, grad, step, moved, at_theta, at_moved, none,
):  # fmt: skip
    """`train` with all the room it needs."""
    k = f.shape[0]
    batch = k * form.parts
    rho, momentum, decay = rates["rho"], rates["momentum"], rates["weight_decay"]
    in_place = batch == 1 and rho == 0.0 and momentum == 0.0 and decay == 0.0
    in_place = in_place and gradient.size == 0
    for t in range(steps):
        rate = rates["lr"] * lr[t] if lr.size > 0 else rates["lr"]
        shown = targets[t] if targets.shape[0] > 1 else targets[0]
        mask = keep[t] if keep.size > 0 else none
        if in_place:
            i = index[t, 0] if index.size > 0 else 0
            x = X[i : i + 1]
            forward(model, theta, x, mask, at_theta, f)
            if has_diverged(derivative(form.loss, f, shown, g)):
                return t
            pull_back(model, theta, x, mask, at_theta, g, -rate, theta)
        else:
            if index.size > 0:
                _gather(X, index[t], xs)
            _fill(grad, 0.0)
            for part in range(form.parts):
                x, y = xs[part * k : (part + 1) * k], shown[part * k : (part + 1) * k]
                part_mask = mask[part * k : (part + 1) * k]
                forward(model, theta, x, part_mask, at_theta, f)
                if has_diverged(derivative(form.loss, f, y, g)):
                    return t
                if rho == 0.0:
                    pull_back(model, theta, x, part_mask, at_theta, g, 1.0 / batch, grad)
                    continue
                _fill(step, 0.0)
                pull_back(model, theta, x, part_mask, at_theta, g, 1.0 / k, step)
                h = rho
                if form.normalized:
                    square = 0.0
                    for p in range(form.first, form.last):
                        square += step[p] * step[p]
                    h = rho / np.sqrt(square) if square > 0.0 else 0.0
                for p in range(theta.size):
                    moved[p] = theta[p]
                for p in range(form.first, form.last):
                    moved[p] += h * step[p]
                forward(model, moved, x, part_mask, at_moved, f)
                if form.new_loss:
                    derivative(form.loss, f, y, moved_g)
                else:
                    for b in range(k):
                        for c in range(g.shape[1]):
                            moved_g[b, c] = g[b, c]
                if form.new_jacobian:
                    pull_back(model, moved, x, part_mask, at_moved, moved_g, 1.0 / batch, grad)
                else:
                    pull_back(model, theta, x, part_mask, at_theta, moved_g, 1.0 / batch, grad)
            if gradient.size > 0:
                for p in range(theta.size):
                    grad[p] += gradient[t, p]
            if momentum == 0.0 and decay == 0.0:
                for p in range(theta.size):
                    theta[p] -= rate * grad[p]
            else:
                for p in range(theta.size):
                    V[p] = momentum * V[p] + grad[p] + decay * theta[p]
                    theta[p] -= rate * V[p]
        if parameters.size > 0:
            for p in range(theta.size):
                theta[p] += parameters[t, p] + form.memory * last[p]
                last[p] = parameters[t, p]
    return -1


@compiled(**FAST)
def train(  # type: ignore[no-untyped-def]
    model, theta, V, last, X, index, targets, gradient, parameters, keep, lr, rates, form, steps
):
    """Trains theta : (P,) in place; V : (P,) its momentum, last : (P,) the last noise on it.

    index : (T, B) or without rows for all samples; targets : (T or 1, B, C); gradient, parameters :
    (T, P) and keep : (T, B, H), or without rows; lr : (T,) factors, or empty.  T = `steps`.
    """
    batch, C = targets.shape[1], targets.shape[2]
    k = batch // form.parts
    xs = np.empty((batch, X.shape[1])) if index.size > 0 else X
    f, g, moved_g = np.empty((k, C)), np.empty((k, C)), np.empty((k, C))
    grad, step, moved = np.zeros(theta.size), np.zeros(theta.size), np.empty(theta.size)
    return _train(
        model, theta, V, last, X, index, targets, gradient, parameters, keep, lr, rates, form,
        steps, xs, f, g, moved_g, grad, step, moved, work(model, k), work(model, k),
        np.empty((0, 0)),
    )  # fmt: skip


@compiled(**EXACT)
def train_replicas(  # type: ignore[no-untyped-def]
    model, theta, V, last, X, index, targets, gradient, parameters, keep, lr, rates, form, steps,
    first_step, going, diverged_at,
):  # fmt: skip
    """`train` for the replicas `going`, their numbers; arrays have S or 1 rows in front."""
    for s in going:
        done = train(
            model, theta[s], V[s], last[s % last.shape[0]], X, index[s % index.shape[0]],
            targets[s % targets.shape[0]], gradient[s % gradient.shape[0]],
            parameters[s % parameters.shape[0]], keep[s % keep.shape[0]], lr[s % lr.shape[0]],
            rates[s], form, steps,
        )  # fmt: skip
        if done >= 0:
            diverged_at[s] = first_step + done


def _deep(model: Any) -> Deep:
    return Deep(np.array(model.shape()), np.array(model.skips))


MODELS: dict[str, Callable[[Any], Any]] = {
    "two-layer": lambda model: TwoLayer(*model.shape(), activation=-1),  # type: ignore[misc]
    "relu": lambda model: TwoLayer(*model.shape()),
    "diagonal": lambda model: Diagonal(*model.shape()),
    "deep": _deep,
}
"""By the kernel of a model its sizes, as the functions of models.py take them."""


def train_model(state: ModelState, segment: Segment) -> None:
    """See LinearEngine.train."""
    model, dynamics, draws = segment.model, segment.dynamics, segment.draws
    sizes = kernel_of(MODELS, model, "numba")(model)
    records = rates(dynamics, len(state.theta), kernel_of(DYNAMICS, dynamics, "numba"))
    index, lr = draws.index, draws.lr
    arrays = (
        np.empty((1, 0, 0), dtype=np.int64) if index is None else index,
        np.ascontiguousarray(draws.targets),
        _or_empty(draws.gradient, 3),
        _or_empty(draws.parameters, 3),
        _or_empty(draws.keep, 4),
        np.empty((1, 0)) if lr is None else np.ascontiguousarray(lr),
    )
    form = form_of(model, segment.loss, dynamics, arrays[1].shape[2])
    going = np.flatnonzero(state.diverged_at < 0)
    in_blocks(
        lambda block: train_replicas(
            sizes, state.theta, state.velocity, state.last, segment.X, *arrays, records, form,
            segment.steps, segment.first_step, going[block], state.diverged_at,
        ),
        going.size,
    )  # fmt: skip


def form_of(model: Model, loss: str, dynamics: Dynamics, batch: int) -> Form:
    """What the kernel needs to know of the loss and the dynamics, on batches of `batch`."""
    border = model.first_layer_size
    noise = dynamics.parameter_noise
    return Form(
        loss=LOSSES[loss],
        parts=dynamics.parts(batch),
        normalized=dynamics.normalized,
        first=border if dynamics.layers == "second" else 0,
        last=border if dynamics.layers == "first" else model.size,
        new_loss=dynamics.through != "jacobian",
        new_jacobian=dynamics.through != "loss",
        memory=-1.0 if noise is not None and noise.anticorrelated else 0.0,
    )


def _or_empty(array: FloatArray | None, axes: int) -> FloatArray:
    """`array`, C-contiguous, or one without rows."""
    return np.empty((1, *(0,) * (axes - 1))) if array is None else np.ascontiguousarray(array)
