"""The linearised twin: the network linearised in its parameters at the start, on the same draws.

The first-order expansion of f = a^T W x in (W, a) around (W_0, a_0) is f(x) = <theta, x> with

    theta = theta_0 + dW^T a_0 + W_0^T da,    theta_0 = W_0^T a_0.

A gradient step with z = (1/B) sum_b r_b x_b moves dW by -lr a_0 z^T and da by -lr W_0 z, hence
theta by -lr A z with A = W_0^T W_0 + |a_0|^2 I: training the twin is a recursion of d numbers, r in
reduced coordinates.  A lazy run follows its twin; a rich one leaves it.

Momentum is the same recursion in theta.  Weight decay w adds w (W_0 + dW) and w (a_0 + da) to the
gradients, which is w (theta + theta_0) in theta.  SAM moves the parameters along their gradient,
whose squared norm is z^T A z.

If the inputs do not span all of R^d (reduction.py), W_0 = (W_0 V) V^T + R.  In reduced coordinates
the parameters are W_0 V shrunk by s = rest_scale and moved by -a_0 S^T, and a_0 shrunk by s and
moved by -(W_0 V) S, with the same S : (r,).  So theta_V = (2s - 1) theta_0V - A S, and the
rest of theta is (2s - 1) R^T a_0 - R^T (W_0 V) S with S from theta_V.

The twin of the oscillation simulation is trained by plain full-batch descent of both layers; its
second layer does not oscillate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnsim.base.checks import FloatArray


@dataclass
class Twin:
    """S linearised networks, updated in place.

    theta, velocity : (S, r); start = theta(0) : (r,); A : (r, r).  For one sample per step,
    inputs and moves : (n, r') hold x_i and A x_i, padded with zeros to a multiple r' of 4, and
    norms : (n,) sqrt(x_i^T A x_i).
    """

    theta: FloatArray
    velocity: FloatArray
    start: FloatArray
    A: FloatArray
    inputs: FloatArray
    moves: FloatArray
    norms: FloatArray


def twin(W: FloatArray, a: FloatArray, X: FloatArray, replicas: int) -> Twin:
    """The twin of the reduced network W : (p, r), a : (p,), for reduced inputs X : (n, r)."""
    start = a @ W
    A = W.T @ W
    A.flat[:: len(A) + 1] += a @ a
    theta = np.repeat(start[None], replicas, axis=0)
    moves = X @ A
    norms = np.sqrt(np.maximum(np.einsum("nr,nr->n", moves, X), 0.0))
    padding = ((0, 0), (0, -X.shape[1] % 4))
    inputs, moves = np.pad(X, padding), np.pad(moves, padding)
    return Twin(theta, np.zeros_like(theta), start, A, inputs, moves, norms)
