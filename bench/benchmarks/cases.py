"""What the benchmarks run: dynamics by name, at a step size that is stable at every size.

One step of a sample moves f(x) by -lr r (|a|^2 |x|^2 + |W x|^2), about lr (d + m) r at the
initialisation, and its label noise multiplies |M|^2 by about 1 + lr^2 sigma^2 d at the most.  With
lr = 0.1 / (d + m), a tenth of the figures' at d = 20, m = 1000, both stay far below 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import lnsim

NOISE = lnsim.LabelNoise(4.0)
DYNAMICS: dict[str, Callable[[float], Any]] = {
    "sgd": lambda lr: lnsim.SGD(lr, NOISE),
    "mini-batch": lambda lr: lnsim.SGD(lr, NOISE, batch_size=32),
    "sam": lambda lr: lnsim.SAM(lr, 0.1),
    "gd": lambda lr: lnsim.GD(lr),
    "oscillation": lambda lr: lnsim.Oscillation(lr),
    "ledger": lambda lr: lnsim.SGD(lr, NOISE),
}
BACKENDS = ["numba", "torch", "torch:cuda"]
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One network of `width` on `samples` of `dim`; `options` go to lnsim.simulate."""

    dynamics: str = "sgd"
    width: int = 1000
    dim: int = 20
    samples: int = 200
    options: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def data(self) -> tuple[lnsim.Problem, lnsim.Network]:
        """The problem, and the network at its start."""
        problem = lnsim.gaussian_regression(self.samples, self.dim, test_samples=1)
        return problem, lnsim.ntk_init(self.width, self.dim)

    def run(self, steps: int) -> lnsim.Trajectory:
        """`steps` steps, recorded at both ends.  Raises RuntimeError if they diverge."""
        trajectory = lnsim.simulate(
            *self.data,
            DYNAMICS[self.dynamics](0.1 / (self.dim + self.width)),
            steps=steps,
            record_every=max(1, steps),
            ledger=self.dynamics == "ledger",
            **dict(self.options),
        )
        if trajectory.status.code != "OK":
            raise RuntimeError(f"{self}: {trajectory.status}")
        return trajectory

    def ns_a_step(self, steps: int) -> float:
        """Nanoseconds a step, what is done once a run taken off: the median over ROUNDS runs.

        It is the difference between `steps` steps and a tenth of them; all is compiled before.
        """
        few = max(1, steps // 10)
        self.run(few)
        return statistics.median(
            (self._seconds(steps) - self._seconds(few)) / (steps - few) * 1e9 for _ in range(ROUNDS)
        )

    def _seconds(self, steps: int) -> float:
        start = time.perf_counter()
        self.run(steps)
        return time.perf_counter() - start


def require(backend: str) -> None:
    """Leaves a benchmark out, for its set-up to call, where `backend`, as "torch:cuda", is missing.

    Raises asv's SkipNotImplemented, which asv shows as n/a.
    """
    from asv_runner.benchmarks.mark import SkipNotImplemented

    name, *device = backend.split(":")
    if name == "torch" and find_spec("torch") is None:
        raise SkipNotImplemented("torch is not installed")
    if device:
        import torch

        if not torch.cuda.is_available():
            raise SkipNotImplemented("there is no CUDA device here")
