"""The seam between the science and the machines: plain data, two Protocols, and load(name).

The seam is one coarse call: state in, state out.  A backend keeps no state of its own and makes
no randomness; the words of streams.py are handed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lnsim.base import plugins
from lnsim.base.checks import DIVERGED_ABOVE as DIVERGED_ABOVE
from lnsim.base.checks import FloatArray

if TYPE_CHECKING:
    from lnsim.dynamics import Dynamics
    from lnsim.dynamics.draws import Draws
    from lnsim.models.base import Model
    from lnsim.models.problem import Problem
    from lnsim.models.twin import Twin


K = TypeVar("K")


@dataclass
class State:
    """S replicas of the (reduced) network, updated in place.

    W : (S, p, r), a : (S, p) float64; their momentum buffers `W_velocity`, `a_velocity` have the
    same shapes, or are None for dynamics without momentum.  `diverged_at` : (S,) int64 is the
    step at which a replica's squared residual was not below DIVERGED_ABOVE, else -1; such a
    replica is left as it was at that step.  `chain` : (S, m) holds the states of the second layer's
    chains in the oscillation simulation, else None.
    """

    W: FloatArray
    a: FloatArray
    W_velocity: FloatArray | None
    a_velocity: FloatArray | None
    diverged_at: NDArray[np.int64]
    chain: FloatArray | None = None


@dataclass
class ModelState:
    """S replicas of a model of lnsim.models, updated in place by `LinearEngine.train`.

    theta : (S, P) its parameters, velocity : (S, P) their momentum; last : (S, P) the last noise on
    parameters, (S, 0) where there is none; order : (S, n) the epoch's order without replacement,
    else (S, 0).  `diverged_at` : (S,) as in State, of the squared residual, or of the squared
    prediction for another loss.
    """

    theta: FloatArray
    velocity: FloatArray
    last: FloatArray
    order: NDArray[np.int64]
    diverged_at: NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Steps of a model for `LinearEngine.train`, `steps` of them from `first_step` on.

    `model` says which functions of theta are trained and their sizes; its own weights are not read.
    X : (n, r) are the training inputs, `loss` one of models.problem.LOSSES, `draws` those of these
    steps.  What a step does is in dynamics/.
    """

    model: Model
    X: FloatArray
    loss: str
    dynamics: Dynamics
    draws: Draws
    steps: int
    first_step: int


@dataclass(frozen=True)
class Gradient:
    """Full-batch gradient of (1/2n) sum (f(x_i) - y_i)^2.  W : (S, p, r), a : (S, p)."""

    W: FloatArray
    a: FloatArray


class LinearEngine(Protocol):
    """Advances the two-layer linear network, by `advance`, and any model, by `train`."""

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
        """Takes `state` through T steps, the first being `first_step`, and `twin` if there is one.

        `problem` has inputs of r columns; words : (S, T, draws) uint64.  Where `rows` is given,
        (S, 2, L, p), step t of SGD or GD that moves a by -v and W by -a g^T puts v into rows[:, 0]
        and |g| a into rows[:, 1], at index t mod L : what the norm ledger adds up.  A twin that
        diverges stops there.
        """

    def train(self, state: ModelState, segment: Segment) -> None:
        """Takes `state` through the steps of `segment`.

        Raises ValueError for a model or a dynamics that the engine does not have.
        """

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """The full-batch gradient at `state`, for equivalence tests."""


class NetworkEngine(Protocol):
    """Trains networks on images.  What it hands out (networks, placed images) it takes back.

    Recipe and Execution say what determines a run's numbers and how they are computed, Result has
    `records`, `state` and `status`, Tangent is a network's kernel: see training/train.py and
    network_engine.py of lnsim_torch.
    """

    Recipe: Any
    Execution: Any
    Result: Any
    Tangent: Any
    wide_resnet: Callable[..., Any]
    resnet18: Callable[..., Any]
    place: Callable[..., Any]
    train: Callable[..., Any]
    first_layer_norm: Callable[[Any], float]
    curvature: Callable[..., dict[str, float]]
    """Sharpness and trace of the Hessian: of a network, samples, a loss and a seed."""
    pruned_accuracy: Callable[..., FloatArray]
    default_device: Callable[[], str]
    set_num_threads: Callable[[int], None]
    """How many threads of the CPU to take for what the calling thread asks from then on."""
    held: Callable[[int], AbstractContextManager[None]]
    """The same, for what it asks inside."""
    joined: Callable[[str], AbstractContextManager[str]]
    """Brings together the processes of one run; gives this one's device (distributed.py)."""
    group: Callable[[], Any]
    """The processes of this run: `rank` of this one, `size`."""


def kernel_of(kernels: Mapping[str, K], asking: Dynamics | Model, backend: str) -> K:
    """The entry for a dynamics or a model in the table of a backend.

    Raises ValueError where it has none.
    """
    if asking.kernel not in kernels:
        raise ValueError(
            f"backend {backend!r} has no kernel {asking.kernel!r} for "
            f"{type(asking).__name__}: it has {', '.join(sorted(kernels))}"
        )
    return kernels[asking.kernel]


def load(name: str) -> LinearEngine:
    """The linear engine of backend `name`: linear_engine() of the package lnsim_<name>.

    What follows a colon is handed to it: "torch:cuda:1:float32" asks lnsim_torch for
    linear_engine("cuda", "1", "float32").  Anyone can add a backend by installing such a package.
    Raises ValueError where there is none, or where it needs a package that is missing.
    """
    name, *options = name.split(":")
    module = plugins.backend(name)
    if not hasattr(module, "linear_engine"):
        raise ValueError(f"backend {name!r}: package lnsim_{name} has no linear_engine()")
    try:
        engine: LinearEngine = module.linear_engine(*options)
    except TypeError as error:
        hint = "; --backend torch has devices" if name == "numba" else ""
        raise ValueError(
            f"backend {name!r} takes no options {':'.join(options)!r}{hint}"
        ) from error
    return engine


def load_networks(name: str) -> NetworkEngine:
    """The network engine of backend `name`: the module network_engine of lnsim_<name>.

    Raises ValueError where there is none, or where it needs a package that is missing.
    """
    engine: NetworkEngine = plugins.backend(
        name, "network_engine", lacks="networks to train: use 'torch'"
    )
    return engine
