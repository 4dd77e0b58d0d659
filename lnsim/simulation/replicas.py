"""All that moves while a run trains: S replicas of the network, their twins, their ledgers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import LinearEngine, State
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics
from lnsim.models.ledger import Ledger
from lnsim.models.problem import Problem
from lnsim.models.reduction import Reduction
from lnsim.models.twin import Twin, twin

WORDS_AT_ONCE = 1 << 18
"""Words held in memory at a time, over all replicas (2 MiB): threads meet seldom."""

LEAST_WORDS = 1 << 11
"""Words of each replica held at a time (16 KiB): enough to pay for entering a kernel."""


class Moving(ABC):
    """The replicas of one run, in reduced coordinates, updated in place."""

    state: Any
    twin: Twin | None
    ledger: Ledger | None

    weights: ClassVar[tuple[str, ...]]
    """The arrays of `state` that are the networks' weights, replicas in front."""

    @abstractmethod
    def train(
        self,
        engine: LinearEngine,
        problem: Problem,
        dynamics: Dynamics,
        words: NDArray[np.uint64],
        first_step: int,
        factors: tuple[FloatArray | None, FloatArray | None],
    ) -> None:
        """Trains by `words` : (S, T, draws) from `first_step` on; factors: Schedule.factors."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, not copied."""

    def __len__(self) -> int:
        return len(self.state.diverged_at)

    @property
    def all_diverged(self) -> bool:
        """Whether no replica is left to train."""
        return bool((self.state.diverged_at >= 0).all())

    @property
    def drawing(self) -> NDArray[np.intp]:
        """The replicas whose words are read, (k,)."""
        return np.arange(len(self))

    def room(self, dynamics: Dynamics, draws: int, step: int) -> int:
        """Number of steps of `draws` words that can be taken at once from `step` on."""
        return max(1, max(WORDS_AT_ONCE // len(self), LEAST_WORDS) // max(1, draws))

    def restore(self, earlier: Mapping[str, NDArray[Any]]) -> None:
        """Takes the values of `earlier`, which must be of a run of the same form."""
        for name, array in self.arrays().items():
            if name not in earlier or earlier[name].shape != array.shape:
                raise ValueError(f"cannot resume: the earlier run has another {name}")
            array[...] = earlier[name]


@dataclass
class Replicas(Moving):
    """Replicas of the two-layer network with one output, their twins and their ledgers."""

    state: State
    twin: Twin | None
    ledger: Ledger | None

    weights = ("W", "a")

    @classmethod
    def start(
        cls,
        reduction: Reduction,
        dynamics: Dynamics,
        count: int,
        *,
        linearized: bool,
        ledger: bool,
    ) -> Replicas:
        """`count` copies of the reduced network.  Raises ValueError for a ledger of other rules."""
        if ledger and not dynamics.keeps_ledger:
            raise ValueError(
                "ledger covers SGD and GD without momentum and weight decay, "
                f"got {type(dynamics).__name__}"
            )
        W = np.repeat(reduction.W[None], count, axis=0)
        a = np.repeat(reduction.a[None], count, axis=0)
        buffers = {"W_velocity": None, "a_velocity": None, **dynamics.buffers(W, a)}
        state = State(W, a, diverged_at=np.full(count, -1, dtype=np.int64), **buffers)
        return cls(
            state,
            twin(reduction.W, reduction.a, reduction.problem.X, count) if linearized else None,
            Ledger(reduction, count) if ledger else None,
        )

    @property
    def drawing(self) -> NDArray[np.intp]:
        """Those that have not diverged; all where something else goes on with the words."""
        if self.twin is not None or self.state.chain is not None:
            return super().drawing
        return np.flatnonzero(self.state.diverged_at < 0)

    def room(self, dynamics: Dynamics, draws: int, step: int) -> int:
        """As many as the words allow, and the ledger before it must be emptied."""
        room = super().room(dynamics, draws, step)
        return room if self.ledger is None else min(room, self.ledger.room(step))

    def train(
        self,
        engine: LinearEngine,
        problem: Problem,
        dynamics: Dynamics,
        words: NDArray[np.uint64],
        first_step: int,
        factors: tuple[FloatArray | None, FloatArray | None],
    ) -> None:
        """See Moving; factors change at no step of a schedule that trains the scalar network."""
        rows = None if self.ledger is None else self.ledger.rows
        engine.advance(self.state, problem, dynamics, words, first_step, rows, self.twin)
        if self.ledger is not None:
            self.ledger.note(first_step + words.shape[1])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, not copied."""
        arrays: dict[str, Any] = dict(vars(self.state))
        if self.twin is not None:
            arrays |= {"twin_theta": self.twin.theta, "twin_velocity": self.twin.velocity}
        if self.ledger is not None:
            arrays |= {"ledger_sums": self.ledger.sums, "ledger_rows": self.ledger.rows}
        return {name: array for name, array in arrays.items() if array is not None}
