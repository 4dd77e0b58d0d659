"""Every model, loss, noise and form of SAM as plain NumPy loops.  Imports nothing of lnsim.

Written from the equations alone, sample by sample, and the draws in Python integers, so that it can
witness against any backend.  A model is an object with

    forward(theta, x, keep)        f : (C,) of one sample; complex weights give a complex f
    pull_back(theta, x, g, keep)   J^T g, one array a parameter

for theta a list of its parameters and keep what every hidden unit is multiplied by, or None.
"""

import math

import numpy as np
from scipy.special import erf

from naive import draw


class TwoLayer:
    """f = A phi(W x), phi the identity, relu or erf; theta = [W, A], A : (C, m)."""

    def __init__(self, activation=None):
        self.activation = activation

    def units(self, W, x):
        """phi(h) and phi'(h) of every neuron."""
        h = np.array([sum(w_j * x_j for w_j, x_j in zip(w, x, strict=True)) for w in W])
        if self.activation == "relu":
            on = h.real > 0
            return np.where(on, h, 0.0), np.where(on, 1.0, 0.0)
        if self.activation == "erf":
            return erf(h), 2 / math.sqrt(math.pi) * np.exp(-h * h)
        return h, np.ones(len(h))

    def forward(self, theta, x, keep=None):
        W, A = theta
        units, _ = self.units(W, x)
        if keep is not None:
            units = units * keep
        return np.array([sum(a * unit for a, unit in zip(row, units, strict=True)) for row in A])

    def pull_back(self, theta, x, g, keep=None):
        W, A = theta
        units, slopes = self.units(W, x)
        if keep is not None:
            units, slopes = units * keep, slopes * keep
        grad_W, grad_A = np.zeros_like(W), np.zeros_like(A)
        for c in range(len(A)):
            for i in range(len(W)):
                grad_A[c, i] = g[c] * units[i]
                grad_W[i] += g[c] * A[c, i] * slopes[i] * x
        return [grad_W, grad_A]

    def hidden(self, theta):
        return len(theta[0])


class Diagonal:
    """f = <beta, x>, beta = u v, u^D - v^D or v v; theta = [u, v], or [v]."""

    def __init__(self, form="product", power=2):
        self.form, self.power = form, power

    def forward(self, theta, x, keep=None):
        f = 0.0
        for j in range(len(x)):
            if self.form == "product":
                beta = theta[0][j] * theta[1][j]
            elif self.form == "difference":
                beta = theta[0][j] ** self.power - theta[1][j] ** self.power
            else:
                beta = theta[0][j] ** 2
            f = f + beta * x[j] * (1.0 if keep is None else keep[j])
        return np.array([f])

    def pull_back(self, theta, x, g, keep=None):
        grads = [np.zeros_like(array) for array in theta]
        for j in range(len(x)):
            s = g[0] * x[j] * (1.0 if keep is None else keep[j])
            if self.form == "product":
                grads[0][j], grads[1][j] = s * theta[1][j], s * theta[0][j]
            elif self.form == "difference":
                grads[0][j] = s * self.power * theta[0][j] ** (self.power - 1)
                grads[1][j] = -s * self.power * theta[1][j] ** (self.power - 1)
            else:
                grads[0][j] = s * 2 * theta[0][j]
        return grads

    def hidden(self, theta):
        return len(theta[0]) if self.form == "product" else 0


class Deep:
    """f = W_L ... W_1 x; with skips a square layer before the last is I + W_l."""

    def __init__(self, residual=False):
        self.residual = residual

    def layers(self, theta):
        """Every layer's matrix, its skip included."""
        last = len(theta) - 1
        return [
            W + np.eye(len(W)) if self.residual and k < last and len(W) == W.shape[1] else W
            for k, W in enumerate(theta)
        ]

    def masks(self, theta, keep):
        """What the outputs of every layer are multiplied by: 1 for those of the last."""
        sizes = [len(W) for W in theta]
        if keep is None:
            return [np.ones(size) for size in sizes]
        return [*np.split(keep, np.cumsum(sizes[:-1])[:-1]), np.ones(sizes[-1])]

    def forward(self, theta, x, keep=None):
        h = x
        for M, mask in zip(self.layers(theta), self.masks(theta, keep), strict=True):
            h = mask * np.array([sum(w * v for w, v in zip(row, h, strict=True)) for row in M])
        return h

    def pull_back(self, theta, x, g, keep=None):
        """The gradient of W_l is (what follows it)^T g times (what comes to it)^T."""
        masked = [
            mask[:, None] * M
            for M, mask in zip(self.layers(theta), self.masks(theta, keep), strict=True)
        ]
        grads = []
        for k, W in enumerate(theta):
            before, after = x, np.eye(len(theta[-1]))
            for M in masked[:k]:
                before = M @ before
            for M in masked[:k:-1]:
                after = after @ M
            back = after.T @ g * self.masks(theta, keep)[k]
            grads.append(np.array([[b * v for v in before] for b in back]).reshape(W.shape))
        return grads

    def hidden(self, theta):
        return sum(len(W) for W in theta[:-1])


