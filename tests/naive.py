"""The equations of the paper as plain NumPy loops.  Imports nothing of lnsim.

Every function here is written from the formula alone, so that it can witness against any backend.
"""

import statistics

import numpy as np


def words(seed, replica, count):
    """The first `count` words of the training stream."""
    return np.random.Philox(key=np.array([seed, replica], dtype=np.uint64)).random_raw(count)


def draw(word, samples, sigma, law):
    """(sample, label noise) of one word, in Python integers."""
    word = int(word)
    sample = ((word >> 32) * samples) >> 32
    low = word & 0xFFFFFFFF
    if law == "rademacher":
        return sample, sigma if word & 1 else -sigma
    uniform = (low + 0.5) / 2**32
    if law == "uniform":
        return sample, sigma * 12**0.5 * (uniform - 0.5)
    return sample, sigma * statistics.NormalDist().inv_cdf(uniform)


def sgd(W, a, X, y, *, steps, lr, sigma, batch, law, momentum, decay, seed=0, replica=0):
    """Trains copies of W and a, one step after another; returns them."""
    W, a = W.copy(), a.copy()
    V_W, V_a = np.zeros_like(W), np.zeros_like(a)
    stream = words(seed, replica, steps * batch)
    for t in range(steps):
        grad_W, grad_a = np.zeros_like(W), np.zeros_like(a)
        for b in range(batch):
            i, noise = draw(stream[t * batch + b], len(y), sigma, law)
            residual = a @ W @ X[i] - y[i] - noise
            grad_W += residual * np.outer(a, X[i]) / batch
            grad_a += residual * (W @ X[i]) / batch
        V_W = momentum * V_W + grad_W + decay * W
        V_a = momentum * V_a + grad_a + decay * a
        W = W - lr * V_W
        a = a - lr * V_a
    return W, a


def observe(W, a, W_start, a_start, X, y, X_test, y_test, theta_star):
    """Every recorded scalar, neuron by neuron and sample by sample."""
    m, n = len(a), len(y)
    theta = W.T @ a
    norms = [np.linalg.norm(w) for w in W]
    alignments = [abs(w @ theta_star) for w in W]
    moved = [np.linalg.norm(w - v) for w, v in zip(W, W_start, strict=True)]

    def kernel(W, a):
        features = [np.concatenate([np.outer(a, x).ravel(), W @ x]) for x in X]
        return np.array([[p @ q for q in features] for p in features])

    start = kernel(W_start, a_start)
    return {
        "train_loss": sum((theta @ x - t) ** 2 for x, t in zip(X, y, strict=True)) / (2 * n),
        "test_loss": np.mean((X_test @ theta - y_test) ** 2) / 2,
        "norm_mean": sum(norms) / m,
        "norm_squared": sum(v * v for v in norms),
        "second_layer_norm": np.linalg.norm(a),
        "alignment_mean": sum(alignments) / m,
        "cosine_mean": sum(
            p / (q * np.linalg.norm(theta_star)) for p, q in zip(alignments, norms, strict=True)
        )
        / m,
        "interpolator_distance": np.linalg.norm(theta - theta_star),
        "lazy_fraction": sum(v <= 1 / m**0.5 for v in moved) / m,
        "ntk_distance": np.linalg.norm(kernel(W, a) - start) / np.linalg.norm(start),
    }
