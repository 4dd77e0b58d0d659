r"""A two-layer erf network: its exact reduction, its tangent kernel and its linearisation.

The network and its training (the paper's first real-world experiment).  With inputs X : (n, d),

    H = X W1^T + b1,    Phi = erf(H),    f = Phi W2^T + b2,    L = (1 / 2nC) sum (f - y)^2,

W1 : (m, d), W2 : (C, m), in standard parameterisation: weights N(0, 1/fan_in), biases N(0, 1).
Full-batch gradient descent with D = (f - y) / (nC) and Delta = (D W2) o erf'(H):

    W1 <- W1 - lr Delta^T X,  b1 <- b1 - lr Delta^T 1,  W2 <- W2 - lr D^T Phi,  b2 <- b2 - lr D^T 1.

The reduction.  Every change of W1 is a combination of the n inputs, so W1(t) = W1(0) + A(t)^T X
with coefficients A : (n, m); the bias has a constant input, so b1(t) = b1(0) + A(t)^T 1.  Hence

    A <- A - lr Delta,    H(t) = H(0) + (X X^T + 1 1^T) A(t):

a step needs the n x n Gram matrix and no inputs.  A test set needs its products with the inputs;
norms follow from |w_i(t)|^2 = |w_i(0)|^2 + 2 (X w_i(0)) . A_i + A_i . X X^T A_i.  Nothing is
approximated.  The state is A, W2 and b2.

The empirical neural tangent kernel of outputs c and c' is, summed over all parameters,

    delta_cc' (phi . phi' + 1) + (x . x' + 1) sum_i W2_ci W2_c'i erf'(h_i) erf'(h'_i);

its average over the C outputs (c = c') is an (n, n) matrix K:  W2_ci^2 averaged over c.

The linearisation.  Under gradient flow with the initial kernel, time counted in steps,
df/dt = -(lr / nC) K (f - y).  In K's eigenbasis, K = U diag(l) U^T, r = f(0) - y, a = lr l / (nC):

    f(t) = y + U e^{-a t} U^T r,        f_test(t) = f_test(0) - K_test U ((1 - e^{-a t}) / l) U^T r,

the last factor being lr t / (nC) where l = 0.  One eigendecomposition serves all times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from lnsim import streams
from lnsim.base import plugins
from lnsim.base.checks import FloatArray
from lnsim.images.data import Images

DTYPES = ("float32", "float64")

_ONE_THREAD = 1 << 18
"""The number of multiplications above which BLAS uses several threads (OpenBLAS; others alike)."""

# Purposes of numpy.random.default_rng([seed, purpose]); streams.py uses those below 5.
_CHOICE_OF_IMAGES, _INIT = 5, 6


@dataclass(frozen=True)
class Task:
    """Inputs X : (n, d), targets y : (n, C), one-hot of `labels` : (n,); the test set alike."""

    X: FloatArray
    y: FloatArray
    labels: NDArray[np.int64]
    X_test: FloatArray
    y_test: FloatArray


@dataclass(frozen=True)
class Network:
    """W1 : (m, d), b1 : (m,), W2 : (C, m), b2 : (C,)."""

    W1: FloatArray
    b1: FloatArray
    W2: FloatArray
    b2: FloatArray


@dataclass(frozen=True)
class Start:
    """All that training needs of the inputs and of the initial first layer.

    gram : (n, n) = X X^T + 1 and cross : (n_test, n) = X_test X^T + 1, preactivation : (n, m) and
    preactivation_test : (n_test, m) at the start, b1 : (m,), and norm_squared : (m,), the squared
    norm of each neuron's input weights without the bias.
    """

    gram: FloatArray
    cross: FloatArray
    preactivation: FloatArray
    preactivation_test: FloatArray
    b1: FloatArray
    norm_squared: FloatArray


@dataclass
class State:
    """S runs, updated in place.  coefficients : (S, n, m), W2 : (S, C, m), b2 : (S, C) float64."""

    coefficients: FloatArray
    W2: FloatArray
    b2: FloatArray


class Engine(Protocol):
    """Module `erf_network` of a backend, which trains the network; it draws no random numbers."""

    def check_device(self, device: str) -> None:
        """Raises ValueError for a device it cannot train on."""

    def advance(
        self,
        state: State,
        start: Start,
        labels: NDArray[np.int64],
        lr: float,
        *,
        dtype: str,
        device: str,
    ) -> None:
        """Advances `state` by T steps of gradient descent on `labels` : (S, T, n).

        `dtype` is that of the gradients.  Preactivations, outputs and parameters are float64, so
        that small steps are not lost and the residual, late in training a small difference of large
        numbers, is accurate.  A relative error e of all gradients, 5e-8 in single precision, acts
        like one of lr, and changes a loss by at most a fraction e ln(L(0) / L(t)).
        """


def load_engine(backend: str) -> Engine:
    """The engine of `backend`: the module erf_network of lnsim_<backend>.

    Raises ValueError if there is none, or if it needs a package that is missing.
    """
    lacks = f"two-layer network: no module lnsim_{backend}.erf_network was found"
    engine: Engine = plugins.backend(backend, "erf_network", lacks)
    return engine


def choose(images: Images, samples: int, test_samples: int, classes: int, seed: int) -> Task:
    """`samples` and `test_samples` random images (0: all), each set normalised by itself.

    A set is flattened, its global mean subtracted, and divided by its global standard deviation.
    Raises ValueError if there are fewer images, or if all their pixels are equal.
    """
    rng = np.random.default_rng([streams.check_seed(seed), _CHOICE_OF_IMAGES])
    sets = []
    for name, pixels, labels, count in (
        ("samples", images.train_images, images.train_labels, samples),
        ("test_samples", images.test_images, images.test_labels, test_samples),
    ):
        if count > len(labels):
            raise ValueError(
                f"{name} must be at most the {len(labels)} images of data, got {count}"
            )
        chosen = rng.choice(len(labels), count or len(labels), replace=False)
        sets.append((_normalised(pixels[chosen], name), labels[chosen]))
    (X, labels), (X_test, labels_test) = sets
    return Task(X, one_hot(labels, classes), labels, X_test, one_hot(labels_test, classes))


def _normalised(pixels: NDArray[np.generic], name: str) -> FloatArray:
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    deviation = flat.std()
    if not deviation > 0:
        raise ValueError(
            f"the pixels of the images chosen as {name} must not all be equal: their standard"
            f" deviation is {deviation}"
        )
    return (flat - flat.mean()) / deviation


def one_hot(labels: NDArray[np.int64], classes: int) -> FloatArray:
    """One-hot targets of `labels` : (...), (..., C)."""
    return np.eye(classes)[labels]


def standard_init(width: int, dim: int, classes: int, seed: int) -> Network:
    """Standard parameterisation: weights N(0, 1/fan_in), biases N(0, 1)."""
    rng = np.random.default_rng([streams.check_seed(seed), _INIT])
    W1 = rng.standard_normal((width, dim)) / math.sqrt(dim)
    b1 = rng.standard_normal(width)
    W2 = rng.standard_normal((classes, width)) / math.sqrt(width)
    return Network(W1, b1, W2, rng.standard_normal(classes))


def reduce(task: Task, network: Network) -> Start:
    """The exact reduction of the inputs and of the first layer."""
    return Start(
        gram=task.X @ task.X.T + 1.0,
        cross=task.X_test @ task.X.T + 1.0,
        preactivation=task.X @ network.W1.T + network.b1,
        preactivation_test=task.X_test @ network.W1.T + network.b1,
        b1=network.b1,
        norm_squared=np.einsum("ij,ij->i", network.W1, network.W1),
    )


def state_at_start(network: Network, samples: int, runs: int) -> State:
    """`runs` copies of the network, before the first step."""
    return State(
        np.zeros((runs, samples, network.b1.size)),
        np.repeat(network.W2[None], runs, axis=0),
        np.repeat(network.b2[None], runs, axis=0),
    )


def product(a: FloatArray, b: FloatArray) -> FloatArray:
    """a : (..., n, k) times b : (..., k, m), in parts so small that BLAS uses one thread.

    The products of a record take less than a millisecond each; waking a thread that has slept
    since the last record can take many.
    """
    rows = max(1, _ONE_THREAD // (b.shape[-2] * b.shape[-1]))
    parts = [a[..., i : i + rows, :] @ b for i in range(0, a.shape[-2], rows)]
    return np.concatenate(parts, axis=-2)


def preactivations(state: State, start: Start) -> tuple[FloatArray, FloatArray]:
    """H on the training and on the test inputs, (S, n, m) and (S, n_test, m)."""
    A = state.coefficients
    return (
        start.preactivation + product(start.gram, A),
        start.preactivation_test + product(start.cross, A),
    )


def slope(H: FloatArray) -> FloatArray:
    """The derivative of erf."""
    return 2.0 / math.sqrt(math.pi) * np.exp(-H * H)


def outputs(H: FloatArray, state: State) -> FloatArray:
    """f at the preactivations H : (S, n, m), (S, n, C)."""
    return product(erf(H), state.W2.swapaxes(1, 2)) + state.b2[:, None]


def loss(f: FloatArray, y: FloatArray) -> FloatArray:
    """Half the mean square over samples and outputs, the last two axes."""
    return 0.5 * ((f - y) ** 2).mean(axis=(-2, -1))


def neuron_norms(H: FloatArray, state: State, start: Start) -> FloatArray:
    """|w_i(t)| of every neuron's input weights, without its bias; (S, m).

    H : (S, n, m) are the preactivations of the training inputs: X X^T A = H - H(0) - 1 (1^T A).
    """
    A = state.coefficients
    gram_A = H - start.preactivation - A.sum(axis=1, keepdims=True)
    initial = 2.0 * (start.preactivation - start.b1)
    return np.sqrt(np.maximum(start.norm_squared + (A * (gram_A + initial)).sum(axis=1), 0.0))


def mean_kernel(H: FloatArray, H_2: FloatArray, W2: FloatArray, inner: FloatArray) -> FloatArray:
    """The kernel, averaged over outputs, between inputs with preactivations H and with H_2.

    H : (..., n, m), H_2 : (..., n_2, m), W2 : (..., C, m); inner : (n, n_2), products of the inputs
    plus 1.  Returns (..., n, n_2).
    """
    weights = (W2**2).mean(axis=-2)[..., None, :]
    first_layer = product(slope(H) * weights, slope(H_2).swapaxes(-1, -2))
    return product(erf(H), erf(H_2).swapaxes(-1, -2)) + 1.0 + inner * first_layer


class Linearization:
    """Gradient flow on the squared loss with a constant kernel.

    kernel : (n, n), f0 and y : (n, C), kernel_test : (n_test, n), f0_test : (n_test, C).
    Source: Lee et al. 2019, "Wide neural networks of any depth evolve as linear models".
    """

    def __init__(
        self,
        kernel: FloatArray,
        f0: FloatArray,
        y: FloatArray,
        lr: float,
        kernel_test: FloatArray,
        f0_test: FloatArray,
    ) -> None:
        self.kernel = kernel
        eigenvalues, self._U = np.linalg.eigh(kernel)
        # A kernel has no negative eigenvalues, except by rounding.
        self._eigenvalues = np.maximum(eigenvalues, 0.0)
        self._rate = lr / f0.size
        self._residual = self._U.T @ (f0 - y)
        self._y, self._f0_test = y, f0_test
        self._test = kernel_test @ self._U

    def train(self, step: float) -> FloatArray:
        """Outputs on the training set at time `step`, (n, C)."""
        remaining = np.exp(-self._rate * self._eigenvalues * step)
        return self._y + self._U @ (remaining[:, None] * self._residual)

    def test(self, step: float) -> FloatArray:
        """Outputs on the test set at time `step`, (n_test, C)."""
        positive = self._eigenvalues > 0
        decayed = -np.expm1(-self._rate * self._eigenvalues * step)
        ratio = decayed / np.where(positive, self._eigenvalues, 1.0)
        weight = np.where(positive, ratio, self._rate * step)
        return self._f0_test - self._test @ (weight[:, None] * self._residual)


def linearize(state: State, start: Start, task: Task, lr: float) -> Linearization:
    """The linearisation of the first run of `state` at its parameters there."""
    H, H_test = preactivations(state, start)
    W2 = state.W2[0]
    return Linearization(
        mean_kernel(H[0], H[0], W2, start.gram),
        outputs(H, state)[0],
        task.y,
        lr,
        mean_kernel(H_test[0], H[0], W2, start.cross),
        outputs(H_test, state)[0],
    )
