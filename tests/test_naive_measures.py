"""The oracle of measures against autograd, a numerical minimiser, and values known exactly."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

import naive_measures as measure
from naive_models import Deep, Diagonal, TwoLayer


def normal(*shape):
    return 0.7 * np.random.default_rng([5, *shape]).standard_normal(shape)


def deep(*sizes):
    return [normal(after, before) for before, after in itertools.pairwise(sizes)]


NETWORKS = {
    "two-layer, C = 1": (TwoLayer(), [normal(4, 3), normal(1, 4)]),
    "two-layer, C = 3": (TwoLayer(), [normal(4, 3), normal(3, 4)]),
    "two-layer, m = 1": (TwoLayer(), [normal(1, 3), normal(3, 1)]),
    "relu, C = 1": (TwoLayer("relu"), [normal(4, 3), normal(1, 4)]),
    "relu, C = 3": (TwoLayer("relu"), [normal(4, 3), normal(3, 4)]),
    "erf": (TwoLayer("erf"), [normal(4, 3), normal(3, 4)]),
    "deep": (Deep(), deep(3, 4, 2, 1)),
    "deep, C = 3": (Deep(), deep(3, 4, 2, 3)),
    "residual": (Deep(residual=True), deep(3, 4, 4, 3)),
    "product": (Diagonal(), [normal(3), normal(3, 1)[:, 0]]),
    "difference": (Diagonal("difference", 2), [normal(3), normal(3, 1)[:, 0]]),
    "difference, D = 3": (Diagonal("difference", 3), [normal(3), normal(3, 1)[:, 0]]),
    "square": (Diagonal("square"), [normal(3)]),
}
PAIRS = [
    (name, loss)
    for name, (model, theta) in NETWORKS.items()
    for loss in ("squared", "logistic", "cross-entropy")
    if loss == "squared" or (loss == "logistic") == (len(model.forward(theta, np.zeros(3))) == 1)
]


def data(model, theta, loss, samples=5):
    """X : (n, d) and targets Y : (n, C) that the network is far from."""
    outputs = len(model.forward(theta, np.zeros(3)))
    number = np.arange(samples) % max(2, outputs)
    if loss == "logistic":
        return normal(samples, 3), 2.0 * number[:, None] - 1.0
    if loss == "cross-entropy":
        return normal(samples, 3), np.eye(outputs)[number]
    return normal(samples, 3), 2.0 + normal(samples, outputs, 1)[..., 0]


def of_samples(model, theta, X, Y, loss):
    """Gradients and Hessians of every sample."""
    samples = list(zip(X, Y, strict=True))
    return (
        [measure.sample_gradient(model, theta, x, y, loss) for x, y in samples],
        [measure.sample_hessian(model, theta, x, y, loss) for x, y in samples],
    )


def close(value, expected, rel=1e-12):
    """Whether two arrays are the same up to `rel` of the largest entry."""
    return np.abs(value - expected).max() <= rel * np.abs(expected).max()


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_hessians_are_those_of_autograd(name, loss):
    pytest.importorskip("torch")
    from dense_hessians import dense

    model, theta = NETWORKS[name]
    X, Y = data(model, theta, loss)
    gradients, hessians = of_samples(model, theta, X, Y, loss)
    gradient, hessian = dense(model, theta, X, Y, loss)
    assert close(measure.mean(gradients), gradient)
    assert close(measure.mean(hessians), hessian)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["two-layer, C = 3", "difference, D = 3", "relu, C = 1"])
def test_batch_sharpness_is_that_of_batches_by_autograd(name, size, replacement):
    """Every batch is a problem of its own, whose Hessian is autograd's."""
    pytest.importorskip("torch")
    from dense_hessians import dense

    model, theta = NETWORKS[name]
    X, Y = data(model, theta, "squared", samples=4)
    value = measure.batch_sharpness(*of_samples(model, theta, X, Y, "squared"), size, replacement)
    draws = [list(range(4))] if size == 0 else []
    for draw in itertools.product(range(4), repeat=size) if size else ():
        if replacement or len(set(draw)) == size:
            draws.append(list(draw))
    pairs = [dense(model, theta, X[draw], Y[draw], "squared") for draw in draws]
    expected = sum(g @ H @ g for g, H in pairs) / sum(g @ g for g, _ in pairs)
    assert value == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gauss_newton_trace_is_the_hessians_of_a_network_that_fits(name):
    """The rest of the Hessian is multiplied by residuals, which are 0."""
    model, theta = NETWORKS[name]
    X, _ = data(model, theta, "squared")
    Y = np.array([model.forward(theta, x) for x in X])
    trace = np.trace(measure.mean(of_samples(model, theta, X, Y, "squared")[1]))
    assert measure.gauss_newton_trace(model, theta, X) == pytest.approx(trace, rel=1e-12)


