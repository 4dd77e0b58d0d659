"""The documented draws, word by word."""

import numpy as np
import pytest
from scipy import stats

import naive
from lnsim import streams

pytestmark = pytest.mark.small


def test_words_are_those_of_numpy_in_any_portions():
    expected = np.stack([naive.words(7, replica, 40) for replica in range(3)])
    for start in range(6):
        stream = streams.WordStream(7, 3, start)
        portions = [stream.take(count).copy() for count in (1, 4, 0, 7, 2)]
        np.testing.assert_array_equal(
            np.concatenate(portions, axis=1), expected[:, start : start + 14]
        )
        assert stream.position == start + 14


def test_one_replica_reads_the_stream_of_replica_zero():
    np.testing.assert_array_equal(
        streams.WordStream(7, 1).take(9), streams.WordStream(7, 3).take(9)[:1]
    )


@pytest.mark.small
def test_words_of_some_replicas_are_those_of_all():
    every, some = streams.WordStream(7, 4), streams.WordStream(7, 4)
    for count in (5, 8):
        words, drawn = every.take(count).copy(), some.take(count, np.array([1, 3]))
        np.testing.assert_array_equal(drawn[[1, 3]], words[[1, 3]])
    assert some.position == every.position


@pytest.mark.parametrize("law", streams.LAWS)
@pytest.mark.parametrize("samples", [1, 3, 200, 2**31])
def test_draws_as_documented(law, samples):
    words = naive.words(1, 2, 50)
    expected = [naive.draw(word, samples, 1.0, law) for word in words]
    np.testing.assert_array_equal(streams.sample_index(words, samples), [i for i, _ in expected])
    np.testing.assert_allclose(
        streams.unit_noise(words, law), [noise for _, noise in expected], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("law", streams.LAWS)
def test_noise_has_unit_variance_and_the_right_law(law):
    noise = streams.unit_noise(naive.words(3, 0, 200_000), law)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.var() - 1.0) < 0.02
    if law == "uniform":
        assert stats.kstest(noise, "uniform", (-np.sqrt(3), 2 * np.sqrt(3))).pvalue > 1e-3
    elif law == "gaussian":
        assert stats.kstest(noise, "norm").pvalue > 1e-3
    else:
        assert set(np.unique(noise)) == {-1.0, 1.0}


def test_samples_and_signs_are_independent_and_uniform():
    words = naive.words(5, 0, 100_000)
    table = np.zeros((10, 2))
    np.add.at(table, (streams.sample_index(words, 10), (words & np.uint64(1)).astype(int)), 1)
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_purposes_have_streams_of_their_own():
    first = [streams.generator(0, purpose).standard_normal() for purpose in ("train", "test")]
    assert first[0] != first[1]
    assert streams.generator(0, "train").standard_normal() == first[0]


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (0.5, TypeError)]
)
def test_seeds_out_of_range(seed, error):
    with pytest.raises(error, match="seed"):
        streams.WordStream(seed, 1)
