"""Which engine trains by a dynamics, and in which coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lnsim import backend as backends
from lnsim.backend import LinearEngine
from lnsim.dynamics import CustomDynamics, Dynamics, Schedule
from lnsim.models.base import Coordinates, Model
from lnsim.models.problem import Problem
from lnsim.models.reduction import Reduction, dense, reduce
from lnsim.models.two_layer import Network
from lnsim.simulation.custom import CustomEngine, reduction_by_trial

IN_NUMPY = {"custom": CustomEngine}
"""Engines in place of a backend's, by the kernel of a dynamics."""


def is_general(schedule: Schedule, model: Model, problem: Problem) -> bool:
    """Whether a run needs the kernels for any model: the scalar network has some of its own."""
    scalar = model.scalar and problem.y.ndim == 1
    return schedule.general or not scalar or problem.loss != "squared"


def coordinates_of(
    schedule: Schedule, model: Model, problem: Problem, allowed: bool | None
) -> Coordinates[Model]:
    """The smallest coordinates in which `schedule` trains `model`; dense if not `allowed`.

    Raises ValueError where a reduction is asked for and there is none.
    """
    dynamics, _ = schedule.at(0)
    # What weight decay leaves is known (rest_scale) where every step is the same.
    shrinks_evenly = not (dynamics.decays and schedule is not dynamics)
    hidden = all(noise.keeps_hidden for noise in dynamics.noises)
    inputs = all(noise.keeps_inputs for noise in dynamics.noises) and shrinks_evenly
    if allowed is False or dynamics.equivariant is None:
        hidden = inputs = False
    coordinates = model.reduced(problem.X, hidden=hidden, inputs=inputs)
    check_reduced(allowed, coordinates.sides, model, dynamics)
    return coordinates


def check_reduced(
    asked: bool | None, sides: Sequence[str], model: Model, dynamics: Dynamics
) -> None:
    """Raises ValueError where a reduction is asked for and there is none."""
    if asked and not sides:
        raise ValueError(
            f"reduce must be False or None: a {type(model).__name__} of this size under"
            f" {type(dynamics).__name__} with this noise has no reduction"
        )


def check_general(schedule: Schedule, model: Model, problem: Problem) -> None:
    """Refuses what the kernels for any model do not train.  Raises ValueError."""
    dynamics, _ = schedule.at(0)
    if dynamics.memory:
        raise ValueError(
            "memory must be 0 for a rule that does not train the two-layer network with one output"
            f" under the squared loss and plain label noise, got {dynamics!r}"
        )
    if dynamics.kernel not in GENERAL:
        raise ValueError(
            f"{type(dynamics).__name__} trains the two-layer network with one output under the"
            " squared loss, plain label noise and factors that are piecewise constant, got"
            f" {type(model).__name__} with {model.outputs} outputs, loss {problem.loss!r} and noise"
            f" {dynamics.noise!r}"
        )
    if model.outputs < problem.outputs or (
        model.outputs != problem.outputs and problem.loss != "cross-entropy"
    ):
        raise ValueError(
            f"the network must have {problem.outputs} outputs for these labels, got {model.outputs}"
        )
    for noise in dynamics.noises:
        if dynamics.kernel == "custom" and not noise.on_labels:
            raise ValueError(f"a CustomDynamics takes noise on labels alone, got {noise!r}")
        noise.check_fits(problem.loss, problem.classes, type(model).__name__, model.hidden)
    dynamics.parts(dynamics.batch_size or problem.samples)


GENERAL = ("descent", "custom")
"""The kernels of dynamics that train any model."""


def check_trains_models(engine: LinearEngine, backend: str) -> None:
    """Refuses an engine that has the kernels of the scalar network alone.  Raises ValueError."""
    if not callable(getattr(engine, "train", None)):
        raise ValueError(
            f"backend must be one that trains any model, such as numba, got {backend!r}: it trains"
            " the two-layer network with one output under the squared loss alone"
        )


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
    return cast(LinearEngine, in_numpy(backends.load(backend)))


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
