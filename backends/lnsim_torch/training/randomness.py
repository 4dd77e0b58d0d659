"""Random draws inside a network in training: dropout, stochastic depth, noise.

Such a network draws from the global generator of torch, Python or NumPy, which all threads of a
process share.  So a lock lets one network run at a time: the generators are seeded from the
recipe's seed, the step and the purpose of the call, and restored afterwards.  Draws are
addressable, as in batches.py: a resumed run needs no stored state, and networks give the same
results in threads as one after the other.  Other threads must not draw meanwhile.

The lock costs a step some 80 microseconds, and networks in threads run one at a time.  A network
needs no lock if all its layers are known not to draw (QUIET, none of them with a hook).  Each of
several processes draws for its own share of a batch, so a network that draws gives other results
with another number of processes.
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
"""Layers that draw no random numbers."""

STEP, RECORD = range(2)
"""The purposes for which a network is called."""

# A purpose of numpy.random.default_rng([seed, purpose, ...]); batches.py has 8.
_INSIDE = 9

_LOCK = RLock()


class Randomness:
    """Seeds the random draws of `network` in a run of this `seed` on `device`.

    Raises ValueError for a network that holds a generator of NumPy or Python, which cannot be
    reseeded.
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
    def of(self, purpose: int, step: int, share: int | None = None) -> Iterator[None]:
        """Inside, the generators are seeded for this step; afterwards they are as before.

        Every entry gives the same draws: both passes of a SAM step use the same.  `share` numbers
        the parts of a step that draw by themselves, by default one for each process.
        """
        if self._quiet:
            yield
            return
        with _LOCK:
            states = [generator.get_state() for generator in self._shared]
            python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
            self._reseed(purpose, step, group().rank if share is None else share)
            try:
                yield
            finally:
                for generator, state in zip(self._shared, states, strict=True):
                    generator.set_state(state)
                random.setstate(python_state)
                np.random.set_state(numpy_state)  # noqa: NPY002

    def _reseed(self, purpose: int, step: int, share: int) -> None:
        address = [self._seed, _INSIDE, step, purpose, share]
        generators = [*self._shared, *self._own]
        seeds = np.random.SeedSequence(address).generate_state(2 + len(generators)).tolist()
        random.seed(seeds[0])
        np.random.seed(seeds[1])  # noqa: NPY002
        for generator, seed in zip(generators, seeds[2:], strict=True):
            generator.manual_seed(seed)


def _is_quiet(network: nn.Module) -> bool:
    """Whether every layer of the network is known not to draw."""
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in network.parameters()):
        return False
    return all(type(m) in QUIET and is_plain(m) for m in network.modules())


def is_plain(layer: nn.Module) -> bool:
    """Whether this layer is called without hooks, by the `forward` of its class."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks,
        layer._backward_hooks, layer._backward_pre_hooks,
    )  # fmt: skip
    return not (modules._has_any_global_hook() or any(hooks) or "forward" in vars(layer))


def _own_generators(network: nn.Module) -> list[torch.Generator]:
    """The torch generators that the network's layers hold."""
    generators = []
    for name, layer in network.named_modules():
        for key, value in vars(layer).items():
            if isinstance(value, torch.Generator):
                generators.append(value)
            elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
                attribute = f"{name}.{key}".removeprefix(".")
                raise ValueError(
                    f"network must draw from torch's or from global generators: {attribute!r} is a"
                    f" {type(value).__name__}, which cannot be reseeded at each step"
                )
    return generators