MINIMISED = {
    "two-layer, C = 1": (TwoLayer(), [normal(2, 3), normal(1, 2)]),
    "two-layer, C = 2": (TwoLayer(), [normal(2, 3), normal(2, 2)]),
    "two-layer, C = 3": (TwoLayer(), [normal(3, 3), normal(3, 3)]),
    "two-layer, rank 1 of 2": (TwoLayer(), [np.outer([0.6, -0.9], normal(3)), normal(2, 2)]),
    "depth 1": (Deep(), deep(3, 1)),
    "depth 2": (Deep(), deep(3, 2, 1)),
    "depth 3": (Deep(), deep(3, 2, 2, 1)),
    "depth 4": (Deep(), deep(2, 2, 1, 2, 1)),
    "residual, depth 3": (Deep(residual=True), deep(3, 2, 2, 1)),
    "residual, square first": (Deep(residual=True), deep(2, 2, 2, 1)),
    "product": NETWORKS["product"],
    "square": NETWORKS["square"],
    **{
        f"difference, D = {D}": (Diagonal("difference", D), [normal(3), normal(3, 1)[:, 0]])
        for D in (1, 2, 3, 4, 5)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MINIMISED)
def test_the_least_trace_is_what_a_minimiser_finds(name):
    """Over all parameters, from several starts, the predictor held."""
    model, theta = MINIMISED[name]
    dim = theta[0].shape[-1]
    X = normal(dim + 1, dim) @ np.diag([2.0, 1.0, 0.5][:dim])
    Theta = measure.predictor(model, theta, dim)
    ends = np.cumsum([array.size for array in theta])[:-1]

    def arrays(flat):
        parts = np.split(flat, ends)
        return [part.reshape(a.shape) for part, a in zip(parts, theta, strict=True)]

    held = {
        "type": "eq",
        "fun": lambda flat: (measure.predictor(model, arrays(flat), dim) - Theta).ravel(),
    }
    start, values = measure.flat(theta), []
    for moved in range(4):
        end = minimize(
            lambda flat: measure.gauss_newton_trace(model, arrays(flat), X),
            start + moved * 0.3 * np.random.default_rng(moved).standard_normal(start.size),
            method="SLSQP", constraints=held, options={"maxiter": 500, "ftol": 1e-13},
        )  # fmt: skip
        if np.abs(held["fun"](end.x)).max() < 1e-7:
            values.append(end.fun)
    assert len(values) >= 2
    least = measure.least_trace(model, theta, X)
    assert min(values) == pytest.approx(least, rel=1e-5)
    assert measure.gauss_newton_trace(model, theta, X) >= least * (1 - 1e-12)


def rank_one(s, b, dim=3, width=4, samples=5):
    """W = s u theta^T / |theta|, a = b u, a unit vector u; and inputs."""
    u, direction = (v / np.linalg.norm(v) for v in (normal(width, 1)[:, 0], normal(dim)))
    return [s * np.outer(u, direction), b * u[None]], normal(samples, dim), direction


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_gap_of_the_stationary_rank_one_state_is_one(scale):
    """s^2 / b^2 = tr Sigma / q, q = theta^T Sigma theta / |theta|^2; off it (c^2 + 1/c^2) / 2."""
    _, X, direction = rank_one(1.0, 1.0)
    ratio = (X * X).sum() / ((X @ direction) ** 2).sum()
    theta, _, _ = rank_one(1.3 * scale * ratio**0.5, 1.3 / scale)
    expected = (scale**2 + scale**-2) / 2
    assert measure.flatness_gap(TwoLayer(), theta, X) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("outputs", [2, 3])
def test_the_gap_of_the_flattest_two_layers_is_one(outputs):
    """A = (t / C)^(-1/4) U S^(1/2), W Sigma^(1/2) = (t / C)^(1/4) S^(1/2) V^T."""
    X = normal(6, 3)
    values, vectors = np.linalg.eigh(X.T @ X / 6)
    root = vectors * np.sqrt(values) @ vectors.T
    U, S, Vt = np.linalg.svd(normal(outputs, 3) @ root, full_matrices=False)
    ratio = (values.sum() / outputs) ** 0.25
    theta = [ratio * np.sqrt(S)[:, None] * Vt @ np.linalg.inv(root), U * np.sqrt(S) / ratio]
    assert measure.flatness_gap(TwoLayer(), theta, X) == pytest.approx(1.0, rel=1e-12)


def test_the_gap_of_diagonal_networks():
    X, b = normal(5, 3), np.abs(normal(3)) + 0.1
    gap = measure.flatness_gap
    assert gap(Diagonal(), [b, -b], X) == pytest.approx(1.0, rel=1e-13)
    assert gap(Diagonal(), [2 * b, b / 2], X) == pytest.approx(17 / 8, rel=1e-13)
    assert gap(Diagonal("square"), [b], X) == pytest.approx(1.0, rel=1e-13)
    assert gap(Diagonal("difference", 2), [b, 0 * b], X) == pytest.approx(1.0, rel=1e-13)
    assert gap(Diagonal("difference", 2), [0 * b, b], X) == pytest.approx(1.0, rel=1e-13)
    assert gap(Diagonal("difference", 3), [b, -b], X) == pytest.approx(1.0, rel=1e-13)
    assert gap(Diagonal("difference", 3), [b, 0 * b], X) == pytest.approx(2 ** (1 / 3), rel=1e-13)
    assert gap(Diagonal("difference", 1), [b, b + 1], X) == pytest.approx(1.0, rel=1e-13)


def test_a_chain_of_alike_networks_has_gap_one():
    """Depth 3, one neuron a layer, one input of variance 1: all weights alike."""
    X = np.array([[1.0], [-1.0]])
    theta = [np.array([[1.7]])] * 3
    assert measure.flatness_gap(Deep(), theta, X) == pytest.approx(1.0, rel=1e-13)


def test_what_is_balanced_has_balancedness_zero():
    P, R = (np.linalg.qr(normal(4, k))[0] for k in (2, 3))
    R, S = R[:, 1:], np.diag([2.0, 1.0])
    (W, a), _, _ = rank_one(1.7, 1.7)
    chain = [P @ S @ R.T, R @ S @ P.T, P @ S @ R.T]
    relu = [np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[5.0, -2.0]])]
    assert measure.balancedness(TwoLayer(), [W, a]) < 1e-14
    assert measure.balancedness(Deep(), chain) < 1e-14
    assert measure.balancedness(TwoLayer("relu"), relu) == 0.0
    assert measure.balancedness(Diagonal(), [normal(3), -normal(3)]) == 0.0


