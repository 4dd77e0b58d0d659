r"""The Hessian and the Gauss-Newton matrix of a network's mean loss, which are never formed.

With parameters theta : (P,), outputs f(x; theta) and a loss l(f, y) of a sample, the mean loss over
all N samples and its two matrices are

    L(theta) = (1 / N) sum_n l(f_n, y_n),
    H = d^2 L / dtheta^2,      G = (1 / N) sum_n J_n^T (d^2 l / df_n^2) J_n,    J_n = df_n / dtheta.

H = G + (1 / N) sum_n sum_c (dl / df_nc) d^2 f_nc / dtheta^2, so that H is near G where residuals
are small.  For ReLU the second derivative of f is that of the piece of f on which theta lies.

curvlinops-for-pytorch multiplies them by vectors, over micro-batches.  What it lacks is here and in
the modules beside: a network that is given in any mode is measured in eval mode, and its modes and
buffers are restored; the micro-batches follow from a number of bytes (`budget`); vectors are drawn
from a seed rather than from torch's global generator, which threads share (`measures`); a loss may
be any function that is the mean over samples; products may be taken in several threads, and take
the memory of one column (`products`); a product that is not finite is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lnsim.base import checks, plugins
from lnsim_torch.arithmetic import exact_arithmetic
from lnsim_torch.curvature.budget import need_of
from lnsim_torch.curvature.layers import twice_differentiable
from lnsim_torch.ntk.kernel import refuse_random_layers
from lnsim_torch.training.state import buffers_restored
from lnsim_torch.untouched import eager

MATRICES = ("hessian", "gauss-newton")

MEMORY = 3 * 2**29
"""The bytes that a product may take where nothing else is said, 1.5 GiB."""

IN_CACHE = 2**26
"""The bytes of a micro-batch on the CPU beyond those of one sample, 64 MiB: more is slower."""

CHECKED = 4
"""Number of samples on which the loss is checked to be a mean."""

Loss = Callable[[Tensor, Tensor], Tensor]


class CurvatureError(ArithmeticError):
    """A product is not finite, or eigenvalues did not converge."""


class Curvature:
    """The Hessian ("hessian") or the Gauss-Newton matrix ("gauss-newton") of the mean loss.

    network: maps samples (N, ...) to outputs (N, ...), each by itself.  Its parameters with
        requires_grad, all float32 or all float64, are theta; it is used in eval mode.
    x, y: samples (N, ...) and targets (N, ...); they may lie on another device than the network.
    loss: maps outputs and targets of any number of samples to their mean loss, a scalar.
    memory: bytes that one product may take, besides the network, the samples, and the few vectors
        of length P that a method keeps.

    `size` is P, `micro_batch` the number of samples taken at a time.  The matrix is that of the
    parameters at the time of a product.  Modes and buffers of `network` are unchanged after every
    call; another thread must not use it meanwhile.

    Raises ValueError or TypeError for a network that is random, that mixes samples, or that has no
    such parameters; for a loss that is not the mean over samples; for a `memory` too small for one
    sample; and if curvlinops-for-pytorch is not installed.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: Loss,
        *,
        matrix: str = "hessian",
        memory: float = MEMORY,
    ) -> None:
        checks.choice("matrix", matrix, MATRICES)
        if not (isinstance(memory, int | float) and 1 <= memory < math.inf):
            raise ValueError(f"memory must be a number of bytes, at least 1, got {memory!r}")
        self.network, self.matrix = network, matrix
        self._parameters = _parameters(network)
        self.size = sum(p.numel() for p in self._parameters)
        self.dtype, self.device = self._parameters[0].dtype, self._parameters[0].device
        _check_samples(x, y)
        with torch.inference_mode(False):
            self._x, self._y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
        self._loss = _Loss(loss)
        self._is_function = False
        products = plugins.load(
            "lnsim_torch.curvature.products", "curvature", extra="torch",
            absent={"curvlinops": "curvature needs curvlinops: pip install 'lnsim[torch]'"},
        )  # fmt: skip
        self._make = products.OPERATORS[matrix]
        with self._as_function():
            refuse_random_layers(network)
            before = self._versions()
            self._check_loss()
            self._writes = self._versions() != before
            need = need_of(self._try_product, len(x), int(memory))
            self.micro_batch = need.samples(int(memory), len(x))
            # Products that may take all samples at a time may keep the graphs of all.
            self._keeps = self.micro_batch == len(x) and self._x.device == self.device
            if self.device.type == "cpu":
                self.micro_batch = need.samples(need.one + IN_CACHE, self.micro_batch)
            self._operator = self._of(len(x), self.micro_batch)

    def product(self, vector: Tensor) -> Tensor:
        """The matrix times `vector` : (P,), of the same dtype and device.

        Raises CurvatureError where it is not finite.
        """
        with nullcontext() if self._is_function else self._as_function():
            result = self._operator @ vector.to(self.device, self.dtype)
        if not bool(torch.isfinite(result).all()):
            raise CurvatureError(f"a product with the {self.matrix} matrix is not finite")
        return result.to(vector.device, vector.dtype)

    @contextmanager
    def at_one_point(self) -> Iterator[None]:
        """Inside, the parameters and buffers stay as they are: products are faster.

        They share the gradient and its graph where `memory` suffices for those of all samples.  A
        network that writes to its state in eval mode gains nothing.
        """
        if self._is_function or self._writes:
            yield
            return
        with self._as_function():
            self._is_function = True
            self._operator.kept = {} if self._keeps else None
            try:
                yield
            finally:
                self._is_function, self._operator.kept = False, None

    def _of(self, samples: int, at_a_time: int) -> Any:
        """The operator of the first `samples`, in micro-batches of `at_a_time`."""
        parts = [slice(i, min(i + at_a_time, samples)) for i in range(0, samples, at_a_time)]
        data = [(self._x[part], self._y[part]) for part in parts]
        return self._make(
            self.network, self._loss, self._parameters, data, check_deterministic=False,
            num_data=samples,
        )  # fmt: skip

    def _try_product(self, samples: int) -> None:
        vector = torch.ones(self.size, dtype=self.dtype, device=self.device)
        self._of(samples, samples) @ vector

    @contextmanager
    def _as_function(self) -> Iterator[None]:
        """Inside, the network is a function: eval mode, exact arithmetic; restored afterwards."""
        modes = [(module, module.training) for module in self.network.modules()]
        with (
            torch.inference_mode(False), torch.enable_grad(), exact_arithmetic(self.device),
            eager(), buffers_restored(self.network), twice_differentiable(self.network),
        ):  # fmt: skip
            self.network.eval()
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training

    def _versions(self) -> list[int]:
        """Numbers that change where the network writes to its state."""
        state = [*self.network.parameters(), *self.network.buffers()]
        return [0 if t.is_inference() else t._version for t in state]

    @torch.no_grad()
    def _check_loss(self) -> None:
        """Raises ValueError unless the mean over the first samples is that of each of them."""
        x, y = (t[:CHECKED].to(self.device) for t in (self._x, self._y))
        try:
            f, again = self.network(x), self.network(x)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"network does not take samples {tuple(x.shape[1:])} of {x.dtype}: {reason}"
            ) from error
        if not torch.equal(f, again) and not bool(torch.isnan(f).any()):
            raise ValueError("network must not be random in eval mode: two calls differ")
        together = self._loss(f, y)
        if together.shape != ():
            raise ValueError(f"loss must return a scalar, got shape {tuple(together.shape)}")
        alone = [float(self._loss(self.network(x[i : i + 1]), y[i : i + 1])) for i in range(len(x))]
        mean, margin = sum(alone) / len(alone), math.sqrt(torch.finfo(self.dtype).eps)
        scale = max(map(abs, alone))
        if math.isfinite(scale) and not abs(float(together) - mean) <= margin * scale:
            raise ValueError(
                f"loss must be the mean over samples, each by itself: of the first {len(x)} it is"
                f" {float(together):.6g}, and the mean of their losses is {mean:.6g}"
            )


class _Loss(nn.Module):
    """A function as the loss that curvlinops takes: a module with a `reduction`."""

    reduction = "mean"

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return self._loss(f, y)


def _parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("network must have parameters that require grad, but has none")
    kinds = {(p.dtype, p.device) for p in parameters}
    if len(kinds) > 1 or parameters[0].dtype not in (torch.float32, torch.float64):
        words = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            f"network's parameters must all be float32, or all float64, on one device, got {words}"
        )
    return parameters


def _check_samples(x: Tensor, y: Tensor) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TypeError(f"{name} must be a tensor of samples, got {type(value).__name__}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"x and y must hold the same number of samples, at least 1, got {len(x)} and {len(y)}"
        )
