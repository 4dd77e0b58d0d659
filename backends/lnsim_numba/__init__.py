"""The Numba backend: the linear engine on the CPU, replicas shared among threads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim.backend import Gradient, State
from lnsim.base.checks import FloatArray, per_replica
from lnsim.base.threads import in_blocks
from lnsim.dynamics import Dynamics, Oscillation
from lnsim.models.problem import Problem
from lnsim.models.twin import Twin
from lnsim_numba import batches, kernels, oscillation
from lnsim_numba import twin as twins_of_batches
from lnsim_numba.common import MOMENTUM

Words = NDArray[np.uint64]
Numbers = NDArray[np.intp]

_NO_FEATURES = (np.empty((0, 0)), np.empty((0, 0)), np.empty(0))


@dataclass(frozen=True)
class _Call:
    """What `advance` was asked for, as the kernels take it."""

    state: State
    problem: Problem
    dynamics: Dynamics
    words: Words
    first_step: int
    rows: FloatArray | None
    twin: Twin | None

    @cached_property
    def rates(self) -> FloatArray:
        """lr, sigma, rho, momentum and weight decay of every replica, shape (S, 5)."""
        dynamics = self.dynamics
        sigma = 0.0 if dynamics.noise is None else dynamics.noise.sigma
        rates = np.empty((len(self.words), 5))
        for i, value in enumerate(
            (dynamics.lr, sigma, dynamics.rho, dynamics.momentum, dynamics.weight_decay)
        ):
            rates[:, i] = value
        return rates

    @cached_property
    def noise(self) -> FloatArray | None:
        """Unit label noise, (S, T, draws); None: Rademacher signs are read off the words."""
        noise = self.dynamics.noise
        if noise is None or noise.law == "rademacher":
            return None
        return streams.unit_noise(self.words, noise.law)

    @property
    def data(self) -> tuple[Any, ...]:
        """The problem (common.py)."""
        problem = self.problem
        return problem.X, problem.y, problem.gram, problem.moment, problem.square


class NumbaEngine:
    """Implements lnsim.backend.LinearEngine with the kernels of this package.

    A replica's numbers do not depend on which others are advanced with it: which kernel takes it
    is decided for each of them.
    """

    def advance(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
        rows: FloatArray | None = None,
        twin: Twin | None = None,
    ) -> None:
        """See LinearEngine.advance."""
        call = _Call(state, problem, dynamics, words, first_step, rows, twin)
        going = np.flatnonzero(state.diverged_at < 0)
        if words.shape[1] == 0:
            return
        if isinstance(dynamics, Oscillation):
            _oscillate(call, dynamics, going)
            _twin(call, going)
            return
        plain = (dynamics.batch_size == 1) & ~call.rates[going, MOMENTUM:].any(axis=1)
        _one_sample(call, going[plain])
        _batches(call, going[~plain])
        _twin(call, going[~plain])

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """Full-batch gradient of (1/2n) sum (f(x_i) - y_i)^2: a z^T and W z, z = X^T r / n."""
        theta = np.einsum("spr,sp->sr", state.W, state.a)
        z = (theta @ problem.X.T - problem.y) @ problem.X / problem.samples
        return Gradient(state.a[:, :, None] * z[:, None, :], np.einsum("spr,sr->sp", state.W, z))


def _one_sample(call: _Call, going: Numbers) -> None:
    state, twin, rates, noise = call.state, call.twin, call.rates, call.noise
    tile = kernels.tile_of(state.W.shape[1])
    theta, features = None, _NO_FEATURES
    if twin is not None:
        theta, features = twin.theta, (twin.inputs, twin.moves, twin.norms)
    in_blocks(
        lambda block: kernels.one_sample_replicas(
            tile, state.W, state.a, call.data, call.words, noise, rates, call.rows, theta, features,
            call.first_step, going[block], state.diverged_at,
        ),
        going.size,
    )  # fmt: skip


def _batches(call: _Call, going: Numbers) -> None:
    if going.size == 0:
        return
    state, rates, noise, batch = call.state, call.rates, call.noise, call.dynamics.batch_size
    V_W = np.zeros_like(state.W) if state.W_velocity is None else state.W_velocity
    V_a = np.zeros_like(state.a) if state.a_velocity is None else state.a_velocity
    in_blocks(
        lambda block: batches.batches_replicas(
            state.W, state.a, V_W, V_a, call.data, call.words, noise, batch, rates, call.rows,
            call.first_step, going[block], state.diverged_at,
        ),
        going.size,
    )  # fmt: skip


def _oscillate(call: _Call, dynamics: Oscillation, going: Numbers) -> None:
    """The chain runs in any case; while it is off, a takes no part in it."""
    state, words, rates = call.state, call.words, call.rates
    assert state.chain is not None and dynamics.amplitude is not None
    amplitude = per_replica("amplitude", dynamics.amplitude, len(words))
    if dynamics.oscillating:
        in_blocks(
            lambda block: oscillation.oscillation_replicas(
                state.W, state.chain, call.data, words, rates, amplitude,
                call.first_step, going[block], state.diverged_at,
            ),
            going.size,
        )  # fmt: skip
    else:
        _batches(call, going)
    for chain, own_words, size in zip(state.chain, words, amplitude, strict=True):
        oscillation.run_chain(chain, own_words, size)
    if dynamics.oscillating:
        state.a[:] = state.chain


def _twin(call: _Call, going: Numbers) -> None:
    twin, rates, noise, batch = call.twin, call.rates, call.noise, call.dynamics.batch_size
    if twin is None:
        return
    in_blocks(
        lambda block: twins_of_batches.twin_replicas(
            twin.theta, twin.velocity, twin.start, twin.A, call.data, call.words, noise, batch,
            rates, going[block],
        ),
        going.size,
    )  # fmt: skip


def linear_engine() -> NumbaEngine:
    """The engine that lnsim.backend.load finds."""
    return NumbaEngine()
