"""Every dynamics for every model by autograd: the witness of lnsim_numba/general.py.

A model is here its prediction and a loss is its value; both derivatives of a step, g = dl/df and
the pull-back J^T g, are autograd's.  lnsim_numba/general.py says what a step is.

Every tensor has the replicas in front.  A micro-batch counts as a replica of its own, with a copy
of the parameters, so that each moves the weights by its own gradient; their gradients are averaged.
A mask freezes a replica that diverges, so that no step waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lnsim.backend import ModelState, Segment, kernel_of
from lnsim.base.checks import DIVERGED_ABOVE, FloatArray
from lnsim.models.base import Model
from lnsim_torch.tensors import ratio, to_numpy

ACTIVATIONS = {"relu": torch.relu, "erf": torch.erf}


def _kept(units: Tensor, keep: Tensor | None) -> Tensor:
    """Hidden units after dropout."""
    return units if keep is None else units * keep


def _two_layer(model: Any, parameters: Sequence[Tensor], X: Tensor, keep: Tensor | None) -> Tensor:
    W, a = parameters
    A = a[:, None] if a.ndim == 2 else a
    return _kept(X @ W.mT, keep) @ A.mT


def _relu(model: Any, parameters: Sequence[Tensor], X: Tensor, keep: Tensor | None) -> Tensor:
    W, A = parameters
    return _kept(ACTIVATIONS[model.activation](X @ W.mT), keep) @ A.mT


def _diagonal(model: Any, parameters: Sequence[Tensor], X: Tensor, keep: Tensor | None) -> Tensor:
    v = parameters[-1]
    if model.form == "square":
        return X @ (v * v)[:, :, None]
    u = parameters[0]
    if model.form == "difference":
        return X @ (u**model.power - v**model.power)[:, :, None]
    return _kept(X * u[:, None], keep) @ v[:, :, None]


def _deep(model: Any, parameters: Sequence[Tensor], X: Tensor, keep: Tensor | None) -> Tensor:
    widths = [W.shape[1] for W in parameters[:-1]]
    kept = [None] * len(widths) if keep is None else keep.split(widths, dim=-1)
    units = X
    for W, skip, mask in zip(parameters, model.skips, (*kept, None), strict=True):
        units = _kept(units @ W.mT + units if skip else units @ W.mT, mask)
    return units


MODELS: dict[str, Callable[[Any, Sequence[Tensor], Tensor, Tensor | None], Tensor]] = {
    "two-layer": _two_layer,
    "relu": _relu,
    "diagonal": _diagonal,
    "deep": _deep,
}
"""By the kernel of a model its prediction f : (S, B, C).

