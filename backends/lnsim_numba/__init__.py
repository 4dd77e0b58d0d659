"""The Numba backend: the linear engine on the CPU, one thread per replica."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim._checks import FloatArray, per_replica
from lnsim.backend import Gradient, State
from lnsim.dynamics import Dynamics, Oscillation
from lnsim.linearized import Twin
from lnsim.problem import Problem
from lnsim_numba import batches, kernels, oscillation
from lnsim_numba import twin as twins_of_batches
from lnsim_numba.common import MOMENTUM

Words = NDArray[np.uint64]

_NO_FEATURES = (np.empty((0, 0)), np.empty((0, 0)), np.empty(0))


class NumbaEngine:
    """Implements lnsim.backend.LinearEngine with the kernels of this package.

    Every kernel has a form for one replica and one that runs over all in parallel: alone, a replica
    needs no parallel region, nor the time to compile one.
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
        if words.shape[1] == 0:
            return
        rates = _rates(dynamics, len(words))
        if isinstance(dynamics, Oscillation):
            self._oscillate(state, problem, dynamics, words, first_step, rates)
        elif dynamics.batch_size == 1 and not rates[:, MOMENTUM:].any():
            self._one_sample(state, problem, dynamics, words, first_step, rates, rows, twin)
            return
        else:
            self._batches(state, problem, dynamics, words, first_step, rates, rows)
        if twin is not None:
            self._twin(twin, problem, dynamics, words, rates)

    def _one_sample(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
        rates: FloatArray,
        rows: FloatArray | None,
        twin: Twin | None,
    ) -> None:
        tile, data, noise = (
            kernels.tile_of(state.W.shape[1]),
            _data(problem),
            _noise(dynamics, words),
        )
        theta, features = None, _NO_FEATURES
        if twin is not None:
            theta, features = twin.theta, (twin.inputs, twin.moves, twin.norms)
        if len(words) > 1:
            kernels.one_sample_replicas(
                tile, state.W, state.a, data, words, noise, rates, rows, theta, features,
                first_step, state.diverged_at,
            )  # fmt: skip
        elif state.diverged_at[0] < 0:
            done = kernels.one_sample(
                tile, state.W[0], state.a[0], data, words[0], _first(noise), rates[0],
                _first(rows), _first(theta), features, first_step,
            )  # fmt: skip
            _note(state, first_step, done)

    def _batches(
        self,
        state: State,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        first_step: int,
        rates: FloatArray,
        rows: FloatArray | None,
    ) -> None:
        V_W = np.zeros_like(state.W) if state.W_velocity is None else state.W_velocity
        V_a = np.zeros_like(state.a) if state.a_velocity is None else state.a_velocity
        data, noise, batch = _data(problem), _noise(dynamics, words), dynamics.batch_size
        if len(words) > 1:
            batches.batches_replicas(
                state.W, state.a, V_W, V_a, data, words, noise, batch, rates, rows,
                first_step, state.diverged_at,
            )  # fmt: skip
        elif state.diverged_at[0] < 0:
            done = batches.batches(
                state.W[0], state.a[0], V_W[0], V_a[0], data, words[0], _first(noise), batch,
                rates[0], _first(rows), first_step,
            )  # fmt: skip
            _note(state, first_step, done)

    def _oscillate(
        self,
        state: State,
        problem: Problem,
        dynamics: Oscillation,
        words: Words,
        first_step: int,
        rates: FloatArray,
    ) -> None:
        """The chain runs in any case; while it is off, a takes no part in it."""
        assert state.chain is not None and dynamics.amplitude is not None
        amplitude = per_replica("amplitude", dynamics.amplitude, len(words))
        if not dynamics.oscillating:
            self._batches(state, problem, dynamics, words, first_step, rates, None)
        elif len(words) > 1:
            oscillation.oscillation_replicas(
                state.W, state.chain, _data(problem), words, rates, amplitude,
                first_step, state.diverged_at,
            )  # fmt: skip
        elif state.diverged_at[0] < 0:
            done = oscillation.oscillation(
                state.W[0], state.chain[0], _data(problem), words[0], rates[0], amplitude[0]
            )
            _note(state, first_step, done)
        for chain, own_words, size in zip(state.chain, words, amplitude, strict=True):
            oscillation.run_chain(chain, own_words, size)
        if dynamics.oscillating:
            state.a[:] = state.chain

    def _twin(
        self,
        linearized: Twin,
        problem: Problem,
        dynamics: Dynamics,
        words: Words,
        rates: FloatArray,
    ) -> None:
        theta, velocity = linearized.theta, linearized.velocity
        fixed = (linearized.start, linearized.A, _data(problem))
        noise, batch = _noise(dynamics, words), dynamics.batch_size
        if len(words) > 1:
            twins_of_batches.twin_replicas(theta, velocity, *fixed, words, noise, batch, rates)
        else:
            twins_of_batches.twin(
                theta[0], velocity[0], *fixed, words[0], _first(noise), batch, rates[0]
            )

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """Full-batch gradient of (1/2n) sum (f(x_i) - y_i)^2: a z^T and W z, z = X^T r / n."""
        theta = np.einsum("spr,sp->sr", state.W, state.a)
        z = (theta @ problem.X.T - problem.y) @ problem.X / problem.samples
        return Gradient(state.a[:, :, None] * z[:, None, :], np.einsum("spr,sr->sp", state.W, z))


def _data(problem: Problem) -> tuple[Any, ...]:
    """What the kernels take for a problem (common.py)."""
    return problem.X, problem.y, problem.gram, problem.moment, problem.square


def _rates(dynamics: Dynamics, replicas: int) -> FloatArray:
    """lr, sigma, rho, momentum and weight decay of every replica, shape (S, 5)."""
    sigma = 0.0 if dynamics.noise is None else dynamics.noise.sigma
    rates = np.empty((replicas, 5))
    for i, value in enumerate(
        (dynamics.lr, sigma, dynamics.rho, dynamics.momentum, dynamics.weight_decay)
    ):
        rates[:, i] = value
    return rates


def _noise(dynamics: Dynamics, words: Words) -> FloatArray | None:
    """Unit label noise, (S, T, draws), or None: the kernels read Rademacher signs off the words."""
    if dynamics.noise is None or dynamics.noise.law == "rademacher":
        return None
    return streams.unit_noise(words, dynamics.noise.law)


def _first(array: FloatArray | None) -> FloatArray | None:
    return None if array is None else array[0]


def _note(state: State, first_step: int, done: int, replica: int = 0) -> None:
    if done >= 0:
        state.diverged_at[replica] = first_step + done


def linear_engine() -> NumbaEngine:
    """The engine that lnsim.backend.load finds."""
    return NumbaEngine()
