"""Alignment and rank of a kernel, against loops and against what they are in plain cases."""

from importlib.util import find_spec

import numpy as np
import pytest

from lnsim.images.kernels import effective_rank, label_alignment

pytestmark = pytest.mark.small


def kernels(n=7):
    roots = np.random.default_rng(0).standard_normal((2, n, 5))
    return roots @ roots.swapaxes(1, 2)


def labels(n=7, classes=3):
    return np.eye(classes)[np.arange(n) % classes]


def test_alignment_is_the_cosine_of_centred_kernels():
    K, y = kernels(), labels()
    n = len(y)
    for kernel, found in zip(K, label_alignment(K, y), strict=True):
        pairs = [
            (
                kernel[i, j] - kernel[i].mean() - kernel[:, j].mean() + kernel.mean(),
                (y[i] - y.mean(0)) @ (y[j] - y.mean(0)),
            )
            for i in range(n)
            for j in range(n)
        ]
        dot = sum(a * b for a, b in pairs)
        norms = np.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
        assert found == pytest.approx(dot / norms, rel=1e-12)
    assert label_alignment(3.0 * y @ y.T + 5.0, y) == pytest.approx(1.0)
    assert np.isnan(label_alignment(K[0], np.ones((n, 2))))


def test_rank_counts_equal_eigenvalues():
    for rank in (1, 3, 7):
        Q = np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))[0][:, :rank]
        assert effective_rank(2.0 * Q @ Q.T) == pytest.approx(rank)
    shares = np.array([0.7, 0.2, 0.1])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(np.diag(5 * shares)) == pytest.approx(expected)
    assert np.isnan(effective_rank(np.diag([1.0, np.inf])))


@pytest.mark.skipif(
    find_spec("torch") is None, reason="it compares with torch's formulas, and torch is an extra"
)
def test_torch_has_the_same_two_numbers():
    import torch
    from lnsim_torch.linearization import effective_rank as rank
    from lnsim_torch.linearization import label_alignment as alignment

    K, y = kernels(), labels()
    for kernel, ours, aligned in zip(K, effective_rank(K), label_alignment(K, y), strict=True):
        as_tensor = torch.from_numpy(kernel)
        assert ours == pytest.approx(float(rank(as_tensor)), rel=1e-9)
        assert aligned == pytest.approx(float(alignment(as_tensor, torch.from_numpy(y))), rel=1e-9)
