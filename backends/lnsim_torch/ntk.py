"""The empirical neural tangent kernel of any torch network, exact, in a bounded amount of memory.

For a network f(x; θ) ∈ R^C the kernel is

    Θ[n, m, c, c'] = Σ_p ∂f_c(x_n)/∂θ_p · ∂f_c'(x'_m)/∂θ_p,

a sum over parameters, therefore over layers. The samples of a batch do not see each other, so one
backward pass from Σ_n f_c(x_n) gives the gradient of output c of EVERY sample at every layer's
output: C passes give all there is to know, and no pass forms a weight gradient. (In a small network
one pass takes all C together, or calling it would take longer than the pass.) `ntk_layers`
contracts a layer's inputs with these gradients, `ntk_graph` finds them. Memory is bounded in two
ways: the network is swept in stages, whose gradients are dropped once contracted; and when even
that is too much, the samples are cut into tiles.

What has no rule in `ntk_layers` (any other module, and parameters that are tied, reused or used
outside their own module) goes through plain autograd, sample by sample and output by output:
exact, and slow. Which it is is found by counting a parameter's uses in the autograd graph.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from .ntk_graph import Gradients, Graph, sweep
from .ntk_layers import Layer, Rows, layer_for
from .ntk_plan import Irregular, Plan, make_plan

_OUTPUTS = ("full", "mean", "sum")
# Bytes of gradients up to which one backward pass serves all outputs.
_SHARED = 4 * 2**20


def empirical_ntk(
    network: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: str = "full",
    memory: int = 3 * 2**29,
    accumulate: torch.dtype | None = None,
) -> Tensor:
    """The kernel Θ(x, x2) of `network` at its present parameters.

    network: maps (N, …) to (N, C), each sample on its own: batch norm and dropout in eval mode.
    x, x2: samples (N, …) and (N2, …), on the network's device; x2 is x if not given.
    outputs: "full" gives (N, N2, C, C); "sum" its trace over the outputs, Σ_c Θ[·, ·, c, c], as
        (N, N2); "mean" that sum divided by C.
    memory: bytes to work in, beside the network, the samples and the result; 1.5 GiB if not given.
        Less costs time once the samples have to be cut into tiles; more gains nothing until then.
    accumulate: the dtype in which gradients are multiplied and summed, and of the result; the
        network's own if not given. torch.float64 keeps a float32 network's kernel free of
        rounding in the long sums, at more than twice the price.

    Parameters with requires_grad=False are left out of the sum. The kernel is exact up to rounding
    and symmetric in (n, c) ↔ (m, c') if x2 is not given. Reduced-precision matrix arithmetic (TF32,
    bfloat16) is off inside, autocast too.

    Raises ValueError if a layer acts on the batch as a whole or at random (its mode says so, or
    the output of one sample depends on its neighbours), if the network has no parameter that
    requires grad, if its output is not (N, C), or if `memory` does not suffice for one sample.

    Source: Jacot, Gabriel, Hongler 2018; the contraction without weight gradients is in the
    spirit of Novak, Sohl-Dickstein, Schoenholz 2022, "Fast finite width neural tangent kernel".
    """
    _check_arguments(network, x, x2, outputs)
    refuse_random_layers(network)
    with _exact_arithmetic(x.device), torch.enable_grad():
        x = x.detach()
        others = x if x2 is None else x2.detach()
        for looks in (1, 2, 0):
            with suppress(Irregular):
                plan = make_plan(
                    network, x, others, traced=outputs != "full", memory=memory, looks=looks
                )
                kernel = _fill(x, others, plan, accumulate)
                break
    return kernel / plan.outputs if outputs == "mean" else kernel


def refuse_random_layers(network: nn.Module) -> None:
    """Raise ValueError if a layer, in its present mode, mixes a batch's samples or is random."""
    for name, module in network.named_modules():
        label = f"{type(module).__name__} {name!r}"
        if module.training and _is_random(module):
            raise ValueError(f"{label} is in training mode and random; call network.eval() first")
        if isinstance(module, _NormBase) and _normalises_by_batch(module):
            state = "is in training mode" if module.training else "keeps no running statistics"
            raise ValueError(
                f"{label} {state}: it normalises by the batch, so that no output is a function of "
                "its sample alone; call network.eval(), with running statistics, first"
            )


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    rate = getattr(module, "dropout", 0)  # recurrent and attention layers
    return isinstance(module, nn.RReLU) or (isinstance(rate, int | float) and rate > 0)


def _normalises_by_batch(module: _NormBase) -> bool:
    if isinstance(module, _InstanceNorm):  # by the sample; but it may update its statistics
        return module.training and module.track_running_stats
    return module.training or module.running_mean is None


