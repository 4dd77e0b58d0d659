"""Randomness inside a network in training: dropout, stochastic depth, noise, whoever draws it.

A network that draws takes its numbers from torch's, Python's or NumPy's global generator, and every
thread of a process shares these.  So its calls have turns: one network at a time in a process, from
a seed that is made of the plan's seed, the step and what the call is for, after which the
generators are as they were.  A draw has an address, as in batches.py: a resumed run needs no stored
state, and networks in threads give what they give in a row.  Threads that do not train must not
draw meanwhile.

Turns cost the threads their gain, and a step some 80 microseconds.  A network that consists of
layers known not to draw (QUIET, none of them with a hook) needs none.  Of several processes each
draws for its own share of a batch: with such a network, their number is part of the run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as modules

from lnsim_torch.distributed import group
from lnsim_torch.networks import Erf, Scale, Sum

QUIET = frozenset({
    Erf, Scale, Sum,
    nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Conv1d, nn.Conv2d,
    nn.Flatten, nn.GELU, nn.GroupNorm, nn.Identity, nn.LayerNorm, nn.LeakyReLU, nn.Linear,
    nn.MaxPool2d, nn.ReLU, nn.Sequential, nn.SiLU, nn.Sigmoid, nn.Tanh,
})  # fmt: skip
"""Layers that draw nothing."""

STEP, RECORD = range(2)
"""What a network is called for."""

# A purpose of numpy.random.default_rng([seed, purpose, ...]); batches.py has 8.
_INSIDE = 9

_TURN = RLock()


class Randomness:
    """What `network` draws in a run of this `seed` on `device`.

    Raises ValueError for a network that holds a generator of NumPy or Python, which cannot be
    seeded anew.
    """

    def __init__(self, network: nn.Module, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._quiet = _is_quiet(network)
        self._own = _own_generators(network)
        self._shared = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            self._shared.append(torch.cuda.default_generators[device.index or 0])

    @contextmanager
    def of(self, purpose: int, step: int) -> Iterator[None]:
        """Inside, the network draws what is drawn at this step; afterwards nothing is known of it.

        The same for every entry: both passes of a step of SAM have the same draws.
        """
        if self._quiet:
            yield
            return
        with _TURN:
            before = [generator.get_state() for generator in self._shared]
            of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
            self._start(purpose, step)
            try:
                yield
            finally:
                for generator, state in zip(self._shared, before, strict=True):
                    generator.set_state(state)
                random.setstate(of_python)
                np.random.set_state(of_numpy)  # noqa: NPY002

    def _start(self, purpose: int, step: int) -> None:
        address = [self._seed, _INSIDE, step, purpose, group().rank]
        generators = [*self._shared, *self._own]
        seeds = np.random.SeedSequence(address).generate_state(2 + len(generators)).tolist()
        random.seed(seeds[0])
        np.random.seed(seeds[1])  # noqa: NPY002
        for generator, seed in zip(generators, seeds[2:], strict=True):
            generator.manual_seed(seed)


def _is_quiet(network: nn.Module) -> bool:
    """Whether all of the network is known not to draw."""
    if modules._has_any_global_hook():
        return False
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in network.parameters()):
        return False
    return all(type(m) in QUIET and not _is_changed(m) for m in network.modules())


def _is_changed(layer: nn.Module) -> bool:
    """Whether this layer has hooks, or a `forward` that is not its class's."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks,
        layer._backward_hooks, layer._backward_pre_hooks,
    )  # fmt: skip
    return any(hooks) or "forward" in vars(layer)


def _own_generators(network: nn.Module) -> list[torch.Generator]:
    """The generators of torch that the network's layers hold."""
    found = []
    for name, layer in network.named_modules():
        for key, value in vars(layer).items():
            if isinstance(value, torch.Generator):
                found.append(value)
            elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
                place = f"{name}.{key}".removeprefix(".")
                raise ValueError(
                    f"network must draw from torch's or from global generators: {place!r} is a"
                    f" {type(value).__name__}, which cannot be seeded anew at a step"
                )
    return found
