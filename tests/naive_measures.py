"""Every measure of a network, from its definition, in plain loops.  Imports nothing of lnsim.

A network is an object of naive_models.py and theta, the list of its parameters.  Hessians are those
of the whole network: column p is the imaginary part of the gradient at theta + i h e_p over h, the
complex step, which subtracts nothing and so has no error but rounding.

The least Gauss-Newton trace.  Write Sigma = X^T X / n, t = tr Sigma, Theta for the predictor and
q = theta^T Sigma theta.  The trace is the mean over samples of sum_c |grad f_c(x)|^2.

two layers: C |W Sigma^(1/2)|^2 + t |A|^2 >= 2 sqrt(C t) |A| |W Sigma^(1/2)|
    >= 2 sqrt(C t) |A W Sigma^(1/2)|_*, and singular vectors attain it (in the limit, where Theta
    has output directions that no sample reaches).
L layers, one output: with P_l the product of the first l layers and b_l^T that of the later ones,
    sum_l |b_l|^2 |P_{l-1} Sigma^(1/2)|^2 >= L (t prod_{0<l<L} |b_l|^2 |P_l Sigma^(1/2)|^2)^(1/L)
    >= L (t q^(L-1))^(1/L), as b_l^T P_l = theta^T.  A chain of single neurons attains it.  A skip
    changes neither side: the gradients of W_l and I + W_l are one.
u v: u^2 + v^2 >= 2 |u v|.
u^D - v^D: with p = u^D, q = v^D and k = 2 - 2/D the sum is |p|^k + |q|^k.  For even D both are
    >= 0, so one is 0: |b|^k.  For odd D >= 3, k > 1, so p = -q = b/2: 2 |b/2|^k.  For D = 1 the
    gradients are constant, which is 2 |b/2|^0.
v v: there is one network, up to signs.
"""

import itertools
import math

import numpy as np

from naive_models import Deep, Diagonal, TwoLayer, slope_of

STEP = 1e-30


def flat(arrays):
    """The entries of all arrays, one after another."""
    return np.array([entry for array in arrays for entry in np.ravel(array)])


def sample_gradient(model, theta, x, y, loss):
    """The gradient of the loss of one sample, (P,)."""
    return flat(model.pull_back(theta, x, slope_of(loss, model.forward(theta, x), y)))


def sample_hessian(model, theta, x, y, loss):
    """Its Hessian, (P, P), column by column."""
    columns = []
    for p, array in enumerate(theta):
        for entry in np.ndindex(array.shape):
            moved = [each.astype(complex) for each in theta]
            moved[p][entry] += 1j * STEP
            columns.append(sample_gradient(model, moved, x, y, loss).imag / STEP)
    return np.array(columns).T


def output_gradients(model, theta, X):
    """The gradient of every output at every sample, (n, C, P)."""
    outputs = len(model.forward(theta, X[0]))
    return np.array([[flat(model.pull_back(theta, x, g)) for g in np.eye(outputs)] for x in X])


def mean(arrays):
    """The sum of the arrays over their number."""
    return sum(arrays) / len(arrays)


def ratio(above, below):
    """Their quotient: NaN of 0 by 0, infinity of more by 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(above) / np.float64(below))


def gauss_newton_trace(model, theta, X):
    """Of the squared loss: the mean over samples of the squared gradients of all outputs."""
    gradients = output_gradients(model, theta, X)
    return sum(entry * entry for entry in gradients.ravel()) / len(X)


def predictor(model, theta, dim):
    """Theta : (C, d), whose columns are what the unit vectors are mapped to."""
    return np.array([model.forward(theta, unit) for unit in np.eye(dim)]).T


def least_trace(model, theta, X):
    """The least Gauss-Newton trace of a network of this kind with this predictor."""
    Theta = predictor(model, theta, X.shape[1])
    squares = [sum(x[j] ** 2 for x in X) / len(X) for j in range(X.shape[1])]
    return LEAST[type(model)](model, theta, Theta, X, squares)


def least_trace_of_two_layers(model, theta, Theta, X, squares):
    # Theta Sigma^(1/2) and Theta X^T / sqrt(n) have the same singular values.
    singular = np.linalg.svd(Theta @ X.T / math.sqrt(len(X)), compute_uv=False)
    return 2 * math.sqrt(len(Theta) * sum(squares)) * sum(singular)


def least_trace_of_deep_networks(model, theta, Theta, X, squares):
    (row,), depth = Theta, len(theta)
    q = sum((row @ x) ** 2 for x in X) / len(X)
    return depth * (sum(squares) * q ** (depth - 1)) ** (1 / depth)


def least_trace_of_diagonal_networks(model, theta, Theta, X, squares):
    total = 0.0
    for square, beta in zip(squares, Theta[0], strict=True):
        if model.form == "product":
            total += square * 2 * abs(beta)
        elif model.form == "square":
            total += square * 4 * beta
        else:
            total += square * model.power**2 * least_difference(model.power, beta)
    return total


LEAST = {
    TwoLayer: least_trace_of_two_layers,
    Deep: least_trace_of_deep_networks,
    Diagonal: least_trace_of_diagonal_networks,
}


def least_difference(D, b):
    """The least u^(2D - 2) + v^(2D - 2) of u^D - v^D = b."""
    k = 2 - 2 / D
    return 2 * abs(b / 2) ** k if D % 2 else abs(b) ** k


def flatness_gap(model, theta, X):
    """The network's Gauss-Newton trace over the least one."""
    return ratio(gauss_newton_trace(model, theta, X), least_trace(model, theta, X))


