"""Dense Hessians of the networks of naive_models.py by autograd in float64.

Written with matrices where naive_models.py has loops, so that the two witness against each other.
"""

import numpy as np
import torch

from naive_models import Deep, Diagonal, TwoLayer

ACTIVATIONS = {None: lambda h: h, "relu": torch.relu, "erf": torch.erf}


def two_layer(model, theta, X):
    W, A = theta
    return ACTIVATIONS[model.activation](X @ W.T) @ A.T


def diagonal(model, theta, X):
    if model.form == "square":
        beta = theta[0] ** 2
    elif model.form == "product":
        beta = theta[0] * theta[1]
    else:
        beta = theta[0] ** model.power - theta[1] ** model.power
    return (X @ beta)[:, None]


def deep(model, theta, X):
    h = X
    for layer, W in enumerate(theta):
        skip = model.residual and layer < len(theta) - 1 and W.shape[0] == W.shape[1]
        h = h @ W.T + h if skip else h @ W.T
    return h


FORWARD = {TwoLayer: two_layer, Diagonal: diagonal, Deep: deep}


def mean_loss(loss, f, Y):
    """L of the predictions f : (n, C) for the targets Y : (n, C)."""
    if loss == "squared":
        return 0.5 * torch.square(f - Y).sum(dim=1).mean()
    if loss == "logistic":
        return torch.nn.functional.softplus(-Y * f).mean()
    return torch.nn.functional.cross_entropy(f, Y)


def dense(model, theta, X, Y, loss):
    """Gradient (P,) and Hessian (P, P) of L at the parameters theta."""
    shapes = [array.shape for array in theta]
    sizes = [array.size for array in theta]
    X, Y = torch.from_numpy(np.array(X)), torch.from_numpy(np.array(Y))

    def value(flat):
        arrays = [
            part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)
        ]
        return mean_loss(loss, FORWARD[type(model)](model, arrays, X), Y)

    point = torch.from_numpy(np.concatenate([array.ravel() for array in theta]))
    gradient = torch.autograd.functional.jacobian(value, point)
    return gradient.numpy(), torch.autograd.functional.hessian(value, point).numpy()
