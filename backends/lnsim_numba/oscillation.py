"""The oscillation simulation of Lemma 4: full-batch descent of W, with a Markov chain as every a_i.

    z = grad_theta L = (X^T X theta - X^T y) / n,  theta = W^T a,    W <- W - lr a z^T.

A neuron with a_i = +-A goes to 0 and from there to +-A again, so a neuron is active every other
step and two halves of the neurons alternate.  Each half is stored separately, with the hidden index
innermost.  One pass over the active half does its update and, on the same loads, computes the theta
of two steps later, when this half is active again, with the signs drawn in the step between.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from lnsim.base.compiled import compiled
from lnsim.base.threads import in_blocks
from lnsim.dynamics import Oscillation
from lnsim_numba.call import Call, Numbers, scalars
from lnsim_numba.common import EXACT, FAST, aligned, descent, has_diverged
from lnsim_numba.descent import DESCENT_SCALARS, train_by_batches, train_twin

SCALARS = scalars("lr", "amplitude")


@compiled(**EXACT)
def drawn_signs(words, neurons, amplitude, signs):  # type: ignore[no-untyped-def]
    """signs[k] = +-amplitude by the bit of neuron neurons[k] in the words : (ceil(m/64),)."""
    for k in range(neurons.size):
        i = neurons[k]
        bit = (words[i >> 6] >> np.uint64(i & 63)) & np.uint64(1)
        signs[k] = amplitude * (2.0 * np.float64(bit) - 1.0)


@compiled(**FAST)
def _pass(Wt, a, z, next_a, theta, lr):  # type: ignore[no-untyped-def]
    """W <- W - lr a z^T and theta = W^T next_a of one half, Wt : (r, half)."""
    for j in range(Wt.shape[0]):
        row, c, total = Wt[j], lr * z[j], 0.0
        for k in range(a.size):
            w = row[k] - c * a[k]
            row[k] = w
            total += w * next_a[k]
        theta[j] = total


@compiled(**EXACT)
def _transposed(W, neurons):  # type: ignore[no-untyped-def]
    """The rows `neurons` of W, transposed; its rows are padded with zeros to whole cache lines."""
    result = aligned(W.shape[1] * _padded(neurons.size)).reshape(W.shape[1], -1)
    for k in range(neurons.size):
        result[:, k] = W[neurons[k]]
    return result


@compiled(**EXACT)
def _signs(a, neurons):  # type: ignore[no-untyped-def]
    """a of `neurons`, padded to the same length; the padding stays zero."""
    result = aligned(_padded(neurons.size))
    result[: neurons.size] = a[neurons]
    return result


@compiled(**EXACT)
def _padded(size):  # type: ignore[no-untyped-def]
    return max(8, -(-size // 8) * 8)


@compiled(**EXACT)
def oscillation(W, a, data, words, rates):  # type: ignore[no-untyped-def]
    """W : (m, r); a : (m,) in {-amplitude, 0, amplitude}; words : (T, ceil(m/64))."""
    rank = W.shape[1]
    lr, amplitude, steps = rates["lr"], rates["amplitude"], words.shape[0]
    halves = (np.flatnonzero(a != 0.0), np.flatnonzero(a == 0.0))
    Wt = (_transposed(W, halves[0]), _transposed(W, halves[1]))
    signs = (_signs(a, halves[0]), _signs(a, halves[1]))
    next_signs = (_signs(a, halves[0]), _signs(a, halves[1]))
    theta = (np.empty(rank), np.empty(rank))
    z, zero = np.empty(rank), np.zeros(rank)
    if steps == 0:
        return -1
    _pass(Wt[0], signs[0], zero, signs[0], theta[0], lr)
    drawn_signs(words[0], halves[1], amplitude, signs[1])
    _pass(Wt[1], signs[1], zero, signs[1], theta[1], lr)
    diverged_step = -1
    for t in range(steps):
        h = t % 2
        if has_diverged(descent(theta[h], z, data, words, None, t, 0, 0.0)):
            diverged_step = t
            break
        if t + 1 < steps:
            drawn_signs(words[t + 1], halves[h], amplitude, next_signs[h])
        _pass(Wt[h], signs[h], z, next_signs[h], theta[h], lr)
        signs[h][:] = next_signs[h]
    for h in range(2):
        for k in range(halves[h].size):
            W[halves[h][k]] = Wt[h][:, k]
    return diverged_step


@compiled(**EXACT)
def run_chain(chain, words, amplitude):  # type: ignore[no-untyped-def]
    """Advances the states of the chain : (m,) by words.shape[0] steps; only the last matters."""
    steps = words.shape[0]
    signs = np.empty(1)
    for i in range(chain.size):
        active = (chain[i] != 0.0) != (steps % 2 == 1)
        if steps > 0:
            drawn_signs(words[steps - 1], np.full(1, i), amplitude, signs)
            chain[i] = signs[0] if active else 0.0


@compiled(**EXACT)
def oscillation_replicas(  # type: ignore[no-untyped-def]
    W, a, data, words, rates, first_step, going, diverged_at
):
    """`oscillation` for the replicas of indices `going`.  W : (S, m, r)."""
    for s in going:
        diverged_step = oscillation(W[s], a[s], data, words[s], rates[s])
        if diverged_step >= 0:
            diverged_at[s] = first_step + diverged_step


def oscillate(call: Call, going: Numbers) -> None:
    """Trains the replicas `going`; the chain advances even while the oscillation is off."""
    state, words, rates = call.state, call.words, call.rates(SCALARS)
    descent_rates = call.rates(DESCENT_SCALARS)
    oscillating = cast(Oscillation, call.dynamics).oscillating
    if oscillating:
        in_blocks(
            lambda block: oscillation_replicas(
                state.W, state.chain, call.data, words, rates,
                call.first_step, going[block], state.diverged_at,
            ),
            going.size,
        )  # fmt: skip
    else:
        train_by_batches(call, descent_rates, going)
    assert state.chain is not None
    for chain, chain_words, amplitude in zip(state.chain, words, rates["amplitude"], strict=True):
        run_chain(chain, chain_words, amplitude)
    if oscillating:
        state.a[:] = state.chain
    train_twin(call, descent_rates, going)
