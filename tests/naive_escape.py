"""The escape of neurons by brute force, in plain NumPy.  Imports nothing of lnsim.

Every function is an explicit Monte Carlo of what lnsim.theory.escape computes without one.
"""

import numpy as np


def looks(steps):
    """The steps of the watch: four an octave."""
    return sorted({int(2 ** (k / 4)) for k in range(200) if 2 ** (k / 4) <= steps})


def products(X, theta_star, W, a, *, lr, sigma, steps, at, replicas, seed=0):
    """Label noise SGD of S replicas: [W | a] at the steps `at`, (len(at), S, m, d + 1).

    A step multiplies M = [W | a] by I - lr r S(x) from the right.
    """
    rng = np.random.default_rng(seed)
    M = np.repeat(np.column_stack([W, a])[None], replicas, axis=0)
    taken = []
    for t in range(1, steps + 1):
        x = X[rng.integers(len(X), size=replicas)]
        noise = sigma * rng.choice([-1.0, 1.0], size=replicas)
        u = np.einsum("smd,sd->sm", M[:, :, :-1], x)
        r = np.einsum("sm,sm->s", u, M[:, :, -1]) - x @ theta_star - noise
        pulled = lr * r[:, None, None] * M[:, :, -1:] * x[:, None]
        M[:, :, -1] -= lr * r[:, None] * u
        M[:, :, :-1] -= pulled
        if t in at:
            taken.append(M.copy())
    return np.stack(taken)


def escapes(distances, steps, radius):
    """The watch: first passages of distances (looks, ...) at `steps`, infinite if there is none."""
    passed = np.full(distances.shape[1:], np.inf)
    before, time = np.zeros(distances.shape[1:]), 0.0
    for distance, step in zip(distances, steps, strict=True):
        new = np.isinf(passed) & (distance > radius)
        share = (radius - before[new]) / (distance[new] - before[new])
        passed[new] = time + (step - time) * share
        before, time = distance, step
    return passed


def area(rates, variances, *, steps, replicas, seed=0):
    """sum (y_i dy_j - y_j dy_i)/2 of independent y that forget, stationary, (S, k, k)."""
    rng = np.random.default_rng(seed)
    kicks = np.sqrt(variances * (2 * rates - rates**2))
    y = rng.standard_normal((replicas, len(rates))) * np.sqrt(variances)
    total = np.zeros((replicas, len(rates), len(rates)))
    for _ in range(steps):
        change = -rates * y + kicks * rng.standard_normal(y.shape)
        total += (y[:, :, None] * change[:, None] - change[:, :, None] * y[:, None]) / 2
        y = y + change
    return total


def frozen(X, A, *, lr, sigma, steps, replicas, seed=0):
    """delta <- delta - lr A (x.delta - epsilon) x, from 0: the last half, (steps/2, S, d)."""
    rng = np.random.default_rng(seed)
    delta, path = np.zeros((replicas, len(A))), []
    for t in range(steps):
        x = X[rng.integers(len(X), size=replicas)]
        r = np.einsum("sd,sd->s", x, delta) - sigma * rng.choice([-1.0, 1.0], size=replicas)
        delta = delta - lr * r[:, None] * (x @ A)
        if t >= steps // 2:
            path.append(delta)
    return np.stack(path)
