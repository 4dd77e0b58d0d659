"""The thin QR of tall matrices: Q and R are those of Householder's reflections, Q is not formed."""

import numpy as np
import pytest

from lnsim.models import tall
from lnsim.models.tall import Columns, forms, thin_qr

pytestmark = pytest.mark.small


@pytest.fixture(autouse=True)
def every_matrix_is_tall(monkeypatch):
    monkeypatch.setattr(tall, "TALL", 0)
    monkeypatch.setattr(tall, "IN_CACHE", 1 << 7)
    monkeypatch.setattr(tall, "AT_ONCE", 50)


def matrix(rank=4, outputs=1, rows=160, seed=0):
    """W : (rows, rank) and A : (outputs, rows) of normal numbers, A much smaller."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)), 1e-3 * rng.standard_normal((outputs, rows))


def formed(Q):
    return Q.rows(slice(None))


@pytest.mark.parametrize("seed", range(20))
def test_the_decomposition_is_that_of_householder_with_its_signs(seed):
    rank, outputs = 1 + seed % 7, 1 + seed % 3
    W, A = matrix(rank, outputs, 16 * (rank + outputs) + seed, seed)
    Q, R = thin_qr(W, A)
    M = np.column_stack([W, A.T])
    expected_Q, expected_R = np.linalg.qr(M)
    assert isinstance(Q, Columns)
    assert Q.shape == expected_Q.shape
    np.testing.assert_allclose(formed(Q), expected_Q, atol=1e-14)
    np.testing.assert_allclose(
        R / np.linalg.norm(M, axis=0), expected_R / np.linalg.norm(M, axis=0), atol=1e-14
    )
    np.testing.assert_allclose(formed(Q).T @ formed(Q), np.eye(rank + outputs), atol=1e-14)


def dependent(W, A):
    W[:, 1] = 2 * W[:, 0]


def nearly_dependent(W, A):
    W[:, 1] = W[:, 0] + 1e-3 * W[:, 1]


def zero_on_top(W, A):
    W[0], A[:, 0] = 0.0, 0.0


def identity(W, A):
    W[:], A[:] = 0.0, 0.0
    W[:4], A[0, 4] = np.eye(4), 1.0


def huge(W, A):
    W *= 1e200


def tiny(W, A):
    W *= 1e-200


@pytest.mark.parametrize("change", [dependent, nearly_dependent, zero_on_top, identity, huge, tiny])
def test_householder_decides_where_cholesky_is_not_accurate_or_a_sign_is_unclear(change):
    W, A = matrix()
    change(W, A)
    Q, R = thin_qr(W, A)
    expected_Q, expected_R = np.linalg.qr(np.column_stack([W, A.T]))
    np.testing.assert_array_equal(Q, expected_Q)
    np.testing.assert_array_equal(R, expected_R)


def test_small_and_wide_matrices_are_decomposed_by_numpy(monkeypatch):
    W, A = matrix(rows=79)  # less than 16 times its 5 columns
    assert isinstance(thin_qr(W, A)[0], np.ndarray)
    monkeypatch.undo()
    W, A = matrix(rows=4000)
    Q, R = thin_qr(W, A)
    expected_Q, expected_R = np.linalg.qr(np.column_stack([W, A.T]))
    np.testing.assert_array_equal(Q, expected_Q)
    np.testing.assert_array_equal(R, expected_R)


@pytest.mark.parametrize("outputs", [1, 2])
def test_products_are_those_of_the_formed_matrix(outputs):
    W, A = matrix(outputs=outputs, rows=161)
    Q, _ = thin_qr(W, A)
    full, p = formed(Q), 4 + outputs
    rng = np.random.default_rng(1)
    for shape in [(p,), (p, 1), (p, 3), (2, p, 3), (2, 1, p, 3)]:
        B = rng.standard_normal(shape)
        np.testing.assert_allclose(Q @ B, full @ B, atol=1e-13)
    X, B, F = (
        rng.standard_normal((161, 3)),
        rng.standard_normal((3, p)),
        rng.standard_normal((p, p)),
    )
    np.testing.assert_allclose(Q.T @ X, full.T @ X, atol=1e-13)
    np.testing.assert_allclose(B @ Q.T, B @ full.T, atol=1e-13)
    by_row = [q @ F @ q for q in full]
    np.testing.assert_allclose(forms(Q, F), by_row, atol=1e-13)
    np.testing.assert_allclose(forms(full, F), by_row, atol=1e-13)


def test_no_bit_depends_on_the_threads(monkeypatch):
    W, A = matrix(rank=30, rows=5000)
    B = np.random.default_rng(1).standard_normal((31, 30))
    results = []
    for threads in (1, 4):
        monkeypatch.setattr("lnsim.base.threads.number", lambda threads=threads: threads)
        Q, R = thin_qr(W, A)
        results.append((R, Q.inverse, Q @ B, forms(Q, B @ B.T)))
    for one, four in zip(*results, strict=True):
        np.testing.assert_array_equal(one, four)
