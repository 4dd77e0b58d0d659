"""The oscillation simulation of Lemma 4: W descends while every a_i is a Markov chain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lnsim import streams
from lnsim.base import checks
from lnsim.base.checks import FloatArray, Scalar
from lnsim.dynamics.base import FULL_BATCH, Dynamics


@dataclass(frozen=True, repr=False)
class Oscillation(Dynamics):
    """Lemma 4: W <- W - lr a (dL/dtheta)^T on the clean loss, every a_i its own Markov chain.

    The chain's states are -amplitude, 0 and +amplitude (default lr^(1/4)): from +-amplitude it goes
    to 0, from 0 to either sign with probability 1/2.  It replaces the network's a, and starts at 0
    with probability 1/2, at either sign with 1/4.  While `oscillating` is off both layers follow
    plain gradient descent; the hidden chain goes on, and a takes its state when it is on again (the
    paper specifies neither).  Raises ValueError for lr or amplitude <= 0.
    """

    lr: Scalar
    amplitude: Scalar | None = None
    oscillating: bool = True
    batch_size: ClassVar[int] = FULL_BATCH  # type: ignore[misc]

    ranges: ClassVar = {"lr": {"above": 0.0}, "amplitude": {"above": 0.0}}
    kernel: ClassVar = "oscillation"
    equivariant: ClassVar = False
    has_twin: ClassVar = True

    def __post_init__(self) -> None:
        if self.amplitude is None:
            lr = checks.real("lr", self.lr, above=0.0)
            object.__setattr__(self, "amplitude", np.sqrt(np.sqrt(lr)))
        super().__post_init__()

    def check_replicas(self, replicas: int) -> None:
        """As for all dynamics; the amplitude must be one number, as all replicas start from it."""
        if isinstance(self.amplitude, float):
            super().check_replicas(replicas)
        else:
            checks.per_replica("lr", self.lr, replicas)
            raise ValueError("amplitude must be one number for all replicas: give it with lr")

    def draws(self, samples: int, width: int) -> int:
        """ceil(m / 64): neuron i's sign is bit i mod 64 of word i // 64."""
        return -(-width // 64)

    def start(self, a: FloatArray, seed: int | list[int]) -> FloatArray:
        """Initial states: 0 with probability 1/2, else either sign with 1/4."""
        seeds = {seed} if isinstance(seed, int) else set(seed)
        if len(seeds) > 1:
            raise ValueError(
                "seed must be the same for all replicas: the oscillation draws its start from it"
            )
        rng = streams.generator(seeds.pop(), "chain")
        signs = rng.choice(np.array([-1.0, 0.0, 0.0, 1.0]), size=a.size)
        return np.asarray(self.amplitude) * signs

    def buffers(self, W: FloatArray, a: FloatArray) -> dict[str, FloatArray]:
        """The states of the chains."""
        return {"chain": a.copy()}

    def off(self) -> Dynamics:
        """Plain full-batch gradient descent of both layers."""
        return replace(self, oscillating=False)