It takes the model, which has no weights to be read; the parameters, (S, ...) each; X : (S, B, r) or
(1, B, r); and keep : (S, B, H), what the hidden units are multiplied by, or None.
"""


def _squared(f: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (f - y).square().sum(dim=-1)


def _logistic(f: Tensor, y: Tensor) -> Tensor:
    return -functional.logsigmoid(y * f).sum(dim=-1)


def _cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    return -(y * functional.log_softmax(f, dim=-1)).sum(dim=-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": _squared,
    "logistic": _logistic,
    "cross-entropy": _cross_entropy,
}
"""The loss of every sample, (S, B), at the predictions f and the targets y, (S, B, C) each."""


class _Descent:
    """The kernel "descent": all that a call of `train_model` trains, and one step of it."""

    def __init__(
        self, state: ModelState, segment: Segment, tensor: Callable[[FloatArray], Tensor]
    ) -> None:
        model, dynamics, draws = segment.model, segment.dynamics, segment.draws
        self._model, self._predict = model, kernel_of(MODELS, model, "torch")
        self._shapes = [array.shape for array in model.parameters.values()]
        self._sizes = [array.size for array in model.parameters.values()]
        self._loss, self._squared = LOSSES[segment.loss], segment.loss == "squared"
        self._through, self._normalized = dynamics.through, dynamics.normalized
        self._parts = dynamics.parts(draws.targets.shape[2])
        noise = dynamics.parameter_noise
        self._anticorrelated = noise is not None and noise.anticorrelated
        self.theta, self._velocity = tensor(state.theta), tensor(state.velocity)
        self._last = tensor(state.last)
        device = self.theta.device
        self._diverged_at = torch.tensor(state.diverged_at, device=device)
        scalars = dynamics.scalars()
        values = [scalars.get(name, 0.0) for name in ("lr", "rho", "momentum", "weight_decay")]
        rates = (tensor(np.broadcast_to(value, len(state.theta))[:, None]) for value in values)
        self._lr, self._rho, self._momentum, self._decay = rates
        self._sharpness_aware = bool(np.any(values[1]))
        self._heavy = bool(np.any(values[2]) or np.any(values[3]))
        # Without either a replica has no use for its velocity, which stays as it was.
        self._has_velocity = (self._momentum > 0.0) | (self._decay > 0.0)
        self._moving = tensor(_moving(model, dynamics.layers))
        self._X, self._targets = tensor(segment.X), tensor(draws.targets)
        self._index = None if draws.index is None else torch.tensor(draws.index, device=device)
        self._keep, self._gradient_noise, self._parameter_noise, self._lr_factors = (
            None if array is None else tensor(array)
            for array in (draws.keep, draws.gradient, draws.parameters, draws.lr)
        )

    def step(self, t: int, number: int) -> None:
        """One step with the draws of step t of the call, which is step `number` of the run."""
        gradient, square = self._gradient(t)
        diverges = (self._diverged_at < 0) & ~(square < DIVERGED_ABOVE)
        self._diverged_at = torch.where(diverges, number, self._diverged_at)
        alive = (self._diverged_at < 0)[:, None]
        if self._gradient_noise is not None:
            gradient = gradient + _at(self._gradient_noise, t)
        if self._heavy:
            gradient = self._momentum * self._velocity + gradient + self._decay * self.theta
            moves = alive & self._has_velocity
            self._velocity = torch.where(moves, gradient, self._velocity)
        lr = self._lr
        if self._lr_factors is not None:
            lr = lr * _at(self._lr_factors, t)[:, None]
        theta = self.theta - lr * gradient
        if self._parameter_noise is not None:
            xi = _at(self._parameter_noise, t)
            theta = theta + (xi - self._last if self._anticorrelated else xi)
            self._last = torch.where(alive, xi, self._last)
        self.theta = torch.where(alive, theta, self.theta)

    def store(self, state: ModelState) -> None:
        """Writes what was trained into `state`."""
        state.theta[:], state.velocity[:] = to_numpy(self.theta), to_numpy(self._velocity)
        state.last[:] = to_numpy(self._last)
        state.diverged_at[:] = self._diverged_at.cpu().numpy()

    def _gradient(self, t: int) -> tuple[Tensor, Tensor]:
        """The gradient (S, P) of step t of the call, and the square that decides on divergence."""
        X = self._X[None] if self._index is None else self._X[_at(self._index, t)]
        keep = None if self._keep is None else self._parted(_at(self._keep, t))
        X, y = self._parted(X), self._parted(_at(self._targets, t))
        theta, f = self._predicted(self._for_parts(self.theta), X, keep)
        square = (f.detach() - y if self._squared else f.detach()).square().sum(dim=-1)
        g = self._loss_derivative(f, y)
        if self._sharpness_aware:
            (move,) = torch.autograd.grad(f, theta, g, retain_graph=self._through == "loss")
            moved_theta, moved_f = self._predicted(theta.detach() + self._ascent(move), X, keep)
            if self._through != "jacobian":
                g = self._loss_derivative(moved_f, y)
            if self._through != "loss":
                theta, f = moved_theta, moved_f
        (gradient,) = torch.autograd.grad(f, theta, g)
        shape = len(self.theta), self._parts, -1
        return gradient.reshape(shape).mean(dim=1), square.reshape(shape).amax(dim=(1, 2))

    def _predicted(self, theta: Tensor, X: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """`theta` as autograd follows it, and the prediction at it."""
        theta = theta.detach().requires_grad_()
        parameters = [
            part.view(-1, *shape)
            for part, shape in zip(theta.split(self._sizes, dim=1), self._shapes, strict=True)
        ]
        return theta, self._predict(self._model, parameters, X, keep)

    def _loss_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        """The derivative by f of the mean loss over the (micro-)batch."""
        f = f.detach().requires_grad_()
        (g,) = torch.autograd.grad(self._loss(f, y).sum() / f.shape[1], f)
        return g

    def _ascent(self, gradient: Tensor) -> Tensor:
        """What SAM adds to the weights: rho times the gradient, or times its direction."""
        rho = self._for_parts(self._rho)
        gradient = gradient * self._moving
        if self._normalized:
            rho = ratio(rho, gradient.square().sum(dim=1, keepdim=True).sqrt())
        return rho * gradient

    def _for_parts(self, each: Tensor) -> Tensor:
        """What every replica has, (S, N), for each of its micro-batches, (S parts, N)."""
        return each[:, None].expand(-1, self._parts, -1).reshape(-1, each.shape[1])

    def _parted(self, batch: Tensor) -> Tensor:
        """`batch` : (S or 1, B, ...) with micro-batches as replicas, (S parts, B / parts, ...)."""
        if self._parts == 1:
            return batch
        batch = batch.expand(len(self.theta), *batch.shape[1:])
        return batch.reshape(len(batch) * self._parts, -1, *batch.shape[2:])


KERNELS: dict[str, type[_Descent]] = {"descent": _Descent}
"""The class that trains by each `kernel` of a dynamics."""


def train_model(
    state: ModelState, segment: Segment, tensor: Callable[[FloatArray], Tensor]
) -> None:
    """See LinearEngine.train; `tensor` copies an array to the device, in the engine's precision."""
    run = kernel_of(KERNELS, segment.dynamics, "torch")(state, segment, tensor)
    for t in range(segment.steps):
        run.step(t, segment.first_step + t)
    run.store(state)


def _at(draws: Tensor, t: int) -> Tensor:
    """The draws of step t : (S, T, ...); one step stands for all of them where T = 1."""
    return draws.select(1, t if draws.shape[1] > 1 else 0)


def _moving(model: Model, layers: str) -> FloatArray:
    """1 for the parameters in the layers that SAM moves, 0 for the others, shape (P,)."""
    first = np.arange(model.size) < model.first_layer_size
    return np.where(first, layers != "second", layers != "first").astype(np.float64)
