"""The law of the cloud from its definitions, in plain loops.  Imports nothing of lnsim."""

import math

import numpy as np


def one_sample(M, x, y, noise, lr, rho=0.0):
    """M = [W | a] after a step of SGD, or of SAM of radius rho, on one sample."""
    W, a = M[:, :-1], M[:, -1]

    def gradient(W, a):
        r = a @ W @ x - y - noise
        return r * np.outer(a, x), r * (W @ x)

    first, second = gradient(W, a)
    size = math.sqrt(np.sum(first**2) + second @ second)
    if rho > 0.0 and size > 0.0:
        first, second = gradient(W + rho * first / size, a + rho * second / size)
    return np.column_stack([W - lr * first, a - lr * second])


def boost(z):
    """S(z) = [[0, z], [z^T, 0]]."""
    S = np.zeros((len(z) + 1, len(z) + 1))
    S[:-1, -1] = S[-1, :-1] = z
    return S


def fit(X, theta_star, M, lr, sigma, steps):
    """G, C and delta after each of `steps` steps of the moments' recursion of label noise SGD.

    M <- M (I - lr S(g) - (lr^2/2) diag(N, tr N)) in the mean, and the covariance of theta from
    delta <- delta - lr A x (x.delta - epsilon), averaged over samples one by one.
    """
    n, d = X.shape
    G, C = np.eye(d + 1), np.zeros((d, d))
    path = []
    for _ in range(steps):
        path.append((G.copy(), C.copy()))
        W, a = (M @ G)[:, :-1], (M @ G)[:, -1]
        A = W.T @ W + a @ a * np.eye(d)
        delta = W.T @ a - theta_star
        pull, N, after = np.zeros(d), np.zeros((d, d)), np.zeros((d, d))
        for x in X:
            square = (x @ delta) ** 2 + x @ C @ x + sigma**2
            pull += (x @ delta) * x / n
            N += square * np.outer(x, x) / n
            step = np.eye(d) - lr * A @ np.outer(x, x)
            kick = ((x @ delta) ** 2 + sigma**2) * A @ np.outer(x, x) @ A
            after += (step @ C @ step.T + lr**2 * kick) / n
        C = after - lr**2 * A @ np.outer(pull, pull) @ A
        contraction = np.zeros((d + 1, d + 1))
        contraction[:-1, :-1], contraction[-1, -1] = N, np.trace(N)
        G = G @ (np.eye(d + 1) - lr * boost(pull) - lr**2 / 2 * contraction)
    path.append((G, C))
    return path


def measures(M, rest, X, theta_star, start):
    """Quantities of one network M = [W | a], W + rest its first layer; `start` as M, at step 0."""
    W, a = M[:, :-1], M[:, -1]
    theta = W.T @ a
    A = W.T @ W + a @ a * np.eye(W.shape[1])
    A0 = start[:, :-1].T @ start[:, :-1] + start[:, -1] @ start[:, -1] * np.eye(W.shape[1])
    kernel, kernel_0 = X @ A @ X.T, X @ A0 @ X.T
    r = X @ (theta - theta_star)
    whole = W + rest
    norms, inside = [], []
    for w in whole:
        norms.append(math.sqrt(w @ w))
        inside.append(abs(w @ theta_star))
    hessian = 0.0
    gradients = []
    for x, residual in zip(X, r, strict=True):
        J = np.column_stack([np.outer(a, x), W @ x]).ravel()
        hessian += J @ J / len(X)
        gradients.append(residual * J)
    mean = np.mean(gradients, axis=0)
    Sigma = X.T @ X / len(X)
    least = 2 * math.sqrt(np.trace(Sigma) * (theta @ Sigma @ theta))
    return {
        "norm_mean": np.mean(norms),
        "alignment_mean": np.mean(inside),
        "cosine_mean": np.mean(np.array(inside) / norms) / math.sqrt(theta_star @ theta_star),
        "norm_squared": np.sum(whole**2),
        "second_layer_norm": math.sqrt(a @ a),
        "train_loss": 0.5 * np.mean(r**2),
        "interpolator_distance": math.sqrt((theta - theta_star) @ (theta - theta_star)),
        "ntk_distance": np.linalg.norm(kernel - kernel_0) / np.linalg.norm(kernel_0),
        "hessian_trace": hessian,
        "flatness_gap": hessian / least,
        "balancedness": np.linalg.norm(W @ W.T - np.outer(a, a)),
        "gradient_noise": np.mean([g @ g for g in gradients]) - mean @ mean,
    }
