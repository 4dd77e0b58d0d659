"""Checks that every sample of a batch stays in its row in every layer and is not mixed with others.

The rules of `layers` assume that row i of a layer's input, and of the gradient at its output,
belongs to sample i. A network that sorts its batch, sends samples to experts or shifts them, and
undoes this at its end, has right outputs but breaks the assumption; a network that centres some of
its samples on each other has no kernel. Neither the shapes nor one sample's row shows this.

So a recorded batch is run again in two halves, each in reversed order, and compared with the record
row by row: every sample is in another row, and has half of its neighbours. A network that sorts its
samples is found: its half is ascending, the reversed rows of the record are descending. The halves
are given by the Thue-Morse sequence (the parity of the ones in i), which has no period and
no three equal entries in a row, so that it splits groups however the samples are ordered. With few
samples a group may still lie in one half; these are halved by every bit of i, which separates any
two.

If no sample was recorded alone, one is also run alone: networks may treat it differently.

A layer whose rule is trusted is not computed again: on rows of its recorded input it gives the same
rows of its recorded output. Only the operations between the layers are computed, at some hundredths
of the price of a forward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from lnsim_torch.ntk.graph import (
    Graph,
    LayerCall,
    inputs_first,
    own_parameters,
    parameter_uses,
    rerun,
)
from lnsim_torch.untouched import Untouched

# Number of roundings by which two ways of summing the same terms may differ.
_ROUNDINGS = 100
# Up to this many samples are halved by every bit of their numbers.
_FEW = 16


class Irregular(Exception):
    """The layer calls, or the rows of the samples in them, are not those of the plan."""


class OutOfRow(Irregular):
    """The gradient at a use of a parameter does not have the samples in rows."""


def check_rows(
    network: Untouched,
    tapped: Sequence[nn.Module],
    x: Tensor,
    graph: Graph,
    trusted: set[LayerCall],
    alone: Callable[[], Graph],
    layout: torch.memory_format,
    alone_too: bool = False,
) -> None:
    """Compare the record `graph` of the samples x with runs of its halves.

    tapped: the recorded modules. trusted: the calls whose rules are to be used. alone: see
    `check_outputs`. alone_too: compare with the last sample alone, too.

    Raises Irregular if the input of a trusted call has the samples in other rows than x, and
    ValueError if the output of a sample depends on its neighbours.
    """
    record = graph.output.detach()
    finite = bool(record.isfinite().all())
    for part in _parts(len(x), alone_too):
        rows = part.to(x.device)
        samples = x.index_select(0, rows).contiguous(memory_format=layout)
        computed: list[LayerCall] = []

        def known_output(
            call: LayerCall,
            layer_input: Tensor,
            rows: Tensor = rows,
            samples: Tensor = samples,
            computed: list[LayerCall] = computed,
        ) -> Tensor | None:
            if call not in trusted:
                return None
            if not _is_rows_of(layer_input, samples, call.input, graph.input, rows):
                raise Irregular
            output = call.intact_output()
            if output is None:
                computed.append(call)
                return None
            return output.index_select(0, rows)

        try:
            output = rerun(network, samples, graph.taps, tapped, known_output)
        except RuntimeError as error:  # a network that differentiates inside lacks a graph
            raise Irregular from error
        if output is None:
            raise Irregular
        expected, actual = record.index_select(0, rows), output.detach()
        if not (finite and torch.equal(expected, actual)):
            check_outputs(expected, actual, alone)
        if len(rows) == 1 and _uses_more(output, computed, graph, trusted):
            raise Irregular


def _uses_more(
    output: Tensor, computed: list[LayerCall], graph: Graph, trusted: set[LayerCall]
) -> bool:
    """Whether a parameter has more uses outside of trusted calls than in the record `graph`.

    output: of a run with known outputs for the trusted calls, except for those `computed`.
    """
    uses = parameter_uses(inputs_first(output.grad_fn, graph.nodes))
    if not uses:
        return False
    uses.subtract(p for call in computed for p in own_parameters(call))
    recorded = parameter_uses(graph.nodes)
    recorded.subtract(p for call in trusted for p in own_parameters(call))
    return any(count > max(recorded[p], 0) for p, count in uses.items())


def _is_rows_of(
    layer_input: Tensor, samples: Tensor, recorded_input: Tensor, x: Tensor, rows: Tensor
) -> bool:
    """Whether a layer's input for `samples`, the `rows` of x, is these rows of its input for x."""
    if _same_view(layer_input, samples, recorded_input, x):
        return True
    expected = recorded_input.index_select(0, rows)
    return torch.equal(layer_input, expected) or close(layer_input.detach(), expected)


