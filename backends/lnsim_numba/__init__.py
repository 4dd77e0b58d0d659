"""The Numba backend: the linear engine on the CPU, one thread per replica."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim._checks import FloatArray, per_replica
from lnsim.backend import Gradient, State
from lnsim.dynamics import FULL_BATCH, Dynamics, Oscillation
from lnsim.linearized import Twin
from lnsim.problem import Problem
from lnsim_numba import batches, kernels, oscillation, twin

Words = NDArray[np.uint64]


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
    ) -> None:
        """See LinearEngine.advance."""
        if isinstance(dynamics, Oscillation):
            self._oscillate(state, problem, dynamics, words, first_step)
            return
        data, noise, rates = _data(problem), _noise(dynamics, words), _rates(dynamics, len(words))
        moving: tuple[Any, ...] = (state.W, state.a)
        head: tuple[Any, ...] = ()
        batch: tuple[int, ...] = ()
        if dynamics.batch_size == 1 and not rates[:, 3:].any():
            kernel, over_replicas = kernels.one_sample, kernels.one_sample_replicas
            head = (kernels.tile_of(state.W.shape[1]),)
        else:
            kernel, over_replicas = batches.batches, batches.batches_replicas
            V_W = np.zeros_like(state.W) if state.W_velocity is None else state.W_velocity
            V_a = np.zeros_like(state.a) if state.a_velocity is None else state.a_velocity
            moving, batch = (*moving, V_W, V_a), (dynamics.batch_size,)
        if words.shape[1] == 0:
            return
        if len(words) > 1:
            over_replicas(
                *head, *moving, data, words, noise, *batch, rates, rows,
                first_step, state.diverged_at,
            )  # fmt: skip
        elif state.diverged_at[0] < 0:
            own = (array[0] for array in moving)
            first = (words[0], _first(noise), *batch, rates[0], _first(rows), first_step)
            _note(state, first_step, kernel(*head, *own, data, *first))

    def _oscillate(
        self,
        state: State,
        problem: Problem,
        dynamics: Oscillation,
        words: Words,
        first_step: int,
    ) -> None:
        """The chain runs in any case; while it is off, a takes no part in it."""
        assert state.chain is not None and dynamics.amplitude is not None
        data, rates = _data(problem), _rates(dynamics, len(words))
        amplitude = per_replica("amplitude", dynamics.amplitude, len(words))
        if not dynamics.oscillating:
            V_W, V_a = np.zeros_like(state.W), np.zeros_like(state.a)
            for s in np.flatnonzero(state.diverged_at < 0).tolist():
                done = batches.batches(
                    state.W[s], state.a[s], V_W[s], V_a[s], data, words[s], None, FULL_BATCH,
                    rates[s], None, 0,
                )  # fmt: skip
                _note(state, first_step, done, s)
        elif len(words) > 1:
            oscillation.oscillation_replicas(
                state.W, state.chain, data, words, rates, amplitude, first_step, state.diverged_at
            )
        elif state.diverged_at[0] < 0:
            done = oscillation.oscillation(
                state.W[0], state.chain[0], data, words[0], rates[0], amplitude[0]
            )
            _note(state, first_step, done)
        for chain, own_words, size in zip(state.chain, words, amplitude, strict=True):
            oscillation.run_chain(chain, own_words, size)
        if dynamics.oscillating:
            state.a[:] = state.chain

    def advance_twin(
        self, linearized: Twin, problem: Problem, dynamics: Dynamics, words: Words
    ) -> None:
        """See LinearEngine.advance_twin."""
        theta, velocity = linearized.theta, linearized.velocity
        data, noise, rates = _data(problem), _noise(dynamics, words), _rates(dynamics, len(words))
        fixed, batch = (linearized.start, linearized.A, data), dynamics.batch_size
        if words.shape[1] == 0:
            return
        if len(words) > 1:
            twin.twin_replicas(theta, velocity, *fixed, words, noise, batch, rates)
        else:
            twin.twin(theta[0], velocity[0], *fixed, words[0], _first(noise), batch, rates[0])

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
