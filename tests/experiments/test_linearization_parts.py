"""What a linearisation is made of: erf, the limit of descent, flips, the start, image files."""

import math

import numpy as np
import pytest
from scipy.special import erf
from small_images import small, small_images

from lnsim.dynamics import flips
from lnsim.experiments import linearization
from lnsim.images import erf_network
from lnsim.streams import WordStream
from lnsim_numba import erf_network as numba_network


def test_erf_and_its_slope_are_right_to_the_last_bits():

    def both(h):
        work, results = np.empty((4, h.size)), np.empty((2, h.size))
        numba_network.look_up(h, numba_network._nodes(), *work)
        numba_network.series(*work, *results)
        return results

    h = np.append(np.linspace(-8.0, 8.0, 100_001), [0.0, -0.0, 1e150, -1e150])
    found, found_slope = both(h)
    np.testing.assert_allclose(found, erf(h), rtol=0, atol=1e-15)
    np.testing.assert_allclose(found_slope, erf_network.slope(h), rtol=0, atol=1.2e-15)
    assert np.isnan(both(np.array([np.nan]))).all()


def test_a_direction_the_kernel_does_not_see_moves_the_test_set_at_its_limit():
    f0, y = np.array([[1.0], [2.0]]), np.zeros((2, 1))
    linear = erf_network.Linearization(
        np.diag([4.0, 0.0]), f0, y, 0.1, np.array([[1.0, 0.5]]), np.array([[3.0]])
    )
    np.testing.assert_allclose(linear.train(10), [[math.exp(-0.05 * 4 * 10)], [2.0]])
    np.testing.assert_allclose(
        linear.test(10), [[3.0 - (1 - math.exp(-2.0)) / 4 - 0.5 * 0.05 * 10 * 2.0]]
    )


@pytest.mark.small
@pytest.mark.parametrize(("flip", "choices"), [("any", 10), ("other", 9)])
def test_labels_flip_as_often_and_to_what_they_should(flip, choices):
    labels = np.arange(10)
    words = WordStream(5, 1).take(200_000).reshape(-1, 10)
    drawn = flips.flip_labels(labels, words, 0.3, flip, 10)
    total, worst = len(words), 0.0
    for label in labels:
        seen = np.bincount(drawn[:, label], minlength=10)
        expected = np.full(10, 0.3 * total / choices)
        expected[label] = total - expected.sum() + expected[label]
        if flip == "other":
            expected[label] = 0.7 * total
        worst = max(worst, float(((seen - expected) ** 2 / expected).sum()))
    # Chi-square of nine degrees of freedom, ten times: 33.7 has probability 1e-4 each.
    assert worst < 33.7
    moved = drawn != labels
    share = 0.3 * (0.9 if flip == "any" else 1.0)
    assert abs(moved.mean() - share) < 4 * math.sqrt(share * (1 - share) / moved.size)
    assert abs(np.corrcoef(moved[:-1].ravel(), moved[1:].ravel())[0, 1]) < 0.01


@pytest.mark.small
def test_flips_at_both_ends_of_tau_and_at_the_edges_of_a_word():
    labels = np.array([0, 4, 9])
    words = WordStream(0, 1).take(3000).reshape(-1, 3)
    assert (flips.flip_labels(labels, words, 0.0, "any", 10) == labels).all()
    assert (flips.flip_labels(labels, words, 1.0, "other", 10) != labels).all()
    edges = np.array([[0, 0, 0], [2**64 - 1] * 3], dtype=np.uint64)
    found = flips.flip_labels(labels, edges, 1.0, "other", 10)
    assert found.tolist() == [[1, 0, 0], [9, 9, 8]]
    half = np.array([[2**31 - 1, 2**31, 2**63 + 2**31 - 1]], dtype=np.uint64)
    assert flips.flip_labels(labels, half, 0.5, "any", 10).tolist() == [[0, 4, 5]]


@pytest.mark.small
def test_the_start_is_in_standard_parameterisation():
    network = erf_network.standard_init(width=400, dim=100, classes=10, seed=0)
    for values, deviation in (
        (network.W1, 0.1), (network.b1, 1.0), (network.W2, 0.05), (network.b2, 1.0)
    ):  # fmt: skip
        error = values.std() / deviation - 1
        assert abs(error) < 4 / math.sqrt(2 * values.size)


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, change):
    return lambda arrays: arrays.update({name: change(arrays[name])})


@pytest.mark.small
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("test_labels"), "lacks test_labels: it has train_images"),
        (put("train_images", lambda a: a.astype(str)), "train_images .* must hold numbers"),
        (put("train_images", lambda a: a[:, 0, 0, 0]), "train_images .* must be \\(N, height"),
        (put("train_images", lambda a: a[:0]), "train_images .* got shape \\(0, 4"),
        (put("test_images", lambda a: a[:, :2]), "differ in shape"),
        (put("test_images", lambda a: a / 0.0), "test_images .* must be finite"),
        (put("train_labels", lambda a: a[:-1]), "one label per image, got \\(29,\\)"),
        (put("train_labels", lambda a: a[:, None]), "one label per image"),
        (put("train_labels", lambda a: a.astype(float)), "must be integers, got dtype float64"),
        (put("test_labels", lambda a: a + 10), "test_labels .* must be in 0 ... 9, got 1"),
        (put("test_labels", lambda a: a.astype(int) - 10), "must be in 0 ... 9, got -"),
        (put("train_images", lambda a: a * 0), "chosen as samples must not all be equal"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide|invalid)")
def test_a_malformed_file_is_refused_in_one_line(tmp_path, spoil, message):
    arrays = small_images()
    spoil(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        linearization.run(small(str(tmp_path / "bad.npz")))
    assert "\n" not in str(caught.value)


@pytest.mark.small
def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read"):
        linearization.run(small(str(tmp_path / "text.npz")))
