"""The compiled draws of samples and labels are those of NumPy's formulas, bit for bit."""

import numpy as np
import pytest

import lnsim
from lnsim import streams
from lnsim.dynamics.draws import Draws, Sizes, Targets, drawn, words_a_step
from lnsim.dynamics.flips import flip_labels

pytestmark = pytest.mark.small

S, T, N = 3, 4, 7
BATCHES = (0, 1, 5)
OUTPUTS = (1, 10, 40)
RNG = np.random.default_rng(0)
STRENGTHS = {
    "no schedule": None, "of all": RNG.random(T), "of each replica": RNG.random((S, T))
}  # fmt: skip


def draws(noise, batch, outputs, strength, further=()):
    """What is drawn, the words of each draw (S, T, B, k), and the targets, labels and classes."""
    dynamics = lnsim.SGD(0.1, (noise, *further) if further else noise, batch_size=batch)
    sizes = Sizes(samples=N, outputs=outputs, parameters=6, hidden=0)
    rng = np.random.default_rng(1)
    count = words_a_step(dynamics, sizes)
    words = rng.integers(0, 2**64, (S, T, count), dtype=np.uint64)
    targets = rng.standard_normal((N, outputs))
    labels = rng.integers(0, outputs, N)
    order = np.zeros((S, 0), dtype=np.int64)
    result = drawn(
        dynamics,
        sizes,
        words,
        Targets(targets, labels, np.eye(outputs)),
        order,
        0,
        (None, strength),
    )
    of_noises = 6 * len(further)
    words = words[..., : count - of_noises].reshape(S, T, batch or N, -1)
    return result, words, targets, labels


def samples(result: Draws, words, batch):
    """The samples that NumPy draws, after those that were drawn are found to be the same."""
    if batch == 0:
        assert result.index is None
        return np.broadcast_to(np.arange(N), (S, T, N))
    index = streams.sample_index(words[..., 0], N)
    np.testing.assert_array_equal(result.index, index)
    return index


def times(scalar, strength):
    """(S, T, 1): the strength of every step."""
    scale = np.ones((S, T)) * np.reshape(scalar, (-1, 1))
    return (scale if strength is None else scale * strength)[..., None]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sigma", [0.7, np.array([0.0, 0.3, 1e-3])], ids=["one", "many"])
def test_signs_on_every_output(batch, outputs, sigma, strength):
    strength = STRENGTHS[strength]
    result, words, targets, _ = draws(lnsim.LabelNoise(sigma), batch, outputs, strength)
    c = np.arange(outputs)
    bits = words[..., c // 32] >> (c % 32).astype(np.uint64) & np.uint64(1)
    noise = np.where(bits, 1.0, -1.0) * times(sigma, strength)[..., None]
    np.testing.assert_array_equal(result.targets, targets[samples(result, words, batch)] + noise)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("to", ["other", "any"])
def test_flips(batch, to, strength):
    tau, strength = np.array([0.0, 0.4, 1.0]), STRENGTHS[strength]
    result, words, _, labels = draws(lnsim.LabelFlips(tau, to), batch, 10, strength)
    true = labels[samples(result, words, batch)]
    flipped = flip_labels(true, words[..., -1], times(tau, strength), to, 10)
    np.testing.assert_array_equal(result.targets, np.eye(10)[flipped])
    assert (flipped != true).any()


@pytest.mark.parametrize("batch", [1, 5])
def test_targets_as_they_are(batch):
    result, words, targets, _ = draws(None, batch, 3, None)
    np.testing.assert_array_equal(result.targets, targets[samples(result, words, batch)])


def test_words_of_other_noises_stand_after_those_of_the_labels():
    further = (lnsim.GradientNoise(0.1),)
    result, words, targets, _ = draws(lnsim.LabelNoise(0.5), 5, 3, None, further)
    bits = words >> np.arange(3, dtype=np.uint64) & np.uint64(1)
    noise = np.where(bits, 0.5, -0.5)
    np.testing.assert_array_equal(result.targets, targets[samples(result, words, 5)] + noise)
    assert result.gradient is not None and result.gradient.shape == (S, T, 6)


def test_blocks_of_replicas_draw_what_all_draw(monkeypatch):
    expected = draws(lnsim.LabelFlips(0.5), 5, 10, None)[0].targets
    monkeypatch.setattr("lnsim.base.threads.number", lambda: 2)
    np.testing.assert_array_equal(draws(lnsim.LabelFlips(0.5), 5, 10, None)[0].targets, expected)
