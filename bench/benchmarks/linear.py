"""Time and memory of the two-layer linear network over everything that its cost may depend on.

Before benchmarks of memory `setup_cache`, which asv runs in a process of its own, has all compiled:
their peaks hold no compiler.
"""

from __future__ import annotations

import statistics
import time
import timeit
from functools import partial
from itertools import product
from typing import Any, ClassVar

import numpy as np

import lnsim
from lnsim.backend import State, load
from lnsim.run.experiment import load as load_experiment
from lnsim.streams import WordStream

from .cases import BACKENDS, DYNAMICS, ROUNDS, Case, require

REDUCED, DENSE = "reduced", "dense"


class Width:
    """The reduced cost of a step is flat in the width; the dense one is proportional to it."""

    param_names: ClassVar = ["width", "state"]
    params: ClassVar[list[list[Any]]] = [[100, 1_000, 10_000, 100_000], [REDUCED, DENSE]]

    def setup_cache(self) -> None:
        for width, state in product(*self.params):
            self.setup(width, state)

    def setup(self, width: int, state: str) -> None:
        self.case = Case(width=width, options=(("reduce", state == REDUCED),))
        # Enough that the steps outweigh the noise of what is done once, which grows with the width.
        self.steps = 200 * max(width, 1_000) if state == REDUCED else 5_000_000 // width
        self.case.run(1)

    def time_simulate(self, width: int, state: str) -> None:
        self.case.run(self.steps)

    def peakmem_simulate(self, width: int, state: str) -> None:
        self.case.run(self.steps)

    def track_ns_a_step(self, width: int, state: str) -> float:
        return self.case.ns_a_step(self.steps)

    track_ns_a_step.unit = "ns"  # type: ignore[attr-defined]


class Dimension:
    """How the cost of a step grows with the input rank r: the kernels alone, on a reduced state."""

    param_names: ClassVar = ["dim", "dynamics"]
    params: ClassVar = [[2, 20, 64, 100, 200, 500, 1_000], ["sgd", "mini-batch", "sam", "gd"]]

    def setup(self, dim: int, dynamics: str) -> None:
        problem = lnsim.gaussian_regression(max(200, 2 * dim), dim, test_samples=1)
        network = lnsim.ntk_init(dim + 1, dim)
        steps = DYNAMICS[dynamics](0.1 / (2 * dim + 1))
        self.steps = max(20, min(100_000, 20_000_000 // dim**2))
        draws = steps.draws(problem.samples, network.width)
        words = WordStream(0, 1).take(self.steps * draws).reshape(1, self.steps, draws)
        state = State(network.W[None].copy(), network.a[None].copy(), None, None, np.array([-1]))
        self.advance = partial(load("numba").advance, state, problem, steps, words, 0)
        self.advance()

    def track_ns_a_step(self, dim: int, dynamics: str) -> float:
        seconds = statistics.median(timeit.repeat(self.advance, number=1, repeat=ROUNDS))
        return seconds / self.steps * 1e9

    track_ns_a_step.unit = "ns"  # type: ignore[attr-defined]


class Samples:
    """The number of samples: of no account but where it bounds the rank, or exceeds the caches."""

    param_names: ClassVar = ["samples"]
    params: ClassVar = [[10, 200, 10_000, 1_000_000]]

    def setup(self, samples: int) -> None:
        self.case = Case(samples=samples)

    def track_ns_a_step(self, samples: int) -> float:
        return self.case.ns_a_step(200_000)

    track_ns_a_step.unit = "ns"  # type: ignore[attr-defined]


class Dynamics:
    """Every dynamics on every backend and device: nanoseconds a step of one replica."""

    param_names: ClassVar = ["dynamics", "replicas", "backend"]
    params: ClassVar = [list(DYNAMICS), [1, 32], BACKENDS]

    def setup_cache(self) -> None:
        for dynamics in DYNAMICS:
            Case(dynamics).run(1)

    def setup(self, dynamics: str, replicas: int, backend: str) -> None:
        require(backend)
        self.case = Case(dynamics, options=(("replicas", replicas), ("backend", backend)))
        numba = 100_000 if replicas == 1 else 20_000
        self.steps = {"numba": numba, "torch": 200}.get(backend, 2_000)

    def track_ns_a_step(self, dynamics: str, replicas: int, backend: str) -> float:
        return self.case.ns_a_step(self.steps) / replicas

    track_ns_a_step.unit = "ns"  # type: ignore[attr-defined]

    def peakmem_simulate(self, dynamics: str, replicas: int, backend: str) -> None:
        self.case.run(self.steps)


class Measures:
    """What the default measures add to a run of 1,000 records, one in 2,000 steps."""

    param_names: ClassVar = ["name"]
    params: ClassVar = [["label-noise", "two-layer", "deep", "diagonal", "relu"]]
    timeout = 600

    def setup(self, name: str) -> None:
        self.experiment = load_experiment(name)
        self.run("none")

    def run(self, measures: str) -> float:
        """Seconds of a run of 200 of the records."""
        config = self.experiment.Config(measures=measures, steps=400_000, record_every=2_000)
        start = time.perf_counter()
        self.experiment.run(config)
        return time.perf_counter() - start

    def track_seconds_over_those_without(self, name: str) -> float:
        return statistics.median(self.run("") / self.run("none") for _ in range(ROUNDS))

    track_seconds_over_those_without.unit = "times"  # type: ignore[attr-defined]
