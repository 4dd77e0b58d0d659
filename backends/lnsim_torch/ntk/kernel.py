"""The empirical neural tangent kernel of any torch network, exact, in a bounded amount of memory.

For a network f(x; θ) ∈ R^C the kernel is

    Θ[n, m, c, c'] = Σ_p ∂f_c(x_n)/∂θ_p · ∂f_c'(x'_m)/∂θ_p,

a sum over parameters, therefore over layers. The samples of a batch are independent, so one
backward pass from Σ_n f_c(x_n) gives the gradient of output c of EVERY sample at every layer's
output: C passes are enough, and no pass forms a weight gradient. (In a small network one pass takes
all C outputs, because the call would take longer than the pass.) `graph` finds these gradients,
`layers` contracts them with a layer's inputs. Memory is bounded in two ways: the passes go through
the network in stages, whose gradients are freed once contracted; and if that is still too much,
the samples are divided into tiles.

A parameter outside of such modules that meets the samples in one sum, product or expansion has a
rule too (`graph.Use`): an embedding of positions must not cost a second set of backward passes. Its
rows are checked by the gradients of a weighted sum over samples, one more pass for each tile.

Modules without a rule in `layers`, and parameters that are tied, reused or used outside their own
module, go through plain autograd, sample by sample and output by output: exact, and slow. The uses
of each parameter are counted in the autograd graph.

Gotchas
-------
*Checked in every call.* Every row of every tile: the batch is run again in halves, and each layer's
input, and the output, must be the same rows as before (`rows`). Every parameter that a tile uses is
in the kernel. A layer's result is computed by torch's own code; hooks and replacements act outside
of it. The global generators of torch, Python and NumPy do not move.

*Refused, in one line.* Outputs that depend on a sample's neighbours, beyond rounding: with more
than 16 samples, mixing within groups is overlooked only if all groups lie in the same half. Random
numbers drawn in a call, even if they have no effect; those of a generator that the network holds
are noticed only if they change the output. Batch norm in training mode or without running
statistics. Complex outputs, integer `accumulate`, torch.utils.checkpoint with use_reentrant=True,
parameters made in inference mode, a budget too small for one sample (the message names one that is
enough).

*Falls back to plain autograd.* Samples that leave their rows on the way (sorted, dispatched,
shifted), even if they come back; calls that differ from batch to batch (loops over samples,
experts); modules whose class, instance or torch function was replaced; complex parameters, which
count as two real ones; parameters with gradient hooks, which are applied. The price is N·C backward
passes of one sample each, instead of C of N, and every weight gradient. If memory is short, layers
with fewer weights than results form their weight gradients at once; if that is still too much,
everything goes through plain autograd.

*Unchanged.* Parameters, buffers, flags, hooks, generators and `x`, also after an error: what a call
writes to its own state is restored after it, so that spectral norm in training mode has the kernel
of its next call. A network that first writes to its state in its third call is not noticed.

*In float32* sums over positions may cancel: a Swin v2 was 0.4 % off in the network's own precision,
and 2e-6 with accumulate=torch.float64, as the naive loop is.

*The price of the checks* is that of the operations between the layers: hundredths of the time of a
kernel of images, less than a millisecond for a few layers.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lnsim_torch.arithmetic import exact_arithmetic
from lnsim_torch.ntk.cost import real_numel
from lnsim_torch.ntk.graph import Gradients, Graph, gradients_by_stage
from lnsim_torch.ntk.layers import Broadcast, GradientRows, Layer, layer_for
from lnsim_torch.ntk.plan import Basis, Plan, TooSmall, layouts, make_plan
from lnsim_torch.ntk.rows import Irregular, OutOfRow
from lnsim_torch.untouched import Untouched, refused_randomness

_OUTPUTS = ("full", "mean", "sum")
# If all gradients take at most this many bytes, one backward pass serves all outputs.
_SHARED = 2**25


def empirical_ntk(
    network: nn.Module,
    x: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: str = "full",
    memory: float = 3 * 2**29,
    accumulate: torch.dtype | None = None,
) -> Tensor:
    """The kernel Θ(x, x2) of `network` at its present parameters.

    network: maps (N, …) to (N, C), each sample by itself: batch norm and dropout in eval mode.
    x, x2: samples (N, …) and (N2, …), on the network's device; x2 is x if not given.
    outputs: "full" gives (N, N2, C, C); "sum" its trace over the outputs, Σ_c Θ[·, ·, c, c], as
        (N, N2); "mean" that sum divided by C.
    memory: working memory in bytes, besides the network, the samples and the result; 1.5 GiB if not
        given. Less costs time only if the samples must then be divided into tiles.
    accumulate: the dtype in which gradients are multiplied and summed, and of the result; the
        network's own if not given. torch.float64 keeps a float32 network's kernel free of
        rounding in the long sums, at more than twice the price.

    Parameters with requires_grad=False are left out of the sum. The kernel is exact up to rounding
    and symmetric in (n, c) ↔ (m, c') if x2 is not given. Reduced-precision matrix arithmetic (TF32,
    bfloat16) and autocast are off inside.

    Raises ValueError if a layer mixes samples or is random (its mode says so, or the output of one
    sample depends on its neighbours), if the network has no parameter that requires grad, if its
    output is not (N, C), or if `memory` is too small for one sample.

    Source: Jacot, Gabriel, Hongler 2018; the contraction without weight gradients is in the
    spirit of Novak, Sohl-Dickstein, Schoenholz 2022, "Fast finite width neural tangent kernel".
    """
    untouched = Untouched(network)
    _check_arguments(untouched, outputs, memory, accumulate)
    refuse_random_layers(network)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        exact_arithmetic(untouched.parameters[0].device),
        refused_randomness(None),
    ):
        like = untouched.parameters[0]
        x = _samples(x, like)
        others = x if x2 is None else _samples(x2, like)
        _check_samples(x, others)
        kernel, classes = _kernel(untouched, x, others, outputs != "full", int(memory), accumulate)
    return kernel / classes if outputs == "mean" else kernel


def _kernel(
    network: Untouched,
    x: Tensor,
    others: Tensor,
    traced: bool,
    memory: int,
    dtype: torch.dtype | None,
) -> tuple[Tensor, int]:
    """The kernel (or its trace over the outputs) by the first plan that holds, and C."""
    for layout in layouts(network, x):
        bases = [Basis.ONE, Basis.TWO, Basis.NONE]
        if others is x:
            bases.insert(0, Basis.ALL)
        uses_too = True
        while bases:
            try:
                plan = make_plan(
                    network,
                    x,
                    others,
                    traced=traced,
                    memory=memory,
                    basis=bases[0],
                    layout=layout,
                    uses_too=uses_too,
                )
                return _fill(x, others, plan, dtype), plan.outputs
            except OutOfRow:
                uses_too = False
            except TooSmall as error:
                if bases.pop(0) is Basis.NONE:
                    raise ValueError(str(error)) from None
            except Irregular:
                bases.pop(0)
            except RuntimeError:  # a network that calls .view() may refuse channels last
                if layout is torch.contiguous_format:
                    raise
                break
    raise AssertionError("plain autograd fits any network")


def refuse_random_layers(network: nn.Module) -> None:
    """Raise ValueError if a layer in its present mode mixes samples or is random."""
    for name, module in network.named_modules():
        if module.training and _is_random(module):
            label = f"{type(module).__name__} {name!r}"
            raise ValueError(f"{label} is random in training mode: call network.eval() first")
        if isinstance(module, _NormBase) and _normalises_by_batch(module):
            label = f"{type(module).__name__} {name!r}"
            state = "is in training mode" if module.training else "has no running statistics"
            raise ValueError(
                f"{label} {state}: it normalises by the batch, so that an output depends on other "
                "samples; it needs running statistics and network.eval()"
            )


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    rate = getattr(module, "dropout", 0)  # recurrent and attention layers
    return isinstance(module, nn.RReLU) or (isinstance(rate, int | float) and rate > 0)


def _normalises_by_batch(module: _NormBase) -> bool:
    if isinstance(module, _InstanceNorm):  # by the sample, but it may update its statistics
        return module.training and module.track_running_stats
    return module.training or module.running_mean is None


def _check_arguments(
    network: Untouched, outputs: str, memory: float, accumulate: torch.dtype | None
) -> None:
    if outputs not in _OUTPUTS:
        raise ValueError(f"outputs must be one of {', '.join(_OUTPUTS)}; got {outputs!r}")
    if not (isinstance(memory, int | float) and 1 <= memory < math.inf):
        raise ValueError(f"memory must be a number of bytes, at least 1; got {memory!r}")
    if accumulate is not None and not accumulate.is_floating_point:
        raise ValueError(f"accumulate must be a floating dtype; got {accumulate}")
    name = type(network.network).__name__
    if not network.trained:
        raise ValueError(f"{name} has no parameter that requires grad")
    if any(p.is_inference() for p in network.trained):
        raise ValueError(
            f"{name} was made inside torch.inference_mode(), so that it cannot be differentiated; "
            "make it outside"
        )


def _samples(x: Tensor | Any, like: Tensor) -> Tensor:
    """x as a tensor outside of autograd; arrays and lists get the dtype and device of `like`."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x.detach()
    array = np.asarray(x)
    values = torch.tensor(array.astype(array.dtype.newbyteorder("=")), device=like.device)
    return values.to(like.dtype) if values.is_floating_point() else values


