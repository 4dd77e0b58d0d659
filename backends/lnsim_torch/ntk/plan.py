"""Plans how a kernel is computed: which rules apply, in which stages, how many samples at a time.

The plan is made before the work begins, from the record of one sample: it shows the uses of every
parameter and the bytes per sample. Whether the samples are the first axis of every layer, and are
not mixed, is checked during the work (`rows`); if the plan proves wrong, a new one is made from two
samples together.

If a few samples of a small network easily fit all at once, the plan is made from the record of all:
one sample alone would cost a quarter of that, since all weights are read. Whether they fit is
decided by the bytes that the network allocates, which are counted, and limited, as it runs.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lnsim_torch.ntk.cost import Claims, Cost, claimed, grouped, real_numel, sizes_of
from lnsim_torch.ntk.graph import (
    NAMES,
    Bottleneck,
    Graph,
    LayerCall,
    bottlenecks,
    outputs_of,
    own_parameters,
    parameter_uses,
    record,
)
from lnsim_torch.ntk.layers import has_rule
from lnsim_torch.ntk.rows import Irregular, OutOfRow, check_outputs, check_rows, close
from lnsim_torch.untouched import TooMuch, Untouched

# The products of one layer may take the budget divided by this.
_WORKSPACE = 8
# The multiples of this number have fractional parts far from each other.
_GOLDEN = (1 + 5**0.5) / 2
# Samples are few if they, and the tensors that the network computes from them, each take at most
# the budget divided by this: 12 MiB of 1.5 GiB. Convolutions of images soon exceed it, so that
# little work is lost.
_FEW = 128


class Basis(Enum):
    """The samples whose record shows which rules apply."""

    NONE = "none"  # no rule: every parameter goes through plain autograd
    ONE = "one"  # one sample alone
    TWO = "two"  # two samples together
    ALL = "all"  # all samples together, if they are few and the kernel is symmetric


class TooSmall(Irregular):
    """One sample does not fit into the budget."""


@dataclass(frozen=True)
class Plan:
    """How the kernel is computed. Calls are numbered in the order in which `record` meets them."""

    network: Untouched
    tapped: list[nn.Module]  # the modules that are recorded
    probe: Tensor  # one sample, or all
    probe_graph: Graph  # the record of `probe`
    claims: Claims  # per call: whether a rule covers its weight, and its bias
    plain: tuple[tuple[nn.Parameter, ...], ...]  # parameters for plain autograd, in groups
    stages: tuple[frozenset[int], ...]  # the calls above the end of each stage
    outputs: int
    outputs_at_once: int
    tile: int  # samples
    workspace: int  # bytes for the products of one layer
    traced: bool  # the kernel is summed over the outputs
    reduced: frozenset[int]  # the calls whose weight gradients are formed at once
    dtype: torch.dtype
    layout: torch.memory_format
    uses_too: bool = True  # see `make_plan`
    together: bool = False  # `probe_graph` is of all samples, and is used once, in one stage

    def run(self, x: Tensor, check: bool) -> tuple[Graph, list[tuple[list[int], Bottleneck]]]:
        """Record the samples x, and find the calls and the end of every stage in the graph.

        check: whether to check that every sample stays in its row and is not mixed with others.

        Raises Irregular if a layer or a parameter is not used as planned, and ValueError if the
        output of a sample depends on its neighbours.
        """
        if self.together:
            self._check_rows(x, self.probe_graph, alone_too=True)
            self.probe_graph.free_outputs()
            return self.probe_graph, [(sorted(self.stages[0]), Bottleneck(self.stages[0]))]
        graph = _record(self.network, self.tapped, x, self.layout)
        row = None
        if torch.equal(x[-1:], self.probe):
            row = len(x) - 1
            check_outputs(self.probe_graph.output[0], graph.output[row], self._record_alone)
        uses = parameter_uses(graph.nodes)
        claims = _claims(self.probe_graph, graph, row, uses, self.uses_too)
        if not _contains(claims, self.claims):
            raise Irregular
        if check and len(x) > 1:
            self._check_rows(x, graph, alone_too=False)
        graph.free_outputs()
        pairs = zip(graph.calls, self.claims, strict=True)
        covered = {
            *chain(*self.plain),
            *(p for call, claim in pairs for p in own_parameters(call, claim)),
        }
        if any(uses[p] and p not in covered for p in self.network.trained):
            raise Irregular
        ends = {end.above: end for end in bottlenecks(graph, claimed(self.claims))}
        if not ends.keys() >= set(self.stages):
            raise Irregular
        starts = (frozenset(), *self.stages)
        calls = [sorted(end - start) for start, end in zip(starts, self.stages, strict=False)]
        return graph, list(zip(calls, (ends[above] for above in self.stages), strict=True))

    def weights(self, x: Tensor) -> Tensor | None:
        """Different weights for the samples x, if a use of a parameter must be checked with them.

        See `layers.Broadcast.is_by_sample`.
        """
        by_rule = claimed(self.claims)
        if len(x) == 1 or all(self.probe_graph.calls[i].use is None for i in by_rule):
            return None
        numbers = torch.arange(len(x), dtype=torch.float64, device=x.device)
        return (1 + numbers * _GOLDEN % 1).to(self.dtype)

    def _check_rows(self, x: Tensor, graph: Graph, alone_too: bool) -> None:
        trusted = _trusted(graph, self.claims)
        check_rows(
            self.network, self.tapped, x, graph, trusted, self._record_alone, self.layout, alone_too
        )

    def _record_alone(self) -> Graph:
        return _record(self.network, self.tapped, self.probe[-1:], self.layout)


def make_plan(
    network: Untouched,
    x: Tensor,
    others: Tensor,
    *,
    traced: bool,
    memory: int,
    basis: Basis,
    layout: torch.memory_format,
    uses_too: bool = True,
) -> Plan:
    """Plan the kernel of x with others (x itself if symmetric) in `memory` bytes.

    uses_too: whether parameters outside of modules may have a rule.

    Raises ValueError if the output of a sample depends on its neighbours; Irregular if no tile
    would show whether the plan holds, or if the basis is all samples and they are not few; TooSmall
    if one sample does not fit.
    """
    tapped = [module for module in network.modules if _can_be_tapped(module)]
    if basis is Basis.ALL:
        return _plan_together(network, tapped, x, traced, memory, layout, uses_too)
    last_two = (x if len(x) >= len(others) else others)[-2:]
    probe = last_two[-1:]
    recorder = partial(_record, network, tapped)
    one, saved = _first_look(network, recorder, probe, layout)
    if basis is Basis.NONE:
        # At least two, to compare samples with their neighbours.
        at_once = max(2, memory // (2 * max(saved, 1)))
        uses = _survey(network, recorder, [x] if others is x else [x, others], at_once, layout)
        claims: Claims = ((False, False),) * len(one.calls)
    else:
        graph = one
        if basis is Basis.TWO:
            graph = recorder(last_two, layout)
            check_outputs(one.output[0], graph.output[-1], lambda: recorder(probe, layout))
        uses = parameter_uses(graph.nodes)
        claims = _claims(one, graph, len(graph.output) - 1, uses, uses_too)
        if len(graph.output) > 1:
            trusted = _trusted(graph, claims)
            check_rows(
                network, tapped, last_two, graph, trusted, lambda: recorder(probe, layout), layout
            )
        uses += parameter_uses(one.nodes)
    by_rule = {
        p
        for call, claim in zip(one.calls, claims, strict=True)
        for p in own_parameters(call, claim)
    }
    plain = [p for p in network.trained if uses[p] and p not in by_rule]
    outputs = one.output.shape[1]
    workspace = memory // _WORKSPACE
    sides = 1 if others is x else 2
    samples = max(len(x), len(others))
    for reduced in (False, True):
        cost = Cost(one, claims, saved, plain, 1 if traced else outputs, reduced)
        sizes = sizes_of(cost, samples, sides, outputs, traced, memory - workspace)
        if sizes is not None:
            break
    else:
        least = (1 if sides * samples == 1 else 2) * cost.need(1 if traced else outputs)
        total = -(-least * _WORKSPACE // (_WORKSPACE - 1)) + _WORKSPACE
        raise TooSmall(f"memory is too small for one sample: about {total} bytes are needed")
    tile, at_once, room = sizes
    stages = cost.stages(at_once, room)
    one.free_graph()
    if (basis is Basis.ONE and tile == 1) or (basis is not Basis.NONE and not stages):
        raise Irregular
    return Plan(
        network=network,
        tapped=tapped,
        probe=probe,
        probe_graph=one,
        claims=claims,
        plain=grouped(plain, at_once * cost.itemsize, room),
        stages=stages,
        outputs=outputs,
        outputs_at_once=at_once,
        tile=tile,
        workspace=workspace,
        traced=traced,
        reduced=frozenset(cost.reduced),
        dtype=one.output.dtype,
        layout=layout,
        uses_too=uses_too,
    )


def _plan_together(
    network: Untouched,
    tapped: list[nn.Module],
    x: Tensor,
    traced: bool,
    memory: int,
    layout: torch.memory_format,
    uses_too: bool,
) -> Plan:
    """Plan the kernel of x with itself in one tile and one stage, from the record of that tile.

    Raises Irregular if it may not fit.
    """
    if len(x) == 1 or x.numel() * x.element_size() * _FEW > memory:
        raise Irregular
    try:
        with network.within(memory // _FEW) as allocated:
            graph = _record(network, tapped, x, layout)
    except TooMuch as error:
        raise Irregular from error
    uses = parameter_uses(graph.nodes)
    claims = _claims(graph, graph, None, uses, uses_too)
    by_rule = claimed(claims)
    covered = {p for i in by_rule for p in own_parameters(graph.calls[i], claims[i])}
    plain = [p for p in network.trained if uses[p] and p not in covered]
    outputs, itemsize = graph.output.shape[1], graph.output.element_size()
    workspace = memory // _WORKSPACE
    room = (memory - workspace) / len(x)
    rows = max(map(real_numel, plain), default=0) * itemsize * outputs
    # As in `Cost`; no layer holds more than two numbers for each of its results, and the largest
    # layer's count twice.
    if not by_rule or max(rows, (6 + 4 * outputs) * allocated() / len(x)) > room:
        raise Irregular
    bottom = frozenset(by_rule)
    return Plan(
        network=network,
        tapped=tapped,
        probe=x,
        probe_graph=graph,
        claims=claims,
        plain=grouped(plain, outputs * itemsize, room),
        stages=(bottom,),
        outputs=outputs,
        outputs_at_once=outputs,
        tile=len(x),
        workspace=workspace,
        traced=traced,
        reduced=frozenset(),
        dtype=graph.output.dtype,
        layout=layout,
        uses_too=uses_too,
        together=True,
    )


def layouts(network: Untouched, x: Tensor) -> tuple[torch.memory_format, ...]:
    """The memory formats to try, the fastest first; .view() may fail in channels last."""
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules)
    if convolves and x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu":
        return torch.channels_last, torch.contiguous_format  # up to four times faster convolutions
    return (torch.contiguous_format,)


def _can_be_tapped(module: nn.Module) -> bool:
    return has_rule(module) and any(p.requires_grad for p in module.parameters(recurse=False))


def _record(
    network: Untouched, tapped: list[nn.Module], x: Tensor, layout: torch.memory_format
) -> Graph:
    # A copy, for networks that change their input in place.
    return record(network, x.clone(memory_format=layout), tapped)


GraphRecorder = Callable[[Tensor, torch.memory_format], Graph]


def _first_look(
    network: Untouched, recorder: GraphRecorder, x: Tensor, layout: torch.memory_format
) -> tuple[Graph, int]:
    """Record one sample; count the bytes that autograd saves for it."""
    state = {t.untyped_storage().data_ptr() for t in network.state if t.layout == torch.strided}
    saved: dict[int, torch.UntypedStorage] = {}  # kept, because freed addresses are used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            saved[storage.data_ptr()] = storage
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = recorder(x, layout)
    return graph, sum(storage.nbytes() for storage in saved.values())


def _survey(
    network: Untouched,
    recorder: GraphRecorder,
    sides: list[Tensor],
    at_once: int,
    layout: torch.memory_format,
) -> Counter[Tensor]:
    """The uses of every parameter, added up over runs of every sample alone.

    Raises ValueError if a sample has another output alone than among others.
    """
    uses: Counter[Tensor] = Counter()
    for samples in chain(*(side.split(at_once) for side in sides)):
        together = outputs_of(network, samples.clone(memory_format=layout)).detach()
        for i, sample in enumerate(samples.split(1)):
            alone = recorder(sample, layout)
            check_outputs(alone.output[0], together[i], partial(recorder, sample, layout))
            uses += parameter_uses(alone.nodes)
    return uses


def _trusted(graph: Graph, claims: Claims) -> set[LayerCall]:
    """The calls of modules whose rules are used; uses of parameters are checked by gradients."""
    return {graph.calls[i] for i in claimed(claims) if graph.calls[i].use is None}


def _is_row(alone: LayerCall, call: LayerCall, row: int | None, samples: int) -> bool:
    """Whether axis 0 of `call` is the samples', with the input of the sample alone at `row`.

    By its shapes alone, a (T, N, …) network would pass if T = N. A use of a parameter may have
    several rows for each sample.
    """
    if call.use is not None:
        mine, rest = call.output_shape[0], call.output_shape[1:]
        one, others = alone.output_shape[0], alone.output_shape[1:]
        return rest == others and (mine % samples == 0 if alone is call else mine == samples * one)
    alone_shape = alone.input.shape
    return (
        call.input_intact
        and alone_shape[:1] == alone.output_shape[:1] == (samples if alone is call else 1,)
        and call.input.shape == (samples, *alone_shape[1:])
        and call.output_shape == (samples, *alone.output_shape[1:])
        and (alone is call or row is None or close(alone.input[0], call.input[row]))
    )


def _claims(
    alone: Graph, graph: Graph, row: int | None, uses: Counter[Tensor], uses_too: bool = True
) -> Claims:
    """For each call, whether its weight and its bias are used by this call only, as its rule says.

    alone: the record of one sample, which is the one at `row` if that is not None. If `graph` has
    other calls than `alone`, none is claimed. uses: the uses of the parameters in `graph`.
    uses_too: whether parameters outside of modules may be claimed; if not, both records forget
    them.

    Raises OutOfRow if the records have other calls, and uses of parameters may be the reason: torch
    computes a linear function of one sample and of several in different operations.
    """
    if not uses_too:
        for record_ in (alone, graph):
            record_.calls = [call for call in record_.calls if call.use is None]
    pairs = list(zip(alone.calls, graph.calls, strict=False))
    if len(alone.calls) != len(graph.calls) or not all(a.is_of_same_layer(b) for a, b in pairs):
        if any(call.use for call in (*alone.calls, *graph.calls)):
            raise OutOfRow
        return ((False, False),) * len(alone.calls)
    owners = Counter(p for call in graph.calls for p in own_parameters(call))
    claims = []
    for alone_call, call in pairs:
        regular = _is_row(alone_call, call, row, len(graph.output))
        both = (call.module._parameters.get(name) for name in NAMES)
        weight, bias = (
            regular
            and p is not None
            and p.requires_grad
            and not p._backward_hooks  # they change the gradients of plain autograd
            and uses[p] == owners[p] == 1
            for p in both
        )
        claims.append((weight, bias))
    return tuple(claims)


def _contains(claims: Claims, others: Claims) -> bool:
    pairs = zip(chain(*claims), chain(*others), strict=True)
    return all(claimed or not other for claimed, other in pairs)
