"""The paper's statements against hand values."""

import math

import numpy as np
import pytest

from lnsim.theory import paper


def test_condition_1_at_the_figures_setting():
    X = np.eye(20)[np.arange(200) % 20] * 3
    rows = paper.condition_1(X, np.full(20, 1.0), width=1000, lr=1e-3)
    assert [row.name for row in rows] == ["A1", "A2", "A3", "A4", "A5", "A6"]
    assert [row.holds for row in rows] == [None, None, False, False, None, None]
    a1, a2, a3, a4, a5, a6 = rows
    assert (a1.value, a1.threshold) == (1000, pytest.approx(31.6228, rel=1e-5))
    assert "1.075" in a2.note
    assert (a3.value, a3.threshold) == (200, pytest.approx(1e6))
    assert (a4.value, a4.threshold) == pytest.approx((4.47214, 0.177828), rel=1e-5)
    assert a5.value == 3
    assert a6.value == 20


def test_condition_1_can_hold():
    rows = paper.condition_1(np.ones((400, 1)), [0.1], width=16, lr=0.05)
    assert rows[2].holds is True
    assert rows[3].holds is True


def test_times_and_orders_by_hand():
    assert paper.lazy_escape_bound(1000, 1e-3, 4.0) == pytest.approx(1994710, rel=1e-6)
    assert paper.lazy_escape_bound(1000, 1e-3, 0.0) == math.inf
    assert paper.alignment_time(1e-3, 2.0) == pytest.approx(3.4538776)
    assert paper.alignment_time_linearized(1e-3, 2.0) == pytest.approx(3453.8776)
    assert paper.convergence_time(1e-3, 2.0) == pytest.approx(1726.9388)
    assert paper.phase_two_threshold(1e-4) == pytest.approx(1e-2)
    assert paper.misalignment_order(1e-4) == pytest.approx(0.0921034, rel=1e-6)
    assert paper.distance_order(1e-4) == pytest.approx(9.21034e-4, rel=1e-6)


def test_lemmas_3_and_4():
    figures = paper.lemma_3(1000, 20, 4.0)
    assert figures.vacuous
    assert figures.nonpositive_probability == pytest.approx(-1.128, abs=1e-3)
    assert (figures.decrease, figures.decrease_probability) == (1.0, 0.25)
    assert not paper.lemma_3(10**9, 20, 4.0).vacuous
    oscillation = paper.lemma_4(1e-4)
    assert (oscillation.latest, oscillation.level, oscillation.premise_width) == pytest.approx(
        (1e8, 1e-2, 100.0)
    )


def test_decay_rates():
    X = np.diag([1.0, 2.0]) * math.sqrt(2)  # eigenvalues 1, 4
    np.testing.assert_allclose(paper.decay_rates(X, 0.1, 3.0, loss=0.5), [0.1, 0.4])
    assert not paper.decay_rates(X, 0.1, 0.0).any()
    assert np.sum(paper.decay_rates(np.ones((1, 3)), 0.1, 1.0) > 1e-12) == 1


def test_stationary_norms():
    theta_star = np.array([3.0, 4.0])
    assert paper.stationary_norms(theta_star, np.eye(2)) == pytest.approx(
        (5 * math.sqrt(2), 5 / math.sqrt(2))
    )
    assert paper.stationary_norms([0.0, 2.0], np.diag([3.0, 1.0])) == pytest.approx((4.0, 1.0))


def test_stationary_norms_ignore_what_no_input_reaches():
    inside = paper.stationary_norms([3.0, 1.0], np.diag([2.0, 1.0]))
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    Sigma = rotation.T @ np.diag([2.0, 1.0, 0.0]) @ rotation
    theta_star = np.array([3.0, 1.0, -7.0]) @ rotation
    assert paper.stationary_norms(theta_star, Sigma) == pytest.approx(inside)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper.condition_1(np.ones((3, 2)), [1.0], 4, 0.1), "X has 2 columns"),
        (lambda: paper.condition_1(np.ones(3), [1.0], 4, 0.1), "X must have 2 axes"),
        (lambda: paper.lazy_escape_bound(1, 1e-3, 4.0), "width must be at least 2, got 1"),
        (lambda: paper.lazy_escape_bound(9, 1e-3, -4.0), "sigma must be .* at least 0, got -4"),
        (lambda: paper.lemma_3(10, 0, 4.0), "dim must be at least 1"),
        (lambda: paper.lemma_4(1.0), "lr must be below 1"),
        (lambda: paper.phase_two_threshold(0.0), "lr must be finite and above 0"),
        (lambda: paper.alignment_time(1e-3, 0.0), "theta_norm must be finite and above 0"),
        (lambda: paper.decay_rates(np.eye(2), 1e-3, 1.0, loss=-1), "loss must be"),
        (lambda: paper.stationary_norms([0.0], np.eye(1)), "theta_star.T Sigma theta_star"),
        (lambda: paper.stationary_norms([1.0, 1.0], np.ones((2, 3))), "it must be square"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