def loss_of(loss, f, y):
    """The loss of one prediction f : (C,) for the target y : (C,)."""
    if loss == "squared":
        return sum((f - y) ** 2) / 2
    if loss == "logistic":
        return np.log(1 + np.exp(-y[0] * f[0]))
    return -sum(y * f) + np.log(sum(np.exp(f)))


def slope_of(loss, f, y):
    """Its derivative by f : (C,)."""
    if loss == "squared":
        return f - y
    if loss == "logistic":
        return -y / (1 + np.exp(y * f))
    return np.exp(f) / sum(np.exp(f)) - y


class Stream:
    """The words of one replica's stream, read forward."""

    def __init__(self, seed, replica):
        self.bits = np.random.Philox(key=np.array([seed, replica], dtype=np.uint64))

    def take(self, count):
        return [int(word) for word in self.bits.random_raw(count)] if count else []


def high(word):
    return word >> 32


def low(word):
    return word & 0xFFFFFFFF


def draw_label_noise(words, outputs, sigma, law):
    """Noise of every output of one draw."""
    if law == "rademacher":
        bits = [(low(words[c // 32]) >> (c % 32)) & 1 for c in range(outputs)]
        return [sigma if bit else -sigma for bit in bits]
    return [draw(words[c], 1, sigma, law)[1] for c in range(outputs)]


def flipped(word, label, tau, to, classes):
    """The class shown for a label: the low half says whether, the high half to which."""
    if low(word) >= math.floor(tau * 2**32):
        return label
    if to == "any":
        return (high(word) * classes) >> 32
    other = (high(word) * (classes - 1)) >> 32
    return other + 1 if other >= label else other


class Epochs:
    """Samples without replacement: Fisher-Yates, afresh for every n draws."""

    def __init__(self, n):
        self.n, self.place, self.order = n, 0, []

    def next(self, word):
        if self.place == 0:
            self.order = list(range(self.n))
        j = self.place
        chosen = j + ((high(word) * (self.n - j)) >> 32)
        self.order[j], self.order[chosen] = self.order[chosen], self.order[j]
        self.place = (j + 1) % self.n
        return self.order[j]


def shown(stream, Y, batch, epochs, label, flips, strength):
    """The samples and the targets of one step.

    label: (sigma, law, K or None).  flips: (tau, to, class of every sample, target of every class).
    """
    n, outputs = Y.shape
    if batch == 0:
        samples, targets = list(range(n)), [y.copy() for y in Y]
        if label:
            sigma, law, K = label
            k = -(-outputs // 32) if law == "rademacher" else outputs
            for b in range(K or n):
                words = stream.take(k)
                i = (high(words[0]) * n) >> 32 if K else b
                noise = np.array(draw_label_noise(words, outputs, strength * sigma, law))
                # The gradient is a mean over n: its noise term is to be one over K.
                targets[i] += noise * n / K if K else noise
        if flips:
            tau, to, classes, rows = flips
            for i, word in enumerate(stream.take(n)):
                targets[i] = rows[flipped(word, classes[i], strength * tau, to, len(rows))]
        return samples, targets
    samples, targets = [], []
    for _ in range(batch):
        k = 2 if flips else 1
        if label:
            k = -(-outputs // 32) if label[1] == "rademacher" else outputs
        words = stream.take(k)
        i = epochs.next(words[0]) if epochs else (high(words[0]) * n) >> 32
        target = Y[i]
        if label:
            target = target + draw_label_noise(words, outputs, strength * label[0], label[1])
        if flips:
            tau, to, classes, rows = flips
            target = rows[flipped(words[1], classes[i], strength * tau, to, len(rows))]
        samples.append(i)
        targets.append(target)
    return samples, targets


def gaussian(stream, theta, sigma):
    """N(0, sigma^2) for every entry of theta, one word each."""
    return [
        np.array([draw(word, 1, sigma, "gaussian")[1] for word in stream.take(array.size)]).reshape(
            array.shape
        )
        for array in theta
    ]


def dropped(stream, samples, hidden, rate):
    """What the hidden units of every sample are multiplied by, half a word each."""
    words = stream.take(-(-samples * hidden // 2))
    halves = [half for word in words for half in (low(word), high(word))][: samples * hidden]
    keep = [0.0 if half < math.floor(rate * 2**32) else 1 / (1 - rate) for half in halves]
    return np.array(keep).reshape(samples, hidden)


def mean_gradient(model, theta, loss, X, targets, keeps, slopes_at=None):
    """The mean over samples of J^T g, J at `theta` and g at `slopes_at` (theta if left out)."""
    total = [np.zeros_like(array) for array in theta]
    for x, y, keep in zip(X, targets, keeps, strict=True):
        f = model.forward(theta if slopes_at is None else slopes_at, x, keep)
        for sum_, part in zip(
            total, model.pull_back(theta, x, slope_of(loss, f, y), keep), strict=True
        ):
            sum_ += part / len(X)
    return total


def sam_gradient(
    model, theta, loss, X, targets, keeps, rho, normalized=True, layers="both", through="both"
):
    """The gradient at the weights moved along their own gradient, of one (micro-)batch."""
    grads = mean_gradient(model, theta, loss, X, targets, keeps)
    moves = [
        layers == "both" or (layers == "first") == (number == 0) for number in range(len(theta))
    ]
    norm = math.sqrt(sum((grad**2).sum() for grad, on in zip(grads, moves, strict=True) if on))
    length = (rho / norm if norm > 0 else 0.0) if normalized else rho
    moved = [
        array + length * grad if on else array
        for array, grad, on in zip(theta, grads, moves, strict=True)
    ]
    jacobian, slopes = {"both": (moved, moved), "jacobian": (moved, theta), "loss": (theta, moved)}[
        through
    ]
    return mean_gradient(model, jacobian, loss, X, targets, keeps, slopes)


def train(
    model, theta, X, Y, *, steps, lr, loss="squared", batch=1, replacement=True, momentum=0.0,
    decay=0.0, label=None, flips=None, on_gradient=None, on_parameters=None, anticorrelated=False,
    dropout=None, sam=None, micro=None, lr_factor=None, noise_factor=None, seed=0, replica=0,
):  # fmt: skip
    """Trains a copy of theta on X : (n, d) and targets Y : (n, C); returns it.

    `on_gradient`, `on_parameters`, `dropout`: the noise's strength; `sam`: sam_gradient's further
    arguments; `lr_factor`, `noise_factor`: functions of the step.  batch = 0 takes all samples.
    """
    theta = [array.copy() for array in theta]
    V = [np.zeros_like(array) for array in theta]
    last = [np.zeros_like(array) for array in theta]
    stream, epochs = Stream(seed, replica), None if replacement else Epochs(len(X))
    for t in range(steps):
        rate = lr if lr_factor is None else lr * lr_factor(t)
        strength = 1.0 if noise_factor is None else noise_factor(t)
        samples, targets = shown(stream, Y, batch, epochs, label, flips, strength)
        xs, B = X[samples], len(samples)
        added = moved = None
        if on_gradient is not None:
            added = gaussian(stream, theta, strength * on_gradient)
        if on_parameters is not None:
            moved = gaussian(stream, theta, strength * on_parameters)
        keeps = [None] * B
        if dropout is not None:
            keeps = dropped(stream, B, model.hidden(theta), strength * dropout)
        if sam is None:
            grads = mean_gradient(model, theta, loss, xs, targets, keeps)
        else:
            grads, k = [np.zeros_like(array) for array in theta], micro or B
            for start in range(0, B, k):
                part = slice(start, start + k)
                for sum_, grad in zip(
                    grads,
                    sam_gradient(model, theta, loss, xs[part], targets[part], keeps[part], **sam),
                    strict=True,
                ):
                    sum_ += grad * k / B
        for p in range(len(theta)):
            grad = grads[p] if added is None else grads[p] + added[p]
            V[p] = momentum * V[p] + grad + decay * theta[p]
            theta[p] = theta[p] - rate * V[p]
            if moved is not None:
                theta[p] = theta[p] + moved[p] - (last[p] if anticorrelated else 0.0)
        last = moved if moved is not None else last
    return theta
