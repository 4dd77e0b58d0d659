"""The kernel "descent": SGD, GD and SAM on one sample or a batch, with their linearised twin.

The loop is chosen for each replica by itself, so that its numbers do not depend on the replicas
that are advanced with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnsim.base.threads import in_blocks
from lnsim_numba import batches, kernels, twin
from lnsim_numba.call import Call, Numbers, scalars

DESCENT_SCALARS = scalars("lr", "sigma", "rho", "momentum", "weight_decay")

_NO_FEATURES = (np.empty((0, 0)), np.empty((0, 0)), np.empty(0))


def descend(call: Call, going: Numbers) -> None:
    """Trains the replicas `going`: by the one-sample loop if possible, else by the batch loop."""
    rates = call.rates(DESCENT_SCALARS)
    by_one_sample = going[:0]
    if call.dynamics.batch_size == 1:
        needs_batches = (rates["momentum"] > 0.0) | (rates["weight_decay"] > 0.0)
        by_one_sample, going = going[~needs_batches[going]], going[needs_batches[going]]
    _train_by_one_sample(call, rates, by_one_sample)
    train_by_batches(call, rates, going)
    train_twin(call, rates, going)


def _train_by_one_sample(call: Call, rates: NDArray[np.void], going: Numbers) -> None:
    if going.size == 0:
        return
    state, noise = call.state, call.noise
    tile = kernels.tile_of(state.W.shape[1])
    theta, features = None, _NO_FEATURES
    if call.twin is not None:
        theta, features = call.twin.theta, (call.twin.inputs, call.twin.moves, call.twin.norms)
    in_blocks(
        lambda block: kernels.one_sample_replicas(
            tile, state.W, state.a, call.data, call.words, noise, rates, call.rows, theta, features,
            call.first_step, going[block], state.diverged_at,
        ),
        going.size,
    )  # fmt: skip


def train_by_batches(call: Call, rates: NDArray[np.void], going: Numbers) -> None:
    """Trains the replicas `going` by the batch loop; `rates` are DESCENT_SCALARS, (S,)."""
    if going.size == 0:
        return
    state, noise, batch = call.state, call.noise, call.dynamics.batch_size
    V_W = np.zeros_like(state.W) if state.W_velocity is None else state.W_velocity
    V_a = np.zeros_like(state.a) if state.a_velocity is None else state.a_velocity
    in_blocks(
        lambda block: batches.batches_replicas(
            state.W, state.a, V_W, V_a, call.data, call.words, noise, batch, rates, call.rows,
            call.first_step, going[block], state.diverged_at,
        ),
        going.size,
    )  # fmt: skip


def train_twin(call: Call, rates: NDArray[np.void], going: Numbers) -> None:
    """Trains the twins of the replicas `going`, if there are any, by batches (twin.py)."""
    linearized, noise, batch = call.twin, call.noise, call.dynamics.batch_size
    if linearized is None or going.size == 0:
        return
    in_blocks(
        lambda block: twin.twin_replicas(
            linearized.theta, linearized.velocity, linearized.start, linearized.A, call.data,
            call.words, noise, batch, rates, going[block],
        ),
        going.size,
    )  # fmt: skip