def test_the_balancedness_of_one_neuron():
    W, A = np.array([[1.0, 2.0]]), np.array([[3.0], [2.0]])
    for activation in (None, "relu"):
        assert measure.balancedness(TwoLayer(activation), [W, A]) == 8.0
    assert measure.balancedness(Deep(), [W, A]) == 8.0
    assert measure.balancedness(Deep(), [W, 3 * W[:, :1], 2 * W[:, :1]]) == 5.0


BALANCED = [name for name in NETWORKS if name != "erf" and name[:6] not in ("differ", "square")]


@pytest.mark.parametrize("name", BALANCED)
def test_gradient_flow_conserves_every_balance(name):
    """Its derivative along the gradient of the loss is 0."""
    model, theta = NETWORKS[name]
    X, Y = data(model, theta, "squared")
    g = measure.mean(of_samples(model, theta, X, Y, "squared")[0])
    parts = np.split(g, np.cumsum([array.size for array in theta])[:-1])
    moved = [a + 1e-30j * part.reshape(a.shape) for a, part in zip(theta, parts, strict=True)]
    for balance in measure.balances(model, moved):
        assert np.abs(balance.imag).max() < 1e-30 * 1e-13 * (g @ g)


def test_the_kernel_of_the_labels_has_alignment_one():
    """d = 1: the kernel is (a^2 + w^2) x x^T; a constant entry of x goes out by centring."""
    y = normal(5, 1)
    W, A = normal(3, 1), normal(1, 3)
    assert measure.kernel_alignment(TwoLayer(), [W, A], y, -2 * y) == pytest.approx(1, rel=1e-13)
    X = np.column_stack([y, np.ones(5)])
    theta = [np.column_stack([W, 0 * W]), A]
    assert measure.kernel_alignment(TwoLayer(), theta, X, y + 7) == pytest.approx(1, rel=1e-13)