def _same_view(a: Tensor, of_a: Tensor, b: Tensor, of_b: Tensor) -> bool:
    """Whether a and b are the same view of the two batches of_a and of_b, sample by sample."""
    return bool(
        a.untyped_storage().data_ptr() == of_a.untyped_storage().data_ptr()
        and b.untyped_storage().data_ptr() == of_b.untyped_storage().data_ptr()
        and a.shape[1:] == b.shape[1:]
        and a.stride() == b.stride()
        and a.stride(0) == of_a.stride(0) == of_b.stride(0)
        and a.storage_offset() == b.storage_offset() == 0
        and of_a._version == of_b._version == 0
    )


@lru_cache(maxsize=16)
def _parts(samples: int, alone_too: bool) -> list[Tensor]:
    """The indices of the samples that are run together; alone_too: first the last one alone."""
    alone = [[samples - 1]] if alone_too else []
    return [torch.tensor(part) for part in (*alone, *_halves(samples))]


def _halves(samples: int) -> Iterator[list[int]]:
    """The indices of the samples of each half, from the last to the first."""
    indices = range(samples)
    splits = [[i.bit_count() % 2 for i in indices]]
    if samples <= _FEW:
        splits = [[i >> bit & 1 for i in indices] for bit in range((samples - 1).bit_length())]
    for split in splits:
        for half in (0, 1):
            yield [i for i in reversed(indices) if split[i] == half]


def check_outputs(a: Tensor, b: Tensor, alone: Callable[[], Graph]) -> None:
    """Raise ValueError unless the outputs a and b of the same samples are equal up to rounding.

    alone: records one sample; called if the size of the summed terms is needed.
    """
    if close(a, b) or close(a, b, _ROUNDINGS * _rounding(alone())):
        return
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("network output is not finite")
    raise ValueError(
        "the output of a sample changes with its neighbours in the batch, or from call to call: "
        "the network mixes samples or is random, and has no kernel"
    )


def close(a: Tensor, b: Tensor, allowed: float = 0.0) -> bool:
    """Whether a and b are equal up to rounding plus `allowed`; False if an entry is not finite."""
    if a.shape != b.shape:
        return False
    if a.numel() == 0 or not a.is_floating_point():
        return torch.equal(a, b)
    allowed += torch.finfo(a.dtype).eps ** 0.5 * b.abs().max().item()
    return (a - b).abs().max().item() <= allowed < math.inf


def _rounding(alone: Graph) -> float:
    """The change of the output when every parameter is rounded once to the coarsest type in use.

    To first order √(Σ (p ∂f/∂p)²) eps: the size of the summed terms, even where they cancel, as in
    networks that begin at f = 0.
    """
    parameters = [*parameter_uses(alone.nodes)]
    gradients = torch.autograd.grad(alone.output.sum(), parameters, retain_graph=True)
    pairs = zip(parameters, gradients, strict=True)
    terms = [torch.linalg.vector_norm(p.detach() * g.to_dense()).item() for p, g in pairs]
    types = {t.dtype for t in (alone.output, *parameters, *(call.input for call in alone.calls))}
    eps = max(torch.finfo(t).eps for t in types if t.is_floating_point or t.is_complex)
    return eps * math.hypot(*terms)
