"""Rules and settings that the tests of a user's own code share."""

import numpy as np

import lnsim

LR = 1e-2
NOISE = lnsim.LabelNoise(0.7)


def case(n=6, d=9, m=30):
    return lnsim.gaussian_regression(n, d, test_samples=5), lnsim.ntk_init(m, d)


def simulate(problem, network, dynamics, steps=30, record_every=7, seed=3, **more):
    return lnsim.simulate(
        problem, network, dynamics, steps=steps, record_every=record_every, seed=seed, **more
    )


def same(run, other):
    """Whether all that both recorded is the same to rounding."""
    names = run.arrays.keys() & other.arrays.keys()
    return {"final_W", "train_loss", "lazy_escape"} <= names and all(
        np.allclose(run[name], other[name], rtol=1e-9, atol=1e-12, equal_nan=True) for name in names
    )
