"""The empirical neural tangent kernel of any torch network, exact, in a bounded amount of memory.

For a network f(x; θ) ∈ R^C the kernel is

    Θ[n, m, c, c'] = Σ_p ∂f_c(x_n)/∂θ_p · ∂f_c'(x'_m)/∂θ_p,

a sum over parameters, therefore over layers. The samples of a batch do not see each other, so one
backward pass from Σ_n f_c(x_n) gives the gradient of output c of EVERY sample at every layer's
output: C passes give all there is to know, and no pass forms a weight gradient. (In a small network
one pass takes all C together, or calling it would take longer than the pass.) `layers`
contracts a layer's inputs with these gradients, `graph` finds them. Memory is bounded in two
ways: the network is swept in stages, whose gradients are dropped once contracted; and when even
that is too much, the samples are cut into tiles.

What has no rule in `layers` (any other module, and parameters that are tied, reused or used
outside their own module) goes through plain autograd, sample by sample and output by output:
exact, and slow. Which it is is found by counting a parameter's uses in the autograd graph.

Gotchas
-------
*Checked, in every call.* Every row of every tile: the batch is run again in halves, and each layer
must be given, and the output must be, the rows of before (`rows`). Every parameter that a tile
uses is in the kernel. What makes a layer's result is torch's own code, hooks and all replacements
outside of it. Torch's, Python's and NumPy's global generators do not move.

*Refused, in one line.* Outputs that depend on a sample's neighbours, beyond rounding: of more than
16 samples, mixing within a group is overlooked only where all groups lie in one and the same half.
Random numbers drawn in a call, though nothing came of them; numbers from a generator of the
network's own are seen in what they change alone. Batch norm in training mode or without running
statistics. Complex outputs, integer `accumulate`, torch.utils.checkpoint with use_reentrant=True,
parameters made in inference mode, a budget too small for one sample, which names one that is
enough.

*Falls back to plain autograd.* Samples that leave their rows on the way (sorted, dispatched,
shifted), though they come back; other calls from batch to batch (loops over samples, experts);
modules whose class, instance or function of torch was replaced; complex parameters, which count as
two real ones; parameters with gradient hooks, which are applied. The price is N·C backward passes
of one sample each, instead of C of N, and every weight gradient. Short of memory, layers with fewer
weights than results are formed at once, then all goes through plain autograd.

*Left as it was.* Parameters, buffers, flags, hooks, generators and `x`, also after an error: what a
call writes to its own state is put back after it, so that spectral norm in training mode has the
kernel of its next call. A network that writes to a state in its third call, and not in its first
two, is not found out.

*In float32* sums over positions may cancel: a Swin v2 was 0.4 % off in the network's own precision,
and 2e-6 with accumulate=torch.float64, as the naive loop is.

*The price of the checks* is that of what lies between the layers: hundredths of a kernel of images,
less than a millisecond where layers are few.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lnsim_torch.ntk.cost import numbers
from lnsim_torch.ntk.graph import Gradients, Graph, sweep
from lnsim_torch.ntk.layers import Layer, Rows, layer_for
from lnsim_torch.ntk.plan import Plan, TooSmall, layouts, make_plan
from lnsim_torch.ntk.rows import Irregular
from lnsim_torch.untouched import Untouched, refused_randomness

_OUTPUTS = ("full", "mean", "sum")
# Precisions of float32 products that are exact; "none" is that of torch where nobody chose.
_EXACT = ("ieee", "none")
# Bytes of gradients up to which one backward pass serves all outputs.
_SHARED = 4 * 2**20


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
    untouched = Untouched(network)
    _check_arguments(untouched, outputs, memory, accumulate)
    refuse_random_layers(network)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _exact_arithmetic(untouched.parameters[0].device),
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
    """The kernel, or its trace over the outputs, by the first plan that holds; their number."""
    for layout in layouts(network, x):
        for looks in (3, 1, 2, 0) if others is x else (1, 2, 0):
            try:
                plan = make_plan(
                    network, x, others, traced=traced, memory=memory, looks=looks, layout=layout
                )
                return _fill(x, others, plan, dtype), plan.outputs
            except TooSmall as error:
                if looks == 0:
                    raise ValueError(str(error)) from None
            except Irregular:
                continue
            except RuntimeError:  # a network that calls .view() may refuse channels last
                if layout is torch.contiguous_format:
                    raise
                break
    raise AssertionError("plain autograd fits any network")


def refuse_random_layers(network: nn.Module) -> None:
    """Raise ValueError if a layer, in its present mode, mixes a batch's samples or is random."""
    for name, module in network.named_modules():
        if module.training and _is_random(module):
            label = f"{type(module).__name__} {name!r}"
            raise ValueError(f"{label} is in training mode and random; call network.eval() first")
        if isinstance(module, _NormBase) and _normalises_by_batch(module):
            label = f"{type(module).__name__} {name!r}"
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
            f"{name} was made inside torch.inference_mode(), where nothing can "
            "be differentiated; make it outside"
        )


