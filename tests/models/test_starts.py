"""The weights that `ntk_init`, `relu_init`, `deep_init` and `diagonal_init` draw, and their errors."""

import numpy as np
import pytest

import lnsim

pytestmark = pytest.mark.small

OUTPUTS = [None, 1, 3]


def imbalance(network):
    """A^T A - W W^T, shape (m, m)."""
    return network.A.T @ network.A - network.W @ network.W.T


def test_balanced_factors_are_drawn_uniformly():
    """A W = sqrt(1 + balance) V U^T has mean 0 and, of rank k, entries of variance k / (C d).

    The bounds are five standard errors of 400 independent draws.
    """
    for width in (3, 6):
        rank = min(width, 4)
        products = np.array(
            [
                lnsim.ntk_init(width, 5, seed, outputs=4, start="balanced").predictor
                for seed in range(400)
            ]
        )
        assert np.abs(products.mean(axis=0)).max() < 5 * np.sqrt(rank / (4 * 5) / 400)
        np.testing.assert_allclose((products**2).mean(axis=0), rank / 20, rtol=0.4)
