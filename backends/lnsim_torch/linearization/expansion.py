"""A network's value f and its first-order change J v, exact, in forward mode or in backward mode.

J is the Jacobian of plain autograd. Forward mode (`torch.func.jvp`) computes J v quickly, but some
operations lack it, and it ignores instructions to autograd: it differentiates through
`torch.no_grad()`, and skips hooks on gradients. Backward mode needs only plain autograd, twice:
Jᵀu is linear in u, and J is the transpose of that map,

    J v = ∂⟨Jᵀu, v⟩/∂u.

The change is linear in v, so its gradient for v is Jᵀg, one backward pass of the network itself.

`exact_mode` tries forward mode once and selects it if it runs and is exact; otherwise it tries
backward mode. Exact means that ⟨u, J v⟩ = ⟨Jᵀu, v⟩ for random v and u, and that Jᵀu is autograd's.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.overrides import TorchFunctionMode

Tensors = Sequence[Tensor]
# Relative distance up to which two Jacobians in low precision agree.
_COARSE = 0.25


class NetworkCall(Protocol):
    """A call of a network as a function of its parameters and of its input tensors."""

    def at(self, parameters: Tensors) -> AbstractContextManager:
        """Inside, the network has these parameters; differentiate inside, too."""

    def outputs(self, inputs: Tensors) -> list[Tensor]:
        """The tensors that the network returns for these inputs; to be called inside `at`."""


Mode = Callable[[NetworkCall, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
"""(call, θ₀, v, inputs) -> the network's outputs at θ₀, and J v for each output."""


