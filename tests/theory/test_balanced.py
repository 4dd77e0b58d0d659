"""What the closed form refuses; its numbers are held in tests/test_published.py."""

import numpy as np
import pytest

from lnsim.theory import balanced


def test_a_start_that_is_not_balanced_is_refused():
    W, A = np.eye(2), np.array([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="multiple of the identity"):
        balanced.solution(W, A, np.eye(2), np.array([1.0]))


def test_times_that_overflow_are_refused():
    with pytest.raises(ValueError, match="times must be at most 300"):
        balanced.solution(np.eye(2), np.eye(2), np.eye(2), np.array([1e4]))


def test_the_start_is_the_start():
    (found,) = balanced.solution(np.eye(2), np.eye(2), np.eye(2), np.zeros(1))
    np.testing.assert_allclose(found, np.tile(np.eye(2), (2, 2)))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="A must have shape"):
        balanced.solution(np.eye(2), np.ones((3, 2)), np.eye(2), np.array([1.0]))