def inner(K, M):
    return sum(
        k * m for row, other in zip(K, M, strict=True) for k, m in zip(row, other, strict=True)
    )


def centred(K):
    """P K P with P = I - 1 1^T / n, as means taken off rows and columns."""
    K = np.array([[entry - mean(row) for entry in row] for row in K])
    return np.array([[entry - mean(column) for entry in column] for column in K.T]).T


def kernel_alignment(model, theta, X, Y):
    """Centred alignment of the tangent kernel, summed over outputs, and of Y Y^T."""
    G = output_gradients(model, theta, X)
    K = np.array([[sum(p @ q for p, q in zip(g, h, strict=True)) for h in G] for g in G])
    labels = np.array([[y @ z for z in Y] for y in Y])
    K, labels = centred(K), centred(labels)
    return ratio(inner(K, labels), math.sqrt(inner(K, K) * inner(labels, labels)))


def effective_rank(W):
    """exp of the entropy of singular values that are made to sum to 1; 0 for W = 0."""
    singular = np.linalg.svd(W, compute_uv=False)
    if not singular.any():
        return 0.0
    shares = [value / sum(singular) for value in singular]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def balances(model, theta):
    """What gradient flow conserves, as arrays: 0 for a balanced network."""
    if isinstance(model, Diagonal):
        return [np.array([u * u - v * v for u, v in zip(*theta, strict=True)])]
    if isinstance(model, TwoLayer) and model.activation:
        W, A = theta
        return [np.array([A[:, i] @ A[:, i] - W[i] @ W[i] for i in range(len(W))])]
    layers = model.layers(theta) if isinstance(model, Deep) else theta
    return [after.T @ after - W @ W.T for W, after in itertools.pairwise(layers)]


def balancedness(model, theta):
    """The largest norm of a balance; 0 for a single layer."""
    squares = [sum(entry * entry for entry in each.ravel()) for each in balances(model, theta)]
    return math.sqrt(max(squares, default=0.0))


def gradient_noise(gradients):
    """The trace of their covariance: the mean squared distance to their mean."""
    middle = mean(gradients)
    return mean([(g - middle) @ (g - middle) for g in gradients])


def batches(n, size, replacement):
    """All batches that are equally likely; size 0 is the full batch."""
    if size == 0:
        return [tuple(range(n))]
    if replacement:
        return list(itertools.product(range(n), repeat=size))
    return list(itertools.combinations(range(n), size))


def batch_sharpness(gradients, hessians, size, replacement=True):
    """E[g^T H g] / E[|g|^2] over all batches, one after another."""
    above = below = 0.0
    for batch in batches(len(gradients), size, replacement):
        g, H = mean([gradients[i] for i in batch]), mean([hessians[i] for i in batch])
        above += g @ H @ g
        below += g @ g
    return ratio(above, below)


def support(beta):
    """The number of entries above 1 % of the largest."""
    largest = max(abs(entry) for entry in beta)
    return sum(abs(entry) > largest / 100 for entry in beta)


def measures(model, theta, X, Y, loss, size=0, replacement=True):
    """Every measure that this network has, by name; `size` of the batches, 0 for the full one."""
    samples = list(zip(X, Y, strict=True))
    gradients = [sample_gradient(model, theta, x, y, loss) for x, y in samples]
    hessians = [sample_hessian(model, theta, x, y, loss) for x, y in samples]
    spectrum = np.linalg.eigvalsh(mean(hessians))[::-1]
    activation = getattr(model, "activation", None)
    linear = activation is None
    Theta = predictor(model, theta, X.shape[1])
    values = {
        "sharpness": spectrum[0],
        "hessian_trace": sum(np.diagonal(mean(hessians))),
        "hessian_spectrum": spectrum,
        "kernel_alignment": kernel_alignment(model, theta, X, Y),
        "gradient_noise": gradient_noise(gradients),
        "batch_sharpness": batch_sharpness(gradients, hessians, size, replacement),
    }
    if loss == "squared" and linear and not (isinstance(model, Deep) and len(Theta) > 1):
        values["flatness_gap"] = flatness_gap(model, theta, X)
    if isinstance(model, Diagonal):
        values["support"] = support(Theta[0])
        values["l1_norm"] = sum(abs(entry) for entry in Theta[0])
    else:
        values["effective_rank"] = effective_rank(theta[0])
        if linear:
            values["predictor_rank"] = effective_rank(Theta)
    if getattr(model, "form", "product") == "product" and activation != "erf":
        values["balancedness"] = balancedness(model, theta)
    return values