def _check_arguments(network: nn.Module, x: Tensor, x2: Tensor | None, outputs: str) -> None:
    if outputs not in _OUTPUTS:
        raise ValueError(f"outputs must be one of {', '.join(_OUTPUTS)}; got {outputs!r}")
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"{type(network).__name__} has no parameter that requires grad")
    if len(x) == 0 or (x2 is not None and len(x2) == 0):
        raise ValueError("x and x2 must hold at least one sample each")
    if x2 is not None and x2.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"samples of x and x2 must have one shape, got {tuple(x.shape)} and {tuple(x2.shape)}"
        )


@contextmanager
def _exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16 in float32 products, no autocast; settings restored after."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _fill(x: Tensor, others: Tensor, plan: Plan, dtype: torch.dtype | None) -> Tensor:
    """The kernel (N, N2, C, C), or (N, N2) summed over the outputs, tile by tile."""
    outputs = 1 if plan.traced else plan.outputs
    shape = (len(x), len(others), outputs, outputs)
    kernel = torch.empty(shape, dtype=dtype or plan.dtype, device=x.device)
    symmetric = others is x
    for rows in _tiles(len(x), plan.tile):
        for columns in _tiles(len(others), plan.tile):
            if symmetric and columns.start < rows.start:
                continue
            sides = [x[rows]] if symmetric and columns == rows else [x[rows], others[columns]]
            block = _tile(sides, plan, kernel.dtype)
            kernel[rows, columns] = block.permute(1, 3, 0, 2)
            if symmetric and columns != rows:
                kernel[columns, rows] = block.permute(3, 1, 2, 0)
    return kernel[:, :, 0, 0] if plan.traced else kernel


def _tiles(total: int, tile: int) -> list[slice]:
    return [slice(i, min(i + tile, total)) for i in range(0, total, tile)]


def _tile(sides: list[Tensor], plan: Plan, dtype: torch.dtype) -> Tensor:
    """The kernel of two tiles of samples, or of one with itself, as (C, n, C, m)."""
    outputs = 1 if plan.traced else plan.outputs
    shape = (outputs, len(sides[0]), outputs, len(sides[-1]))
    block = torch.zeros(shape, dtype=dtype, device=sides[0].device)
    workspace = plan.workspace * plan.dtype.itemsize // dtype.itemsize
    for chosen in _tiles(plan.outputs, plan.outputs_at_once):
        swept = [_layers(x, plan, range(chosen.start, chosen.stop)) for x in sides]
        for layers in zip(*swept, strict=True):
            while layers[0]:  # popped, so that a layer's gradients go once they are contracted
                pair = [side.pop() for side in layers]
                pair[0].contribute(pair[-1], block, workspace)
    return block


def _layers(x: Tensor, plan: Plan, outputs: range) -> Iterator[list[Layer]]:
    """The layers of the network on samples x with their gradients, stage by stage."""
    if plan.stages:
        graph, stages = plan.run(x)
        shared = min(_SHARED, plan.workspace)
        for (calls, _), passes in zip(stages, sweep(graph, stages, outputs, shared), strict=True):
            yield _collect(graph, plan, calls, passes)
        del graph, stages
    for parameters in plan.plain:
        yield [Rows(_plain_gradients(x, plan, parameters, outputs))]


def _collect(
    graph: Graph, plan: Plan, calls: list[int], passes: Iterable[Gradients]
) -> list[Layer]:
    layers = []
    for i in calls:
        call = graph.calls[i]
        layers.append(layer_for(call.module, call.input, plan.claims[i], plan.traced))
    for gradients in passes:
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.add(gradient)
    return layers


def _plain_gradients(
    x: Tensor, plan: Plan, parameters: tuple[nn.Parameter, ...], outputs: range
) -> Tensor:
    """Gradients by plain autograd, as the rows of a kernel: see `ntk_layers.Rows`."""
    size = sum(p.numel() for p in parameters)
    shape = (len(x), len(outputs)) if plan.traced else (len(outputs), len(x))
    rows = torch.empty(*shape, size, dtype=plan.dtype, device=x.device)
    by_sample = rows if plan.traced else rows.transpose(0, 1)
    for sample, row in zip(x.split(1), by_sample, strict=True):
        output = plan.network(sample)
        for i, c in enumerate(outputs):
            found = torch.autograd.grad(
                output[0, c], parameters, retain_graph=True, materialize_grads=True
            )
            torch.cat([g.to_dense().flatten() for g in found], out=row[i])
    return rows.view(shape[0] if plan.traced else -1, -1 if plan.traced else size)
