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


def noisy_labels(stream, t, batch, y, sigma, law):
    """The samples and the labels of step t: batch 0 takes all samples, each once."""
    n = len(y)
    if batch == 0:
        draws = [draw(word, n, sigma, law) for word in stream[t * n : (t + 1) * n]]
        return list(range(n)), [y[i] + (draws[i][1] if draws else 0.0) for i in range(n)]
    draws = [draw(word, n, sigma, law) for word in stream[t * batch : (t + 1) * batch]]
    return [i for i, _ in draws], [y[i] + noise for i, noise in draws]


def gradient(W, a, X, samples, labels):
    """Gradient of (1/2B) sum (a W x - label)^2, sample by sample."""
    grad_W, grad_a = np.zeros_like(W), np.zeros_like(a)
    for i, label in zip(samples, labels, strict=True):
        residual = a @ W @ X[i] - label
        grad_W += residual * np.outer(a, X[i]) / len(samples)
        grad_a += residual * (W @ X[i]) / len(samples)
    return grad_W, grad_a


def sam(W, a, X, y, *, steps, lr, rho, sigma, batch, law="rademacher", noisy=True, seed=0):
    """SAM in two explicit passes; rho = 0 is SGD, batch = 0 the full batch."""
    W, a = W.copy(), a.copy()
    draws = (len(y) if noisy else 0) if batch == 0 else batch
    stream = words(seed, 0, steps * draws)
    for t in range(steps):
        samples, labels = noisy_labels(stream, t, batch, y, sigma, law)
        grad_W, grad_a = gradient(W, a, X, samples, labels)
        norm = np.sqrt((grad_W**2).sum() + (grad_a**2).sum())
        if rho > 0 and norm > 0:
            up_W, up_a = W + rho * grad_W / norm, a + rho * grad_a / norm
            grad_W, grad_a = gradient(up_W, up_a, X, samples, labels)
        W, a = W - lr * grad_W, a - lr * grad_a
    return W, a


def oscillation(W, chain, X, y, *, steps, lr, amplitude, period=None, seed=0):
    """Lemma 4's simulation; with a period, plain descent of both layers in every other window.

    Returns W, a and the chain's states at every step.
    """
    W, chain = W.copy(), chain.copy()
    a, m = chain.copy(), len(chain)
    per_step = -(-m // 64)
    stream = words(seed, 0, steps * per_step)
    history = [chain.copy()]
    for t in range(steps):
        on = period is None or (t // period) % 2 == 0
        if on:
            a = chain.copy()
        descent = X.T @ (X @ (W.T @ a) - y) / len(y)
        old_W, old_a = W.copy(), a.copy()
        W = W - lr * np.outer(a, descent)
        if not on:
            a = old_a - lr * old_W @ descent
        for i in range(m):
            bit = (int(stream[t * per_step + i // 64]) >> (i % 64)) & 1
            chain[i] = 0.0 if chain[i] != 0 else (amplitude if bit else -amplitude)
        history.append(chain.copy())
        if on:
            a = chain.copy()
    return W, a, np.array(history)


def linearized(W, a, X, y, *, steps, lr, rho, sigma, batch, momentum, decay, noisy=True, seed=0):
    """The network's first-order expansion in (W, a), trained in its parameters; returns theta."""
    W_0, a_0 = W.copy(), a.copy()
    W, a = W.copy(), a.copy()
    V_W, V_a = np.zeros_like(W), np.zeros_like(a)
    draws = (len(y) if noisy else 0) if batch == 0 else batch
    stream = words(seed, 0, steps * draws)

    def predictor(W, a):
        return W_0.T @ a_0 + (W - W_0).T @ a_0 + W_0.T @ (a - a_0)

    def slope(W, a, samples, labels):
        theta, g_W, g_a = predictor(W, a), np.zeros_like(W), np.zeros_like(a)
        for i, label in zip(samples, labels, strict=True):
            residual = theta @ X[i] - label
            g_W += residual * np.outer(a_0, X[i]) / len(samples)
            g_a += residual * (W_0 @ X[i]) / len(samples)
        return g_W, g_a

    for t in range(steps):
        samples, labels = noisy_labels(stream, t, batch, y, sigma, "rademacher")
        g_W, g_a = slope(W, a, samples, labels)
        norm = np.sqrt((g_W**2).sum() + (g_a**2).sum())
        if rho > 0 and norm > 0:
            g_W, g_a = slope(W + rho * g_W / norm, a + rho * g_a / norm, samples, labels)
        V_W = momentum * V_W + g_W + decay * W
        V_a = momentum * V_a + g_a + decay * a
        W, a = W - lr * V_W, a - lr * V_a
    return predictor(W, a)


def ledger(W, a, X, y, *, steps, lr, sigma, batch, seed=0):
    """For every neuron, step by step: the sums of the exact norm identity; returns both."""
    W, a = W.copy(), a.copy()
    removed, restored = np.zeros(len(a)), np.zeros(len(a))
    draws = len(y) if batch == 0 else batch
    stream = words(seed, 0, steps * draws)
    for t in range(steps):
        samples, labels = noisy_labels(stream, t, batch, y, sigma, "rademacher")
        g = sum((a @ W @ X[i] - v) * X[i] for i, v in zip(samples, labels, strict=True))
        g = lr * g / len(samples)
        removed += (W @ g) ** 2
        restored += (g @ g) * a**2
        W, a = W - np.outer(a, g), a - W @ g
    return removed, restored
