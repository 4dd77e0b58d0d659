"""The starts: the weights that `ntk_init` and the other models' draw, and their errors."""

import numpy as np
import pytest

import lnsim

pytestmark = pytest.mark.small

OUTPUTS = [None, 1, 3]


def imbalance(network):
    """A^T A - W W^T, shape (m, m)."""
    return network.A.T @ network.A - network.W @ network.W.T


def test_balanced_factors_are_drawn_uniformly():
    """A W = sqrt(1 + balance) V U^T has mean 0 and, of rank k, entries of variance k / (C d).

    The bounds are five standard errors of 400 independent draws.
    """
    for width in (3, 6):
        rank = min(width, 4)
        products = np.array(
            [
                lnsim.ntk_init(width, 5, seed, outputs=4, start="balanced").predictor
                for seed in range(400)
            ]
        )
        assert np.abs(products.mean(axis=0)).max() < 5 * np.sqrt(rank / (4 * 5) / 400)
        np.testing.assert_allclose((products**2).mean(axis=0), rank / 20, rtol=0.4)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_ntk(outputs):
    network = lnsim.ntk_init(400, 50, 3, outputs=outputs)
    assert network.a.shape == ((400,) if outputs is None else (outputs, 400))
    assert network.W.var() == pytest.approx(1 / 50, rel=0.05)
    assert network.A.var() == pytest.approx(1 / 400, rel=0.3)
    assert abs(network.W.mean()) < 5 / np.sqrt(50 * network.W.size)
    again = lnsim.ntk_init(400, 50, 3, outputs=outputs)
    np.testing.assert_array_equal(again.W, network.W)
    assert not np.array_equal(lnsim.ntk_init(400, 50, 4, outputs=outputs).W, network.W)


def test_one_output_has_the_same_weights_as_a_vector_or_as_a_row():
    vector, row = (lnsim.ntk_init(5, 4, 1, outputs=outputs) for outputs in (None, 1))
    np.testing.assert_array_equal(vector.W, row.W)
    np.testing.assert_array_equal(vector.a, row.A[0])


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize(
    ("start", "first", "second"), [("mean-field", 1.0, 1 / np.sqrt(9)), ("small", 0.01, 0.01)]
)
def test_mean_field_and_small_are_multiples_of_ntk(outputs, start, first, second):
    ntk = lnsim.ntk_init(9, 4, 2, outputs=outputs)
    network = lnsim.ntk_init(9, 4, 2, outputs=outputs, start=start, scale=3.0)
    np.testing.assert_allclose(network.W, 3 * first * ntk.W, rtol=1e-15)
    np.testing.assert_allclose(network.a, 3 * second * ntk.a, rtol=1e-15)


@pytest.mark.parametrize("balance", [-1.0, -0.4, 0.0, 3.0])
@pytest.mark.parametrize(("width", "dim", "outputs"), [(3, 5, 4), (4, 4, 4), (1, 1, None)])
def test_balanced(width, dim, outputs, balance):
    network = lnsim.ntk_init(width, dim, outputs=outputs, start="balanced", balance=balance)
    np.testing.assert_allclose(imbalance(network), balance * np.eye(width), atol=1e-14)
    np.testing.assert_allclose(np.linalg.svd(network.W, compute_uv=False), 1.0, rtol=1e-14)
    scaled = lnsim.ntk_init(
        width, dim, outputs=outputs, start="balanced", balance=balance, scale=0.1
    )
    np.testing.assert_allclose(imbalance(scaled), 0.01 * balance * np.eye(width), atol=1e-15)


@pytest.mark.parametrize(
    ("width", "dim", "outputs"), [(9, 5, 4), (9, 4, 5), (5, 9, 4), (7, 3, None)]
)
def test_balanced_without_a_difference_is_there_for_every_width(width, dim, outputs):
    network = lnsim.ntk_init(width, dim, outputs=outputs, start="balanced")
    np.testing.assert_allclose(imbalance(network), 0.0, atol=1e-14)
    rank = min(width, dim, outputs or 1)
    for layer in (network.W, network.A):
        singular = np.linalg.svd(layer, compute_uv=False)
        np.testing.assert_allclose(singular[:rank], 1.0, rtol=1e-14)
        np.testing.assert_allclose(singular[rank:], 0.0, atol=1e-14)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("balance", [-0.05, 0.0, 2.0])
def test_unbalanced_neurons(outputs, balance):
    network = lnsim.ntk_init(
        6, 8, 1, outputs=outputs, start="unbalanced", balance=balance, scale=2.0
    )
    np.testing.assert_allclose(np.diagonal(imbalance(network)), 4 * balance, atol=1e-14)
    ntk = lnsim.ntk_init(6, 8, 1, outputs=outputs)
    np.testing.assert_array_equal(network.W, 2.0 * ntk.W)
    directions = [each.A / np.linalg.norm(each.A, axis=0) for each in (network, ntk)]
    np.testing.assert_allclose(*directions, atol=1e-14)