def _samples(x: Tensor | Any, like: Tensor) -> Tensor:
    """x as a tensor outside of autograd; arrays and lists in the precision and place of `like`."""
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
            f"samples of x and x2 must have one shape, got {tuple(x.shape)} and "
            f"{tuple(others.shape)}"
        )


@contextmanager
def _exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No TF32, no bfloat16 in float32 products, no autocast; settings restored after."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    places += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    found = [(place, place.fp32_precision) for place in places]
    reduced = [(place, precision) for place, precision in found if precision not in _EXACT]
    try:
        for place, _ in reduced:
            place.fp32_precision = "ieee"
        mixed = torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if mixed else nullcontext():
            yield
    finally:
        for place, precision in reduced:
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

    sides: the samples, and whether they are met for the first time.
    """
    outputs = 1 if plan.traced else plan.outputs
    shape = (outputs, len(sides[0][0]), outputs, len(sides[-1][0]))
    block = torch.zeros(shape, dtype=dtype, device=sides[0][0].device)
    workspace = plan.workspace * plan.dtype.itemsize // dtype.itemsize
    for chosen in _tiles(plan.outputs, plan.outputs_at_once):
        wanted = range(chosen.start, chosen.stop)
        swept = [_layers(x, plan, wanted, new and chosen.start == 0) for x, new in sides]
        for layers in zip(*swept, strict=True):
            while layers[0]:  # popped, so that a layer's gradients go once they are contracted
                pair = [side.pop() for side in layers]
                pair[0].contribute(pair[-1], block, workspace)
    return block


def _layers(x: Tensor, plan: Plan, outputs: range, new: bool) -> Iterator[list[Layer]]:
    """The layers of the network on samples x with their gradients, stage by stage."""
    if plan.stages:
        graph, stages = plan.run(x, check=new)
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
        reduced = plan.workspace if i in plan.reduced else None
        layers.append(layer_for(call.module, call.input, plan.claims[i], plan.traced, reduced))
    for gradients in passes:
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.add(gradient)
    return layers


def _plain_gradients(
    x: Tensor, plan: Plan, parameters: tuple[nn.Parameter, ...], outputs: range
) -> Tensor:
    """Gradients by plain autograd, as the rows of a kernel: see `layers.Rows`."""
    size = sum(map(numbers, parameters))
    shape = (len(x), len(outputs)) if plan.traced else (len(outputs), len(x))
    rows = torch.empty(*shape, size, dtype=plan.dtype, device=x.device)
    by_sample = rows if plan.traced else rows.transpose(0, 1)
    for sample, row in zip(x.split(1), by_sample, strict=True):
        output = plan.network(sample.clone(memory_format=plan.layout))
        for i, c in enumerate(outputs):
            gradients = torch.autograd.grad(
                output[0, c], parameters, retain_graph=True, materialize_grads=True
            )
            torch.cat([_as_numbers(g) for g in gradients], out=row[i])
    return rows.view(shape[0] if plan.traced else -1, -1 if plan.traced else size)


def _as_numbers(gradient: Tensor) -> Tensor:
    """A gradient, flat; of a complex parameter, a + ib, those of a and of b."""
    dense = gradient.to_dense()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).flatten()
