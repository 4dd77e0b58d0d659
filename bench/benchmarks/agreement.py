"""Agreement of the engines: the same draws, every dynamics, every pair.

The hand-derived kernels of numba train the reduced network and the dense one; torch takes every
gradient by autograd and uses none of their algebra.  What is compared is the network at the end.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .cases import DYNAMICS, Case, require

ENGINES: dict[str, dict[str, Any]] = {
    "numba": {"backend": "numba"},
    "numba, dense": {"backend": "numba", "reduce": False},
    "torch": {"backend": "torch"},
    "torch:cuda": {"backend": "torch:cuda"},
}
PAIRS = ["numba / numba, dense", "numba / torch", "numba, dense / torch", "torch / torch:cuda"]


@cache
def trained(engine: str, dynamics: str, steps: int) -> list[NDArray[np.float64]]:
    """[W | a] of 48 neurons after `steps` steps on 20 samples of dimension 24, and their ledger."""
    options = tuple((ENGINES[engine] | {"linearized": False}).items())
    run = Case(dynamics, 48, 24, 20, options).run(steps)
    ledger = [run[name] for name in ("ledger_removed", "ledger_restored") if name in run.arrays]
    return [np.column_stack([run.final.W, run.final.a]), *ledger]


def disagreement(dynamics: str, pair: str, steps: int) -> float:
    """|M - M'| / |M| of the two engines named in `pair`, the largest over what `trained` gives."""
    one, other = (trained(engine, dynamics, steps) for engine in pair.split(" / "))
    return max(
        float(np.linalg.norm(first - second) / np.linalg.norm(first))
        for first, second in zip(one, other, strict=True)
    )


class Agreement:
    """Relative difference of the weights; rounding errors, as they grow with the steps."""

    param_names: ClassVar = ["dynamics", "pair", "steps"]
    params: ClassVar = [list(DYNAMICS), PAIRS, [1, 1_000, 100_000]]

    def setup(self, dynamics: str, pair: str, steps: int) -> None:
        for engine in pair.split(" / "):
            require(engine.split(",")[0])

    def track_disagreement(self, dynamics: str, pair: str, steps: int) -> float:
        return disagreement(dynamics, pair, steps)