@pytest.mark.parametrize("start", ["ntk", "mean-field", "small", "balanced", "unbalanced"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_relu_takes_the_weights_of_the_linear_network(start, activation):
    setting = {"outputs": 3, "start": start, "scale": 0.7, "balance": 0.0}
    relu = lnsim.relu_init(4, 5, 6, activation=activation, **setting)
    linear = lnsim.ntk_init(4, 5, 6, **setting)
    np.testing.assert_array_equal(relu.W, linear.W)
    np.testing.assert_array_equal(relu.A, linear.A)
    assert relu.activation == activation


def test_deep_ntk():
    network = lnsim.deep_init(300, [200, 100], 50, 1, scale=2.0)
    assert [W.shape for W in network.weights] == [(200, 300), (100, 200), (50, 100)]
    for W in network.weights:
        assert W.var() == pytest.approx(4.0 / W.shape[1], rel=0.1)
    other = lnsim.deep_init(300, [200, 100], 50, 2)
    assert not np.array_equal(2 * other.weights[0], network.weights[0])


@pytest.mark.parametrize("residual", [False, True])
def test_deep_identity(residual):
    network = lnsim.deep_init(3, [4, 4], 2, scale=0.5, start="identity", residual=residual)
    for W in network.weights:
        np.testing.assert_array_equal(W, 0.5 * np.eye(*W.shape))
    assert network.skips == ((False, True, False) if residual else (False,) * 3)
    # The square hidden layer is 0.5 I, or I + 0.5 I with its skip.
    expected = 0.5 * (1.5 if residual else 0.5) * 0.5 * np.eye(2, 3)
    np.testing.assert_array_equal(network.predictor, expected)


@pytest.mark.parametrize("sizes", [(3, (5, 4), 3), (5, (7, 2, 6), 4), (4, (), 6), (6, (6,), 1)])
def test_deep_balanced(sizes):
    dim, widths, outputs = sizes
    network = lnsim.deep_init(dim, widths, outputs, 2, scale=1.3, start="balanced")
    assert network.depth == len(widths) + 1
    for W, following in zip(network.weights, network.weights[1:], strict=False):
        np.testing.assert_allclose(following.T @ following, W @ W.T, atol=1e-14)
    rank = min(dim, *widths, outputs)
    for W, scale in (*((W, 1.3) for W in network.weights), (network.predictor, 1.3**network.depth)):
        singular = np.linalg.svd(W, compute_uv=False)
        np.testing.assert_allclose(singular[:rank], scale, rtol=1e-13)
        np.testing.assert_allclose(singular[rank:], 0.0, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "power", "u", "v", "beta"),
    [
        ("product", 2, 0.3, 0.0, 0.0),
        ("difference", 3, 0.3, 0.3, 0.0),
        ("square", 2, None, 0.3, 0.09),
    ],
)
def test_diagonal(form, power, u, v, beta):
    network = lnsim.diagonal_init(4, 0.3, form, power)
    if u is None:
        assert network.u is None
    else:
        np.testing.assert_array_equal(network.u, np.full(4, u))
    np.testing.assert_array_equal(network.v, np.full(4, v))
    np.testing.assert_allclose(network.beta, beta, rtol=1e-15)
    assert (network.form, network.power) == (form, power)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"dim": 2.5}, TypeError, "dim must be an integer, got 2.5"),
        ({"outputs": 0}, ValueError, "outputs must be at least 1, got 0"),
        ({"start": "identity"}, ValueError, "start must be one of balanced, .*, got 'identity'"),
        ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ({"scale": [1.0, 2.0]}, TypeError, "scale must be one number, got"),
        ({"balance": np.nan}, ValueError, "balance must be finite, got nan"),
        ({"start": "balanced", "balance": -1.5}, ValueError, "balance must be at least -1, got"),
        (
            {"start": "balanced", "balance": 1.0, "outputs": 2},
            ValueError,
            "balance must be 0 for m = 3 neurons, d = 4 inputs and C = 2 outputs",
        ),
        (
            {"start": "balanced", "balance": -0.5, "dim": 2},
            ValueError,
            "needs m <= d and m <= C",
        ),
        (
            {"start": "unbalanced", "balance": -50.0},
            ValueError,
            r"balance must be at least -\d.*, minus the least \|w_i\|\^2, got -50",
        ),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
@pytest.mark.parametrize("init", [lnsim.ntk_init, lnsim.relu_init])
def test_two_layer_start_is_refused(init, arguments, error, message):
    with pytest.raises(error, match=message):
        init(**{"width": 3, "dim": 4, "outputs": 3} | arguments)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of erf, relu, got 'tanh'"):
        lnsim.relu_init(3, 4, activation="tanh")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"widths": [3, 0]}, ValueError, "width must be at least 1, got 0"),
        ({"widths": 3}, TypeError, "widths must be a sequence of integers, got 3"),
        ({"widths": "33"}, TypeError, "widths must be a sequence of integers, got '33'"),
        ({"outputs": -1}, ValueError, "outputs must be at least 1, got -1"),
        ({"start": "mean-field"}, ValueError, "start must be one of balanced, identity, ntk, got"),
        ({"scale": np.nan}, ValueError, "scale must be finite, got nan"),
        ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ({"scale": np.ones(3)}, TypeError, "scale must be one number, got"),
        ({"widths": [3, 5], "residual": True}, ValueError, r"weights\[1\] must be square for a"),
    ],
)
def test_deep_start_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lnsim.deep_init(**{"dim": 3, "widths": [3, 3]} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"scale": np.inf}, ValueError, "scale must be finite, got inf"),
        ({"scale": [0.1, 0.2]}, TypeError, "scale must be one number, got"),
        ({"form": "sum"}, ValueError, "form must be one of difference, product, square, got 'sum'"),
        ({"form": "difference", "power": 0}, ValueError, "power must be at least 1, got 0"),
    ],
)
def test_diagonal_start_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lnsim.diagonal_init(**{"dim": 2} | arguments)


@pytest.mark.parametrize("start", ["ntk", "mean-field", "small"])
def test_a_balance_that_a_start_does_not_have_is_refused(start):
    with pytest.raises(ValueError, match=f"balance must be 0 for the start '{start}', got 0.5"):
        lnsim.ntk_init(4, 3, start=start, balance=0.5)


def test_a_balanced_start_has_no_skips():
    with pytest.raises(ValueError, match="start must be 'ntk' or 'identity' with skips"):
        lnsim.deep_init(3, (3, 3), 3, start="balanced", residual=True)