def test_the_alignment_of_a_kernel_that_tells_nothing_of_the_labels():
    """Both centred, x and y are orthogonal."""
    x, y = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert measure.kernel_alignment(TwoLayer(), [normal(3, 1), normal(1, 3)], x, y) == 0.0


def test_effective_ranks():
    assert measure.effective_rank(3 * np.eye(4, 6)) == pytest.approx(4.0, rel=1e-14)
    assert measure.effective_rank(np.outer(normal(3), normal(4))) == pytest.approx(1.0, rel=1e-12)
    assert measure.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75, rel=1e-14)
    assert measure.effective_rank(np.zeros((2, 3))) == 0.0


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_that_are_alike_make_no_gradient_noise(name):
    model, theta = NETWORKS[name]
    X, Y = data(model, theta, "squared", samples=1)
    for copies in (1, 3):
        many = (np.tile(array, (copies, 1)) for array in (X, Y))
        gradients, hessians = of_samples(model, theta, *many, "squared")
        assert measure.gradient_noise(gradients) < 1e-28
        whole = measure.batch_sharpness(gradients, hessians, 0)
        assert measure.batch_sharpness(gradients, hessians, 2) == pytest.approx(whole, rel=1e-12)


def test_one_weight_a_layer():
    """f = a w x at w = 2, a = 3, x = 1, y = 5: the residual is 1, the Hessian [[9, 7], [7, 4]]."""
    theta, X, Y = [np.array([[2.0]]), np.array([[3.0]])], np.array([[1.0]]), np.array([[5.0]])
    values = measure.measures(TwoLayer(), theta, X, Y, "squared", size=3)
    assert np.isnan(values.pop("kernel_alignment"))
    assert values.pop("hessian_spectrum") == pytest.approx(
        [(13 + 221**0.5) / 2, (13 - 221**0.5) / 2], rel=1e-13
    )
    assert values == pytest.approx(
        {
            "sharpness": (13 + 221**0.5) / 2,
            "hessian_trace": 13.0,
            "gradient_noise": 0.0,
            "batch_sharpness": 181 / 13,
            "flatness_gap": 13 / 12,
            "effective_rank": 1.0,
            "predictor_rank": 1.0,
            "balancedness": 5.0,
        },
        rel=1e-13,
    )


def test_support_and_l1_norm():
    beta = np.array([-2.0, 0.021, 0.02, 0.019, 0.0])
    theta, X = [beta, np.ones(5)], normal(4, 5)
    values = measure.measures(Diagonal(), theta, X, normal(4, 1), "squared")
    assert values["support"] == 2
    assert values["l1_norm"] == pytest.approx(2.06, rel=1e-14)
