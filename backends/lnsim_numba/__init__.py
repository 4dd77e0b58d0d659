"""The Numba backend: the linear engine on the CPU, one thread per replica."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim._checks import Scalar, per_replica
from lnsim.backend import Gradient, State
from lnsim.dynamics import SGD
from lnsim.problem import Problem
from lnsim_numba import kernels


class NumbaEngine:
    """Implements lnsim.backend.LinearEngine with the kernels of kernels.py."""

    def advance(
        self,
        state: State,
        problem: Problem,
        dynamics: SGD,
        words: NDArray[np.uint64],
        first_step: int,
    ) -> None:
        """Takes every replica that has not diverged through words.shape[1] / batch_size steps."""
        replicas = len(state.W)
        if words.shape[1] == 0:
            return
        sigma: Scalar = 0.0
        law = "rademacher"
        if dynamics.noise is not None:
            sigma, law = dynamics.noise.sigma, dynamics.noise.law
        # The kernels read the Rademacher sign off the word; other laws come ready made.
        noise = None if law == "rademacher" else streams.unit_noise(words, law)
        lr = per_replica("lr", dynamics.lr, replicas)
        sigma = per_replica("sigma", sigma, replicas)
        momentum = per_replica("momentum", dynamics.momentum, replicas)
        decay = per_replica("weight_decay", dynamics.weight_decay, replicas)
        if dynamics.batch_size == 1 and not momentum.any() and not decay.any():
            kernel, all_replicas = kernels.one_sample, kernels.one_sample_replicas
            tile: tuple[Any, ...] = (kernels.tile_of(state.W.shape[1]),)
            moving: tuple[Any, ...] = (state.W, state.a)
            fixed: tuple[Any, ...] = (lr, sigma)
        else:
            tile = ()
            kernel, all_replicas = kernels.mini_batch, kernels.mini_batch_replicas
            V_W = np.zeros_like(state.W) if state.W_velocity is None else state.W_velocity
            V_a = np.zeros_like(state.a) if state.a_velocity is None else state.a_velocity
            moving = (state.W, state.a, V_W, V_a)
            batch = np.full(replicas, dynamics.batch_size)
            fixed = (batch, lr, sigma, momentum, decay)
        data = (problem.X, problem.y)
        if replicas > 1:
            all_replicas(*tile, *moving, *data, words, noise, *fixed, first_step, state.diverged_at)
        elif state.diverged_at[0] < 0:
            # Alone, a replica needs no parallel region, nor the time to compile one.
            own = [array[0] for array in moving]
            done = kernel(
                *tile,
                *own,
                *data,
                words[0],
                kernels.noise_of(noise, 0),
                *(value[0] for value in fixed),
            )
            if done >= 0:
                state.diverged_at[0] = first_step + done

    def gradient(self, state: State, problem: Problem) -> Gradient:
        """Full-batch gradient of (1/2n) sum (f(x_i) - y_i)^2: a z^T and W z, z = X^T r / n."""
        theta = np.einsum("spr,sp->sr", state.W, state.a)
        z = (theta @ problem.X.T - problem.y) @ problem.X / problem.samples
        return Gradient(state.a[:, :, None] * z[:, None, :], np.einsum("spr,sr->sp", state.W, z))


engine = NumbaEngine()