def _check_samples(x: Tensor, others: Tensor) -> None:
    if len(x) == 0 or len(others) == 0:
        raise ValueError("x and x2 must hold at least one sample each")
    if others.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"samples of x and x2 must have the same shape, got {tuple(x.shape)} and "
            f"{tuple(others.shape)}"
        )


def _fill(x: Tensor, others: Tensor, plan: Plan, dtype: torch.dtype | None) -> Tensor:
    """The kernel (N, N2, C, C), or its trace (N, N2), computed tile by tile."""
    outputs = 1 if plan.traced else plan.outputs
    shape = (len(x), len(others), outputs, outputs)
    kernel = torch.empty(shape, dtype=dtype or plan.dtype, device=x.device)
    symmetric = others is x
    for rows in _tiles(len(x), plan.tile):
        for columns in _tiles(len(others), plan.tile):
            if symmetric and columns.start < rows.start:
                continue
            sides = [(x[rows], columns.start == 0), (others[columns], rows.start == 0)]
            if symmetric:
                sides = sides[1:] if columns == rows else [(x[rows], False), sides[1]]
            block = _tile(sides, plan, kernel.dtype)
            kernel[rows, columns] = block.permute(1, 3, 0, 2)
            if symmetric and columns != rows:
                kernel[columns, rows] = block.permute(3, 1, 2, 0)
    return kernel[:, :, 0, 0] if plan.traced else kernel


