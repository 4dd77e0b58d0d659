"""Whether every sample of a batch keeps to its own row, in every layer, and to itself.

The rules of `layers` take row i of what a layer is given, and of the gradient there, for sample
i's. A network that sorts its batch, sends its samples to experts, or shifts them along, and undoes
it at its end, gives right outputs and breaks that; one that centres some of its samples on each
other has no kernel at all. The shapes show neither, nor does one sample's row.

So a recorded batch is run again, in two halves, each in reversed order, and row for row compared
with the record: every sample, in another place and with half of its neighbours. Whatever orders
samples by what they hold gives itself away: of the half that it sees it puts the least first, where
the record has the greater. The halves are those of the Thue-Morse sequence (the parity of the
ones in i), which has no period and no three alike in a row, so that it cuts through groups however
the samples are ordered. Of few samples a group may yet lie in one half; these are halved by every
bit of i, which parts any two.

Where no sample was recorded alone, one is run so, too: networks may do something else with it.

A layer whose rule is trusted need not be computed for this: when it is given the rows that it was
given before, it gives the rows that it gave. That leaves what is between the layers, some
hundredths of the price of a forward pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from lnsim_torch.ntk.graph import Call, Graph, inputs_first, own_parameters, parameter_uses, replay
from lnsim_torch.untouched import Untouched

# Roundings by which two ways of summing the same terms may differ.
_ROUNDINGS = 100
# Samples that are halved in every way.
_FEW = 16


class Irregular(Exception):
    """The layers called, or the places of the samples in them, are not those of the plan."""


def check_rows(
    network: Untouched,
    tapped: Sequence[nn.Module],
    x: Tensor,
    graph: Graph,
    trusted: set[Call],
    alone: Callable[[], Graph],
    layout: torch.memory_format,
    alone_too: bool = False,
) -> None:
    """Compare the record of the samples x, `graph`, with those of its halves.

    tapped: the modules recorded. trusted: the calls whose rules are to be used. alone: see
    `check_outputs`. alone_too: compare with the last sample alone, too.

    Raises Irregular if a trusted call is given the samples in other rows than they have in x,
    ValueError if the output of a sample depends on its neighbours.
    """
    record = graph.output.detach()
    finite = bool(record.isfinite().all())
    for part in _parts(len(x), alone_too):
        rows = part.to(x.device)
        samples = x.index_select(0, rows).contiguous(memory_format=layout)
        computed: list[Call] = []

        def known(
            call: Call,
            given: Tensor,
            rows: Tensor = rows,
            samples: Tensor = samples,
            computed: list[Call] = computed,
        ) -> Tensor | None:
            if call not in trusted:
                return None
            if not _holds(given, samples, call.input, graph.input, rows):
                raise Irregular
            output = call.result()
            if output is None:
                computed.append(call)
                return None
            return output.index_select(0, rows)

        try:
            output = replay(network, samples, graph.taps, tapped, known)
        except RuntimeError as error:  # a network that differentiates inside misses its own layers
            raise Irregular from error
        if output is None:
            raise Irregular
        expected, found = record.index_select(0, rows), output.detach()
        if not (finite and torch.equal(expected, found)):
            check_outputs(expected, found, alone)
        if len(rows) == 1 and _uses_more(output, computed, graph, trusted):
            raise Irregular


def _uses_more(output: Tensor, computed: list[Call], graph: Graph, trusted: set[Call]) -> bool:
    """Whether some parameters have more uses outside of trusted calls than in the record, `graph`.

    output: of some samples, with what trusted calls gave known, but of those `computed`.
    """
    uses = parameter_uses(inputs_first(output.grad_fn, graph.nodes))
    if not uses:
        return False
    uses.subtract(p for call in computed for p in own_parameters(call))
    recorded = parameter_uses(graph.nodes)
    recorded.subtract(p for call in trusted for p in own_parameters(call))
    return any(count > max(recorded[p], 0) for p, count in uses.items())


def _holds(given: Tensor, samples: Tensor, before: Tensor, x: Tensor, rows: Tensor) -> bool:
    """Whether what a layer is given, of some samples, is in `rows` of what it was given, of x."""
    if _same_view(given, samples, before, x):
        return True
    expected = before.index_select(0, rows)
    return torch.equal(given, expected) or close(given.detach(), expected)


def _same_view(a: Tensor, of_a: Tensor, b: Tensor, of_b: Tensor) -> bool:
    """Whether a and b are one and the same view of two batches, sample by sample."""
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
    """The numbers of the samples that are run together; first of the last one, if asked for."""
    alone = [[samples - 1]] if alone_too else []
    return [torch.tensor(part) for part in (*alone, *_halves(samples))]


def _halves(samples: int) -> Iterator[list[int]]:
    """The numbers of the samples, of one half after the other, each from the last to the first."""
    places = range(samples)
    splits = [[i.bit_count() % 2 for i in places]]
    if samples <= _FEW:
        splits = [[i >> bit & 1 for i in places] for bit in range((samples - 1).bit_length())]
    for split in splits:
        for half in (0, 1):
            yield [i for i in reversed(places) if split[i] == half]


def check_outputs(a: Tensor, b: Tensor, alone: Callable[[], Graph]) -> None:
    """Raise ValueError unless the outputs a and b of the same samples are equal up to rounding.

    alone: records one sample; called where that is needed to know the size of what was summed.
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
    """Equal up to rounding, or to what is allowed; never where something is not finite."""
    if a.shape != b.shape:
        return False
    if a.numel() == 0 or not a.is_floating_point():
        return torch.equal(a, b)
    allowed += torch.finfo(a.dtype).eps ** 0.5 * b.abs().max().item()
    return (a - b).abs().max().item() <= allowed < math.inf


def _rounding(alone: Graph) -> float:
    """What one rounding of every parameter, in the coarsest type on the way, makes of the output.

    To first order √(Σ (p ∂f/∂p)²) eps: the size of the terms that are summed, however much of them
    cancels, as in networks that begin at f = 0.
    """
    parameters = [*parameter_uses(alone.nodes)]
    gradients = torch.autograd.grad(alone.output.sum(), parameters, retain_graph=True)
    pairs = zip(parameters, gradients, strict=True)
    terms = [torch.linalg.vector_norm(p.detach() * g.to_dense()).item() for p, g in pairs]
    types = {t.dtype for t in (alone.output, *parameters, *(call.input for call in alone.calls))}
    eps = max(torch.finfo(t).eps for t in types if t.is_floating_point or t.is_complex)
    return eps * math.hypot(*terms)
