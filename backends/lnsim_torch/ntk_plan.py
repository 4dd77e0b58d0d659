"""How a kernel will be computed: which rules apply, in which stages, how many samples at a time.

All of it is decided before the work begins, on one sample alone: what the network does with it
shows the uses of every parameter and the bytes per sample. Whether the first axis of every layer is
the samples', and whether samples keep to themselves, shows where that sample is met again among
others: in the work itself, or, should that prove the plan wrong, on two samples together.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .ntk_graph import Bottleneck, Call, Graph, bottlenecks, parameter_uses, record
from .ntk_layers import has_rule, layer_for

# One part in so many of the budget is for the products of one layer.
_WORKSPACE = 8
_NAMES = ("weight", "bias")

Claims = tuple[tuple[bool, bool], ...]


class Irregular(Exception):
    """The layers called, or the places of the samples in them, are not those of the plan."""


@dataclass(frozen=True)
class Plan:
    """Calls are numbered in the order in which `record` meets them."""

    network: nn.Module
    probe: Tensor  # one sample
    alone: Graph  # what the network does with it
    claims: Claims  # per call: its weight goes by the rule, its bias does
    plain: tuple[tuple[nn.Parameter, ...], ...]  # those that go by plain autograd, in groups
    stages: tuple[frozenset[int], ...]  # the calls above the end of each stage
    outputs: int
    outputs_at_once: int
    tile: int  # samples
    workspace: int  # bytes for the products of one layer
    traced: bool  # the kernel is summed over the outputs
    dtype: torch.dtype
    layout: torch.memory_format

    def run(self, x: Tensor) -> tuple[Graph, list[tuple[list[int], Bottleneck]]]:
        """Record the samples x, and find in the graph the calls and the end of every stage.

        Raises Irregular unless the last sample alone gives the rows that it gives here, ValueError
        if its output depends on its neighbours.
        """
        graph = _record(self.network, x, self.layout)
        known = torch.equal(x[-1:], self.probe)
        alone = self.alone if known else _record(self.network, x[-1:], self.layout)
        _check_independent(alone.output[-1], graph.output[-1])
        claims = _claims(alone, graph, len(x) - 1)
        if len(claims) != len(self.claims) or not _contains(claims, self.claims):
            raise Irregular
        ends = {end.above: end for end in bottlenecks(graph, _claimed(self.claims))}
        if not ends.keys() >= set(self.stages):
            raise Irregular
        starts = (frozenset(), *self.stages)
        calls = [sorted(end - start) for start, end in zip(starts, self.stages, strict=False)]
        return graph, list(zip(calls, (ends[above] for above in self.stages), strict=True))


def make_plan(
    network: nn.Module, x: Tensor, others: Tensor, *, traced: bool, memory: int, looks: int
) -> Plan:
    """Plan the kernel of x with others (x itself if symmetric) in `memory` bytes.

    looks: 1 trusts the rules as far as one sample alone shows, 2 as two together show; 0 sends
    every parameter through plain autograd.

    Raises ValueError if the output of a sample depends on its neighbours, or if one sample does
    not fit; Irregular if after one look no tile would show whether the plan holds.
    """
    last_two = (x if len(x) >= len(others) else others)[-2:]
    probe = last_two[-1:]
    one, layout, saved = _first_look(network, probe)
    two = one
    if looks != 1:
        two = _record(network, last_two, layout)
        _check_independent(one.output[-1], two.output[-1])
    none = ((False, False),) * len(two.calls)
    claims = _claims(one, two, len(two.output) - 1) if looks else none
    by_rule = {p for call, claim in zip(two.calls, claims, strict=True) for p in _own(call, claim)}
    uses = parameter_uses(two)
    plain = [p for p in network.parameters() if p.requires_grad and uses[p] and p not in by_rule]
    cost = _Cost(one, claims, saved, plain)
    outputs = one.output.shape[1]
    workspace = memory // _WORKSPACE
    sides = 1 if others is x else 2
    samples = max(len(x), len(others))
    tile, at_once, room = _sizes(cost, samples, sides, outputs, traced, memory - workspace)
    stages = cost.stages(at_once, room)
    if looks == 1 and (tile == 1 or not stages):
        raise Irregular
    return Plan(
        network=network,
        probe=probe,
        alone=one,
        claims=claims,
        plain=cost.groups(at_once, room),
        stages=stages,
        outputs=outputs,
        outputs_at_once=at_once,
        tile=tile,
        workspace=workspace,
        traced=traced,
        dtype=one.output.dtype,
        layout=layout,
    )


def _record(network: nn.Module, x: Tensor, layout: torch.memory_format) -> Graph:
    def tapped(module: nn.Module) -> bool:
        return has_rule(module) and any(p.requires_grad for p in module.parameters(recurse=False))

    return record(network, x.contiguous(memory_format=layout), tapped)


def _first_look(network: nn.Module, x: Tensor) -> tuple[Graph, torch.memory_format, int]:
    """Record one sample; find the memory format to use and the bytes autograd saves for it."""
    weights = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # kept: an address that is free is used again

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage

    layout = torch.contiguous_format
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
    with saved_tensors_hooks(pack, lambda nothing: nothing):
        if convolves and x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu":
            # Up to four times faster convolutions; but a network that calls .view() may refuse it.
            try:
                graph = _record(network, x, torch.channels_last)
                return graph, torch.channels_last, _nbytes(saved)
            except RuntimeError:
                saved.clear()
        graph = _record(network, x, layout)
    return graph, layout, _nbytes(saved)


def _nbytes(saved: dict[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in saved.values())


def _check_independent(alone: Tensor, together: Tensor) -> None:
    if _close(alone, together):
        return
    if not (alone.isfinite().all() and together.isfinite().all()):
        raise ValueError("network output is not finite")
    raise ValueError(
        "the output of a sample changes with its neighbours in the batch, or from call to call: "
        "the network mixes samples or is random, and has no kernel"
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding; never where something is not finite."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    allowed = torch.finfo(a.dtype).eps ** 0.5 * b.abs().max().item()
    return (a - b).abs().max().item() <= allowed < math.inf


def _is_row(alone: Call, call: Call, row: int, samples: int) -> bool:
    """Whether axis 0 of `call` is the samples', and holds at `row` what the sample gives alone.

    The shapes alone would let a (T, N, …) network pass when T = N.
    """
    here, there = alone.input.shape, call.input.shape
    return (
        here[:1] == alone.output_shape[:1] == (1,)
        and there == (samples, *here[1:])
        and call.output_shape == (samples, *alone.output_shape[1:])
        and (alone is call or _close(alone.input[0], call.input[row]))
    )


def _own(call: Call, claim: tuple[bool, bool] = (True, True)) -> list[nn.Parameter]:
    both = (call.module._parameters.get(name) for name in _NAMES)
    return [p for p, claimed in zip(both, claim, strict=True) if claimed and p is not None]


def _claims(alone: Graph, graph: Graph, row: int) -> Claims:
    """Per call: whether weight and bias are used by this call, as its rule says, and no other.

    alone: the same network on the sample at `row` only.
    """
    pairs = list(zip(alone.calls, graph.calls, strict=False))
    alike = len(alone.calls) == len(graph.calls) and all(a.module is b.module for a, b in pairs)
    uses = parameter_uses(graph)
    owners = Counter(p for call in graph.calls for p in _own(call))
    claims = []
    for other, call in pairs:
        regular = alike and _is_row(other, call, row, len(graph.output))
        both = (call.module._parameters.get(name) for name in _NAMES)
        weight, bias = (
            regular and p is not None and p.requires_grad and uses[p] == owners[p] == 1
            for p in both
        )
        claims.append((weight, bias))
    return tuple(claims)


def _contains(claims: Claims, others: Claims) -> bool:
    pairs = zip(chain(*claims), chain(*others), strict=True)
    return all(claimed or not other for claimed, other in pairs)


def _claimed(claims: Claims) -> list[int]:
    return [i for i, claim in enumerate(claims) if any(claim)]


class _Cost:
    """Bytes that one sample takes: `fixed`, and `per_output` for each output taken at once."""

    def __init__(self, one: Graph, claims: Claims, saved: int, plain: list[nn.Parameter]) -> None:
        self.itemsize = one.output.element_size()
        self.plain = plain
        self.results, self.held = {}, {}
        for i in _claimed(claims):
            call = one.calls[i]
            self.results[i] = call.output_shape.numel() * self.itemsize
            layer = layer_for(call.module, call.input, claims[i])
            self.held[i] = layer.held_nbytes(self.results[i], self.itemsize)
        top = Bottleneck(frozenset())
        self.ends = [top, *bottlenecks(one, list(self.held))]
        # Autograd's own working copies: a few times the largest activation.
        self.saved = saved + 4 * max(self.results.values(), default=0)
        finest = [self._stage(start, end) for start, end in pairwise(self.ends)]
        rows = max((p.numel() * self.itemsize for p in plain), default=0)
        self.per_output = max(rows, *(per_output for per_output, _ in finest))
        self.fixed = self.saved + max(results for _, results in finest)

    def _stage(self, start: Bottleneck, end: Bottleneck) -> tuple[int, int]:
        """Bytes for each output, and for the pass in progress, from one bottleneck to another."""
        inside = end.above - start.above
        held = [self.held[i] for i in inside]
        # One layer's gradients once more, in the layout that its product asks for.
        per_output = start.nbytes + end.nbytes + sum(held) + max(held, default=0)
        return per_output, sum(self.results[i] for i in inside)

    def stages(self, outputs: int, room: float) -> tuple[frozenset[int], ...]:
        """As few stages as fit into room bytes per sample; the finest do."""
        chosen, start, bottom = [], 0, len(self.ends) - 1
        while self.held and start < bottom:
            best = start + 1
            for end in range(start + 2, bottom + 1):
                per_output, results = self._stage(self.ends[start], self.ends[end])
                if self.saved + outputs * per_output + results <= room:
                    best = end
            chosen.append(self.ends[best].above)
            start = best
        return tuple(chosen)

    def groups(self, outputs: int, room: float) -> tuple[tuple[nn.Parameter, ...], ...]:
        """The plain parameters, as few groups as fit into room bytes per sample."""
        groups: list[list[nn.Parameter]] = []
        size = math.inf
        for p in self.plain:
            size += p.numel()
            if size * outputs * self.itemsize > room:
                groups.append([])
                size = p.numel()
            groups[-1].append(p)
        return tuple(tuple(group) for group in groups)


def _sizes(
    cost: _Cost, samples: int, sides: int, outputs: int, traced: bool, memory: int
) -> tuple[int, int, float]:
    """Samples a tile, outputs at once, and the bytes left for one sample of one side."""
    at_once = outputs
    if traced:  # its outputs are independent: taking fewer at once costs little
        fitting = (memory / (sides * samples) - cost.fixed) // max(cost.per_output, 1)
        at_once = int(max(1, min(fitting, outputs)))
    need = max(1, cost.fixed + at_once * cost.per_output)
    if sides * samples * need <= memory:
        return samples, at_once, memory / (sides * samples)
    tile = memory // (2 * need)
    if tile == 0:
        total = -(-2 * need * _WORKSPACE // (_WORKSPACE - 1))
        raise ValueError(f"memory is too small for one sample: about {total} bytes are needed")
    return -(-samples // -(-samples // tile)), at_once, memory / (2 * tile)
