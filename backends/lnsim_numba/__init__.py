"""The Numba backend: the linear engine on the CPU, replicas shared among threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lnsim.backend import Gradient, State, kernel_of
from lnsim.base.checks import FloatArray
from lnsim.dynamics import Dynamics
from lnsim.models.problem import Problem
from lnsim.models.twin import Twin
from lnsim_numba.call import Call, Numbers
from lnsim_numba.descent import descend
from lnsim_numba.general import train_model
from lnsim_numba.oscillation import oscillate

KERNELS: dict[str, Callable[[Call, Numbers], None]] = {
    "descent": descend,
    "oscillation": oscillate,
}
"""By the `kernel` of a dynamics, the function that trains the undiverged replicas of a call."""


class NumbaEngine:
    """Implements lnsim.backend.LinearEngine with the kernels of this package."""

    train = staticmethod(train_model)

    def advance(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: NDArray[np.uint64],
        first_step: int,
        rows: FloatArray | None = None,
        twin: Twin | None = None,
    ) -> None:
        """See LinearEngine.advance."""
        train = kernel_of(KERNELS, dynamics, "numba")
        if words.shape[1] > 0:
            call = Call(state, problem, dynamics, words, first_step, rows, twin)
            train(call, np.flatnonzero(state.diverged_at < 0))

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """Full-batch gradient of (1/2n) sum (f(x_i) - y_i)^2: a z^T and W z, z = X^T r / n."""
        theta = np.einsum("spr,sp->sr", state.W, state.a)
        z = (theta @ problem.X.T - problem.y) @ problem.X / problem.samples
        return Gradient(state.a[:, :, None] * z[:, None, :], np.einsum("spr,sr->sp", state.W, z))


def linear_engine() -> NumbaEngine:
    """The engine that lnsim.backend.load finds."""
    return NumbaEngine()
