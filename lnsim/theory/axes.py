"""The samples in their principal axes, in which the equations of the theory are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lnsim.base.checks import FloatArray


@dataclass(frozen=True)
class Data:
    """The samples in their principal axes: X = whitened sqrt(spectrum) basis^T."""

    whitened: FloatArray  # (n, r), second moment I
    spectrum: FloatArray  # (r,), eigenvalues of Sigma that are not zero
    root: FloatArray  # (r,), their square roots
    basis: FloatArray  # (d, r)

    @classmethod
    def of(cls, X: FloatArray) -> Data:
        """Of X : (n, d).  Raises ValueError if all rows are zero."""
        left, singular, right = np.linalg.svd(X, full_matrices=False)
        rank = int(np.sum(singular > singular[:1] * max(X.shape) * np.finfo(float).eps))
        if rank == 0:
            raise ValueError("X must have a row that is not zero")
        root = singular[:rank] / math.sqrt(len(X))
        return cls(left[:, :rank] * math.sqrt(len(X)), root**2, root, right[:rank].T)

    @cached_property
    def samples(self) -> FloatArray:
        """The samples in the principal axes, (n, r)."""
        return np.ascontiguousarray(self.whitened * self.root)


def scaled(matrix: FloatArray, weights: FloatArray) -> FloatArray:
    """diag(weights) matrix diag(weights)."""
    return weights[:, None] * matrix * weights


def direction(vector: FloatArray) -> FloatArray:
    """vector/|vector|, also where the square would overflow or vanish.  ValueError for 0."""
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        raise ValueError("theta_star must not be 0 on the training inputs")
    scaled_vector = vector / largest
    return np.asarray(scaled_vector / np.linalg.norm(scaled_vector))


def boost(z: FloatArray) -> FloatArray:
    """S(z) = [[0, z], [z^T, 0]] of z : (..., r), shape (..., r + 1, r + 1)."""
    S = np.zeros((*z.shape[:-1], z.shape[-1] + 1, z.shape[-1] + 1))
    S[..., :-1, -1] = S[..., -1, :-1] = z
    return S


def finite_boost(z: FloatArray) -> FloatArray:
    """exp(S(z)) of z : (..., r), in closed form as S^3 = |z|^2 S, shape (..., r + 1, r + 1)."""
    S = boost(z)
    square = np.sum(z**2, axis=-1)[..., None, None]
    size = np.sqrt(square)
    small = size < 1e-4
    safe = np.where(small, 1.0, size)
    first = np.where(small, 1 + square / 6, np.sinh(safe) / safe)
    second = np.where(small, 0.5 + square / 24, (np.cosh(safe) - 1) / safe**2)
    return np.asarray(np.eye(S.shape[-1]) + first * S + second * (S @ S))


def boosts(z: FloatArray) -> FloatArray:
    """S(z) = [[0, z^T], [z, 0]] of z : (..., C, r), shape (..., r + C, r + C)."""
    outputs, rank = z.shape[-2:]
    S = np.zeros((*z.shape[:-2], rank + outputs, rank + outputs))
    S[..., rank:, :rank] = z
    S[..., :rank, rank:] = np.swapaxes(z, -1, -2)
    return S


def finite_boosts(z: FloatArray) -> FloatArray:
    """exp(S(z)) of z : (..., C, r), shape (..., r + C, r + C)."""
    values, vectors = np.linalg.eigh(boosts(z))
    return np.asarray((vectors * np.exp(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2))
