"""The memory that a kernel takes, and how the work is divided to fit into a budget."""

import math
from itertools import pairwise

from torch import nn

from lnsim_torch.ntk.graph import Bottleneck, Graph, bottlenecks
from lnsim_torch.ntk.layers import can_be_reduced, layer_for

Claims = tuple[tuple[bool, bool], ...]
"""For each recorded call, whether a rule covers its weight, and whether a rule covers its bias."""


def claimed(claims: Claims) -> list[int]:
    """The calls whose weight or bias a rule covers."""
    return [i for i, claim in enumerate(claims) if any(claim)]


class Cost:
    """Bytes for one sample: `fixed`, plus `per_output` for each output computed at once.

    one: the record of one sample. saved: bytes that autograd saves for it. plain: the parameters
    that no rule covers. reduced: whether weight gradients may be formed at once.
    """

    def __init__(
        self,
        one: Graph,
        claims: Claims,
        saved: int,
        plain: list[nn.Parameter],
        outputs: int,
        reduced: bool,
    ) -> None:
        self.itemsize = one.output.element_size()
        self.plain = plain
        self.results: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.reduced = set()
        for i in claimed(claims):
            call = one.calls[i]
            self.results[i] = call.output_shape.numel() * self.itemsize
            layer = layer_for(call.module, call.input, claims[i])
            self.held[i] = layer.held_nbytes(self.results[i], self.itemsize)
            if reduced and can_be_reduced(call.module):
                reduced_layer = layer_for(call.module, call.input, claims[i], reduced=0)
                reduced_nbytes = reduced_layer.held_nbytes(self.results[i], self.itemsize)
                if reduced_nbytes < self.held[i]:
                    self.held[i] = reduced_nbytes
                    self.reduced.add(i)
        top = Bottleneck(frozenset())
        self.ends = [top, *bottlenecks(one, list(self.held))]
        # Autograd's working copies take a few times the largest activation.
        self.saved = saved + 4 * max(self.results.values(), default=0)
        finest = [self._stage(start, end) for start, end in pairwise(self.ends)]
        rows = max((real_numel(p) * self.itemsize for p in plain), default=0)
        self.per_output = max(rows, *(per_output for per_output, _ in finest))
        self.fixed = self.saved + max(results for _, results in finest)
        per_output, results = self._stage(top, self.ends[-1])
        if self.reduced and self.need(outputs) > self.saved + results + outputs * max(
            rows, per_output
        ):
            self.per_output, self.fixed = max(rows, per_output), self.saved + results

    def need(self, outputs: int) -> int:
        """Bytes for one sample with `outputs` outputs at once."""
        return max(1, self.fixed + outputs * self.per_output)

    def _stage(self, start: Bottleneck, end: Bottleneck) -> tuple[int, int]:
        """Bytes for each output, and for the pass in progress, from one bottleneck to another."""
        inside = end.above - start.above
        held = [self.held[i] for i in inside]
        # One layer's gradients count twice, for the copy in the layout of its product.
        per_output = start.nbytes + end.nbytes + sum(held) + max(held, default=0)
        return per_output, sum(self.results[i] for i in inside)

    def stages(self, outputs: int, room: float) -> tuple[frozenset[int], ...]:
        """The calls above each stage's end: as few stages as fit into `room` bytes per sample.

        The finest stages always fit.
        """
        stages, start, bottom = [], 0, len(self.ends) - 1
        while self.held and start < bottom:
            farthest = start + 1
            for end in range(start + 2, bottom + 1):
                per_output, results = self._stage(self.ends[start], self.ends[end])
                if self.saved + outputs * per_output + results <= room:
                    farthest = end
            stages.append(self.ends[farthest].above)
            start = farthest
        return tuple(stages)


def grouped(
    plain: list[nn.Parameter], nbytes: int, room: float
) -> tuple[tuple[nn.Parameter, ...], ...]:
    """The plain parameters in as few groups as fit into `room` bytes, at nbytes per real number."""
    groups: list[list[nn.Parameter]] = []
    size = math.inf
    for p in plain:
        size += real_numel(p)
        if size * nbytes > room:
            groups.append([])
            size = real_numel(p)
        groups[-1].append(p)
    return tuple(tuple(group) for group in groups)


def real_numel(p: nn.Parameter) -> int:
    """The number of real numbers in a parameter."""
    return p.numel() * (2 if p.is_complex() else 1)


def sizes_of(
    cost: Cost, samples: int, sides: int, outputs: int, traced: bool, memory: int
) -> tuple[int, int, float] | None:
    """Samples per tile, outputs at once, and the bytes available for one sample of one side.

    None if one sample does not fit.
    """
    at_once = outputs
    if traced:  # the outputs are independent, so computing fewer at once costs little
        fitting = (memory / (sides * samples) - cost.fixed) // max(cost.per_output, 1)
        at_once = int(max(1, min(fitting, outputs)))
    need = cost.need(at_once)
    if sides * samples * need <= memory:
        return samples, at_once, memory / (sides * samples)
    tile = memory // (2 * need)
    if tile == 0:
        return None
    return -(-samples // -(-samples // tile)), at_once, memory / (2 * tile)
