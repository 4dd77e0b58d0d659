"""The numbers of a run of any model depend on no chunk, thread, grouping of replicas or record."""

import numpy as np
import pytest

import lnsim
from lnsim.simulation import replicas

STEPS = 60
RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 6))
Y = X @ RNG.standard_normal((6, 3))
REGRESSION, CLASSES = lnsim.Problem(X, Y), lnsim.Problem(X, Y.argmax(1), loss="cross-entropy")
CASES = {
    "outputs": (REGRESSION, lnsim.ntk_init(40, 6, outputs=3), lnsim.SGD(0.01, lnsim.LabelNoise(1))),
    "classes": (CLASSES, lnsim.ntk_init(40, 6, outputs=3), lnsim.SGD(0.1, lnsim.LabelFlips(0.3))),
    "diagonal": (
        lnsim.Problem(X, Y[:, 0]), lnsim.diagonal_init(6, 0.3), lnsim.SGD(0.01, lnsim.LabelNoise(1))
    ),
    "deep": (REGRESSION, lnsim.deep_init(6, (5, 4), 3), lnsim.SGD(0.01)),
    "deep, batches": (
        REGRESSION, lnsim.deep_init(6, (5, 4), 3), lnsim.SGD(0.01, batch_size=8, replacement=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bits(case, monkeypatch):
    def theta(every=STEPS, **options):
        run = lnsim.simulate(*CASES[case], steps=STEPS, record_every=every, **options)
        return run.state["theta"]

    alone, many = theta(), theta(replicas=5)
    np.testing.assert_array_equal(theta(every=7), alone)
    np.testing.assert_array_equal(many[0], alone[0])
    np.testing.assert_array_equal(theta(replicas=4), many[:4])
    monkeypatch.setattr("lnsim.base.threads.number", lambda: 3)
    np.testing.assert_array_equal(theta(replicas=5), many)
    monkeypatch.setattr(replicas, "WORDS_AT_ONCE", 11)
    monkeypatch.setattr(replicas, "LEAST_WORDS", 1)
    np.testing.assert_array_equal(theta(replicas=5), many)
