"""Batch norm with a shortcut and ReLU, channel by channel.  Imports nothing of lnsim.

x, shortcut, gradient : (n, C) float64.  The shortcut is None where there is none.
"""

import numpy as np


def forward(x, weight, bias, shortcut, eps, relu):
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        deviation = x[:, c] - x[:, c].mean()
        y[:, c] = weight[c] * deviation / np.sqrt((deviation**2).mean() + eps) + bias[c]
    if shortcut is not None:
        y = y + shortcut
    return np.maximum(y, 0.0) if relu else y


def backward(gradient, y, x, weight, eps, relu):
    """The gradients at x, the shortcut, the weight and the bias."""
    g = np.where(y > 0, gradient, 0.0) if relu else gradient
    at_x, at_weight, at_bias = np.empty_like(x), np.empty(x.shape[1]), np.empty(x.shape[1])
    for c in range(x.shape[1]):
        deviation = x[:, c] - x[:, c].mean()
        scale = 1.0 / np.sqrt((deviation**2).mean() + eps)
        at_weight[c] = (g[:, c] * deviation * scale).sum()
        at_bias[c] = g[:, c].sum()
        for i in range(len(x)):
            # d yhat_j / d x_i = scale (delta_ij - 1/n) - scale^3 deviation_i deviation_j / n
            mixed = -scale / len(x) - scale**3 * deviation[i] * deviation / len(x)
            at_x[i, c] = weight[c] * ((g[:, c] * mixed).sum() + g[i, c] * scale)
    return at_x, g, at_weight, at_bias
