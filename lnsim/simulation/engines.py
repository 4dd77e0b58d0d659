"""Which engine trains by a dynamics, and in which coordinates."""

from __future__ import annotations

from typing import cast

from lnsim import backend as backends
from lnsim.backend import LinearEngine
from lnsim.dynamics import CustomDynamics, Dynamics
from lnsim.models.problem import Problem
from lnsim.models.reduction import Reduction, dense, reduce
from lnsim.models.two_layer import Network
from lnsim.simulation.custom import CustomEngine, reduction_by_trial

IN_NUMPY = {"custom": CustomEngine}
"""Engines in place of a backend's, by the kernel of a dynamics."""


def engine_of(dynamics: Dynamics, backend: str, ledger: bool) -> LinearEngine:
    """The engine that trains by `dynamics` where the run is asked for on `backend`.

    Raises ValueError where there is none, or none with a ledger if that is asked for.
    """
    in_numpy = IN_NUMPY.get(dynamics.kernel)
    if in_numpy is None:
        return backends.load(backend)
    if ledger or backend != "numba":
        without = "ledger" if ledger else f"backend {backend!r}"
        raise ValueError(f"a {type(dynamics).__name__} runs in NumPy, without {without}")
    return in_numpy(backends.load(backend))


def reduction_of(
    dynamics: Dynamics, problem: Problem, network: Network, steps: int, allowed: bool
) -> Reduction:
    """The smallest reduction that `dynamics` commutes with; the dense network if not `allowed`.

    `steps` is the length of the run.  Raises TypeError or ValueError for a rule of the user's own
    that does not return what it should.
    """
    if dynamics.equivariant is None:
        rule = cast(CustomDynamics, dynamics)
        return reduction_by_trial(rule, problem, network, steps, allowed)
    return reduce(problem, network, dynamics.equivariant) if allowed else dense(problem, network)