def forward_mode(
    call: NetworkCall, theta_0: Tensors, v: Tensors, inputs: Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    """The `Mode` of forward-mode differentiation. Differentiable in v and the inputs."""

    def network(parameters: list[Tensor]) -> list[Tensor]:
        with call.at(parameters):
            return call.outputs(inputs)

    return jvp(network, ([*theta_0],), ([*v],))  # type: ignore[return-value]


def backward_mode(
    call: NetworkCall, theta_0: Tensors, v: Tensors, inputs: Tensors
) -> tuple[Tensors, Tensors]:
    """The `Mode` that differentiates the gradient. Differentiable in v and the inputs."""
    both = _Backward.apply(call, len(theta_0), *theta_0, *v, *inputs)
    half = len(both) // 2
    return both[:half], both[half:]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: NetworkCall, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.count = call, count
        device = tensors[0].device.type
        ctx.autocast = (
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )
        ctx.save_for_backward(*tensors)
        theta_0, v, inputs = _split([t.detach() for t in tensors], count)
        with torch.enable_grad(), own_saved_tensors():
            values, changes = _twice(call, theta_0, v, inputs, create=False)
        both = tuple(t.detach() for t in (*values, *changes))
        ctx.mark_non_differentiable(*(t for t in both if not _is_real_or_complex(t)))
        return both

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        create = torch.is_grad_enabled()
        theta_0, v, inputs = _split(ctx.saved_tensors, ctx.count)
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            v_gradients = _transposed(
                ctx.call, theta_0, inputs, weights[len(weights) // 2 :], create
            )
            input_gradients: list[Tensor | None] = [None] * len(inputs)
            numbers = [
                i for i in range(len(inputs)) if ctx.needs_input_grad[2 + 2 * len(theta_0) + i]
            ]
            if numbers:
                values, changes = _twice(ctx.call, theta_0, v, inputs, create=True)
                targets = [inputs[i] for i in numbers]
                gradients = _gradients([*values, *changes], targets, weights, create)
                for i, gradient in zip(numbers, gradients, strict=True):
                    input_gradients[i] = gradient
        return (None, None, *(None for _ in theta_0), *v_gradients, *input_gradients)


def _split(tensors: Tensors, count: int) -> tuple[Tensors, Tensors, Tensors]:
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


def _twice(
    call: NetworkCall, theta_0: Tensors, v: Tensors, inputs: Tensors, create: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and J v as the derivative of ⟨Jᵀu, v⟩ in u, taken at u = 0 since it is constant."""
    leaves = [t.detach().requires_grad_() for t in theta_0]
    with call.at(leaves):
        with _Differentiable():
            values = call.outputs(inputs)
        duals = [torch.zeros_like(y, requires_grad=y.requires_grad) for y in values]
        transposed = _gradients(values, leaves, duals, create=True)
        used = [u for u in duals if u.requires_grad]
        changes = iter(_gradients(transposed, used, v, create))
    return values, [next(changes) if u.requires_grad else u for u in duals]


def _transposed(
    call: NetworkCall, theta_0: Tensors, inputs: Tensors, weights: Tensors, create: bool
) -> tuple[Tensor, ...]:
    """Jᵀ of the weights (one tensor for each output), by plain autograd."""
    leaves = [t.detach().requires_grad_() for t in theta_0]
    with call.at(leaves):
        with _Differentiable() if create else nullcontext():
            values = call.outputs(inputs)
        return _gradients(values, leaves, weights, create)


def _gradients(
    outputs: Tensors, inputs: Tensors, weights: Tensors, create: bool
) -> tuple[Tensor, ...]:
    """Gradients of Σ ⟨weight, output⟩, zero for inputs that the outputs do not depend on."""
    used = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not used or not inputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    ys, ws = zip(*used, strict=True)
    return torch.autograd.grad(
        ys, inputs, ws, create_graph=create, allow_unused=True, materialize_grads=True
    )


class _Differentiable(TorchFunctionMode):
    """Rewrites Hardsigmoid, the one common function whose gradient has no derivative in torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.hardsigmoid:
            return func(*args, **(kwargs or {}))

        def differentiable(input: Tensor, inplace: bool = False) -> Tensor:
            x = input.detach()
            slope = torch.ops.aten.hardsigmoid_backward(torch.ones_like(x), x)
            y = F.hardsigmoid(x) + slope * (input - x)
            return input.copy_(y) if inplace else y

        return differentiable(*args, **(kwargs or {}))


def exact_mode(
    call: NetworkCall, theta_0: Tensors, inputs: Tensors, name: str, half_precision: bool
) -> Mode:
    """The first of the two modes that gives plain autograd's J. ValueError if neither does.

    name: the network's name in the message. half_precision: whether an operation of it uses that.
    """
    inputs = [x.detach() for x in inputs]
    reason = ""
    with torch.enable_grad():
        for mode in (forward_mode, backward_mode):
            try:
                if _is_exact(mode, call, theta_0, inputs, half_precision):
                    return mode
                reason = (
                    "a gradient in it cannot be differentiated again (an autograd.Function with "
                    "once_differentiable, or one that computes outside of autograd?)"
                )
            except RuntimeError as error:  # torch raises it for operations without this mode
                reason = str(error).partition("\n")[0].strip()
    raise ValueError(f"{name} cannot be linearised: {reason}")


def _is_exact(
    mode: Mode, call: NetworkCall, theta_0: Tensors, inputs: Tensors, half_precision: bool
) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, dtype=like.dtype, generator=generator)
        return drawn.to(like.device)

    v = [draw(t).requires_grad_() for t in theta_0]
    _, changes = mode(call, theta_0, v, inputs)
    drawn_v, d = [t.detach() for t in v], [t.detach() for t in changes]
    # u is J v plus noise: near J v, ⟨u, J v⟩ does not cancel; and J v itself may be zero.
    u = [t + draw(t) * (_root_mean_square(t) or 1.0) if _is_real_or_complex(t) else t for t in d]
    transposed = _gradients(changes, v, u, create=False)
    del changes
    plain = _transposed(call, theta_0, inputs, u, create=False)
    difference = [a - b for a, b in zip(transposed, plain, strict=True)]
    tolerance = _COARSE if half_precision else _tolerance(d, theta_0)
    # In this form a nan, from a network that overflows, counts as agreement.
    return not (
        abs(_inner(u, d) - _inner(transposed, drawn_v)) > tolerance * _inner(d, d)
        or _inner(difference, difference) > tolerance**2 * _inner(plain, plain)
    )


def _root_mean_square(t: Tensor) -> float:
    return math.sqrt(_inner([t], [t]) / max(t.numel(), 1))


def _inner(a: Tensors, b: Tensors) -> float:
    """Re Σ ā b in double precision."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        if _is_real_or_complex(x):
            wide = torch.complex128 if x.is_complex() else torch.float64
            dense = (t.to_dense() if t.is_sparse else t for t in (x, y))
            left, right = (t.flatten().to(wide) for t in dense)
            total += float(torch.vdot(left, right).real)
    return total


def _tolerance(outputs: Tensors, theta_0: Tensors) -> float:
    """The relative tolerance: half of the digits of the dtype, and coarse in low precision.

    Float32 on a GPU counts as low precision, since TF32 has ten bits.
    """
    device = theta_0[0].device.type
    kinds = [t.dtype for t in (*outputs, *theta_0) if _is_real_or_complex(t)]
    coarse = torch.is_autocast_enabled(device) or (device != "cpu" and torch.float32 in kinds)
    eps = max(torch.finfo(kind).eps for kind in kinds)
    return _COARSE if coarse or eps > 1e-6 else math.sqrt(eps)


def _is_real_or_complex(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def own_saved_tensors() -> AbstractContextManager:
    """Inside, autograd saves its tensors itself, whatever saved-tensor hooks are set outside."""
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved)