def _tiles(total: int, tile: int) -> list[slice]:
    return [slice(i, min(i + tile, total)) for i in range(0, total, tile)]


def _tile(sides: list[tuple[Tensor, bool]], plan: Plan, dtype: torch.dtype) -> Tensor:
    """The kernel of two tiles of samples, or of one with itself, as (C, n, C, m).

    sides: the samples of each tile, and whether the tile occurs for the first time.
    """
    outputs = 1 if plan.traced else plan.outputs
    shape = (outputs, len(sides[0][0]), outputs, len(sides[-1][0]))
    block = torch.zeros(shape, dtype=dtype, device=sides[0][0].device)
    workspace = plan.workspace * plan.dtype.itemsize // dtype.itemsize
    for part in _tiles(plan.outputs, plan.outputs_at_once):
        outputs_now = range(part.start, part.stop)
        stages = [_layers(x, plan, outputs_now, new and part.start == 0) for x, new in sides]
        for layers in zip(*stages, strict=True):
            while layers[0]:  # popped, so that a layer's gradients are freed once contracted
                pair = [side.pop() for side in layers]
                pair[0].contribute(pair[-1], block, workspace)
    return block


def _layers(x: Tensor, plan: Plan, outputs: range, new: bool) -> Iterator[list[Layer]]:
    """The layers of the network on samples x with their gradients, stage by stage."""
    if plan.stages:
        graph, stages = plan.run(x, check=new)
        shared = min(_SHARED, plan.workspace)
        weights = plan.weights(x) if new else None
        gradients = gradients_by_stage(graph, stages, outputs, shared, weights)
        for (calls, _), passes in zip(stages, gradients, strict=True):
            yield _collect(graph, plan, calls, passes, len(outputs), weights)
        del graph, stages
    for parameters in plan.plain:
        yield [GradientRows(_plain_gradients(x, plan, parameters, outputs))]


def _collect(
    graph: Graph,
    plan: Plan,
    calls: list[int],
    passes: Iterable[Gradients],
    outputs: int,
    weights: Tensor | None,
) -> list[Layer]:
    layers = []
    for i in calls:
        call = graph.calls[i]
        reduced = plan.workspace if i in plan.reduced else None
        layer = layer_for(call.module, call.input, plan.claims[i], plan.traced, reduced)
        if isinstance(layer, Broadcast):
            layer.samples = len(graph.output)
        layers.append(layer)
    added = 0
    for gradients in passes:
        checking = added == outputs  # the pass with weights comes last
        for layer, gradient in zip(layers, gradients, strict=True):
            if not checking:
                layer.add(gradient)
            elif isinstance(layer, Broadcast):
                assert weights is not None
                if not layer.is_by_sample(gradient, weights):
                    raise OutOfRow
        added += len(gradients[0])
    return layers


def _plain_gradients(
    x: Tensor, plan: Plan, parameters: tuple[nn.Parameter, ...], outputs: range
) -> Tensor:
    """Gradients by plain autograd, in the layout of `layers.GradientRows`."""
    size = sum(map(real_numel, parameters))
    shape = (len(x), len(outputs)) if plan.traced else (len(outputs), len(x))
    rows = torch.empty(*shape, size, dtype=plan.dtype, device=x.device)
    by_sample = rows if plan.traced else rows.transpose(0, 1)
    for sample, row in zip(x.split(1), by_sample, strict=True):
        output = plan.network(sample.clone(memory_format=plan.layout))
        for i, c in enumerate(outputs):
            gradients = torch.autograd.grad(
                output[0, c], parameters, retain_graph=True, materialize_grads=True
            )
            torch.cat([_flat_real(g) for g in gradients], out=row[i])
    return rows.view(shape[0] if plan.traced else -1, -1 if plan.traced else size)


def _flat_real(gradient: Tensor) -> Tensor:
    """The flat gradient; for a complex parameter a + ib, the gradients for a and b."""
    dense = gradient.to_dense()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).flatten()
