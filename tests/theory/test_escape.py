"""The theory of escape against replicas, brute force and limits in which it is exact."""

import math

import numpy as np
import pytest

import lnsim
from lnsim.simulation.snapshots import watch_steps
from lnsim.theory import cloud, escape
from lnsim.theory.displacement import Displacements
from lnsim.theory.passage import Law, Watch
from lnsim.theory.setting import Setting
from tests import naive_escape as naive


def start(width, dim, samples=200):
    return lnsim.gaussian_regression(samples, dim), lnsim.ntk_init(width, dim)


def dynamics(lr, sigma):
    return lnsim.SGD(lr, lnsim.LabelNoise(sigma))


def replicas(problem, network, rule, steps, count, **options):
    return lnsim.simulate(
        problem, network, rule, steps=steps, record_every=options.pop("record_every", steps),
        replicas=count, linearized=False, tracked=0, clouds=False, measures="none", **options,
    )  # fmt: skip


def never(escapes):
    """Escapes, infinite in place of -1."""
    return np.where(escapes < 0, np.inf, escapes)


# Against simulation


@pytest.mark.parametrize(
    ("sigma", "width", "dim", "steps", "band"),
    [
        (8.0, 300, 5, 6_000, (0.97, 1.03)),  # the mean course
        (4.0, 300, 20, 12_000, (0.93, 1.05)),  # much of |D|^2 is diffusion
        (8.0, 1000, 20, 1_000, (0.90, 1.06)),  # the loss amplifies itself
        (4.0, 300, 50, 8_000, (0.85, 1.15)),  # many leave while the labels are fitted
    ],
)
def test_median_over_replicas(sigma, width, dim, steps, band):
    """All neurons of a replica share its noise: their shift is known to `error`."""
    problem, network = start(width, dim)
    rule, count = dynamics(1e-3, sigma), 256
    measured = never(replicas(problem, network, rule, steps, count)["lazy_escape"])
    predicted = never(escape.predict(problem, network, rule, steps).median)
    medians = np.median(measured, axis=0)
    both = np.isfinite(medians) & np.isfinite(predicted)
    assert both.mean() > 0.95
    ratio = predicted[both] / medians[both]
    shift = np.log(np.median(measured[:, both] / medians[both], axis=1))
    error = 1.25 * np.std(shift) / math.sqrt(count)
    assert error < 0.025
    assert abs(np.median(ratio) - 1) < 0.04 + 2 * error
    low, high = np.quantile(ratio, [0.05, 0.95])
    assert band[0] - 2 * error < low < high < band[1] + 2 * error


def test_lazy_fraction():
    """At the time itself, to four standard errors of 64 replicas and one in a hundred."""
    problem, network = start(300, 20)
    rule, times = dynamics(1e-3, 4.0), np.arange(0, 9000, 1000)
    run = replicas(problem, network, rule, 8000, 64, record_every=1000)
    measured = run["lazy_fraction"]
    predicted = escape.lazy_fraction(problem, network, rule, times)
    error = measured.std(axis=0) / 8
    assert np.all(np.abs(predicted - measured.mean(axis=0)) < 4 * error + 0.01)
    assert predicted[0] == 1
    assert predicted[-1] < 0.2


def test_law_of_the_displacement():
    """Mean and mean square against 400 replicas of the naive product, at three times.

    The mean square over neurons is known to 2%, as its replicas are independent.
    """
    problem, network = start(60, 8, samples=100)
    lr, sigma, at = 4e-3, 2.0, [16, 90, 512]
    nets = naive.products(
        problem.X, problem.theta_star, network.W, network.a, lr=lr, sigma=sigma, steps=512, at=at,
        replicas=400,
    )  # fmt: skip
    D = nets[..., :-1] - network.W
    mean = escape._mean(
        Setting.of(problem, network, dynamics(lr, sigma)), np.array(at, dtype=float)
    )
    for k, time in enumerate(path := Displacements(mean, np.array(at, dtype=float))):
        law = path.law(np.arange(60))
        assert time == at[k]
        squares = np.sum(D[k] ** 2, axis=2).mean(axis=1)
        error = squares.std() / math.sqrt(len(squares)) / squares.mean()
        assert law.mean_square.mean() == pytest.approx(squares.mean(), rel=0.06 + 3 * error)
        fluctuation = np.sum(np.var(D[k], axis=0), axis=1).mean()
        assert (law.mean_square - law.size**2).mean() == pytest.approx(fluctuation, rel=0.15)


# Its parts


def test_looks_are_those_of_the_watch():
    for steps in (1, 7, 100, 12_345, 2_000_000):
        assert escape.looks_of(steps) == [t for t in watch_steps(steps) if t <= steps]
        assert escape.looks_of(steps) == naive.looks(steps)


def test_area_of_a_path_that_forgets():
    """rho of the derivation is exact in the rates: 20,000 replicas know a variance to 1%."""
    rates, variances = np.array([0.05, 0.2, 0.4]), np.array([1.0, 2.0, 0.5])
    steps = 400
    areas = naive.area(rates, variances, steps=steps, replicas=20_000)
    forgets = 2 * rates - rates**2
    rho = np.outer(forgets, forgets) / (2 * (rates[:, None] + rates - np.outer(rates, rates)))
    expected = rho * np.outer(variances, variances)
    np.testing.assert_array_equal(areas, -areas.transpose(0, 2, 1))
    i, j = np.triu_indices(3, 1)
    measured = (areas**2).mean(axis=0)[i, j] / steps
    # what is bounded, y_i y_j/(...), adds a term of the order of one relaxation, 20 in 400 steps
    np.testing.assert_allclose(measured, expected[i, j], rtol=0.06)
    pairs = areas[:, i, j]
    assert np.abs(np.corrcoef(pairs.T) - np.eye(3)).max() < 0.03


def test_area_of_one_neuron():
    """_area against the sum over pairs of its docstring."""
    problem, network = start(40, 4, samples=30)
    at = np.array([200.0])
    path = Displacements(escape._mean(Setting.of(problem, network, dynamics(2e-3, 2.0)), at), at)
    next(iter(path))
    rng = np.random.default_rng(0)
    axes, rates = rng.standard_normal((4, 4)), np.array([0.01, 0.03, 0.1, 0.2])
    along, trace = path._area(axes, rates)
    w, a, e, theta = path.w[7], path.a[7], path.e[7], path.mean.target
    V = np.zeros((4, 4))
    for i in range(4):
        for j in range(i):
            Omega = np.outer(axes[:, i], axes[:, j]) - np.outer(axes[:, j], axes[:, i])
            v = w @ Omega + a * np.linalg.solve(path.A, Omega @ theta)
            h, b = 2 * rates - rates**2, rates
            V += h[i] * h[j] / (2 * (b[i] + b[j] - b[i] * b[j])) * np.outer(v, v)
    assert along[7] == pytest.approx(e @ V @ e)
    assert trace[7] == pytest.approx(V.trace())


def test_excess_of_the_fourth_moment():
    """E[v^2] against delta at frozen A; 400 replicas of 2,000 steps know it to some 1%."""
    problem, network = start(150, 5)
    A = network.W.T @ network.W + network.a @ network.a * np.eye(5)
    lr, at = 2e-3, np.array([4000.0])
    path = Displacements(escape._mean(Setting.of(problem, network, dynamics(lr, 1.0)), at), at)
    next(iter(path))
    path._fit_ends = 10**6  # so that A and C are those of the end of the fit
    excess, _, _ = path._memory_of_loss()
    delta = naive.frozen(problem.X, A, lr=lr, sigma=1.0, steps=4000, replicas=400)
    u = np.einsum("tsd,de,tse->ts", delta, np.linalg.inv(A), delta)
    C = np.einsum("tsd,tse->de", delta, delta) / u.size
    inverse = np.linalg.inv(A)
    normal = np.trace(inverse @ C) ** 2 + 2 * np.trace(inverse @ C @ inverse @ C)
    assert (u**2).mean() / normal - 1 == pytest.approx(excess, abs=0.03)
    assert excess < -0.07


def test_excess_is_infinite_where_the_loss_has_no_variance():
    problem, network = start(4000, 5)
    out = escape.predict(problem, network, dynamics(3e-4, 8.0), 3000)
    assert out.excess == math.inf


def test_watch_of_a_mean_without_fluctuation():
    """It interpolates as the record does."""
    steps = naive.looks(500)
    sizes = np.array([[0.01 * t, 0.003 * t, 0.0001 * t] for t in steps])
    watch = Watch(3, 1.0, dimensions=4)
    zero = np.zeros(3)
    for step, size in zip(steps, sizes, strict=True):
        of = watch.waiting
        watch.look(step, Law(size[of], *[zero[of]] * 5), memory=0.5)
    expected = naive.escapes(sizes, steps, 1.0)
    np.testing.assert_allclose(watch.median(), expected)
    assert math.isinf(expected[2])


def test_watch_of_fluctuating_paths():
    """Against 20,000 paths in 6 dimensions; the fixed paths know a median to 7% of the spread."""
    rng = np.random.default_rng(0)
    steps, dims, count = naive.looks(4000), 6, 20_000
    drift, diffusion, fast = 1 / 1500, 4e-5, 0.01
    slow, path, before = np.zeros((count, dims)), [], 0
    for step in steps:
        slow += math.sqrt(diffusion * (step - before)) * rng.standard_normal(slow.shape)
        D = slow + math.sqrt(fast) * rng.standard_normal(slow.shape)
        D[:, 0] += drift * step
        path.append(np.linalg.norm(D, axis=1))
        before = step
    expected = naive.escapes(np.stack(path), steps, 1.0)
    watch, one = Watch(1, 1.0, dims), np.ones(1)
    for step in steps:
        parts = diffusion * step, diffusion * step * (dims - 1), fast, fast * (dims - 1), 0
        watch.look(step, Law(drift * step * one, *[part * one for part in parts]), memory=0.0)
        if not watch.waiting.size:
            break
    low, middle, high = np.quantile(expected, [0.16, 0.5, 0.84])
    assert watch.median()[0] == pytest.approx(middle, abs=0.15 * (high - low) / 2)


def test_watch_of_a_skewed_variable():
    """A gamma process alone, whose median is known; its skewness is 0.6 at the passage."""
    from scipy.stats import gamma

    steps, scale = naive.looks(4000), 0.09
    watch, one = Watch(1, 1.0, dimensions=1), np.ones(1)
    for step in steps:
        mean = step / 1000
        variance, third = scale * mean, 2 * scale**2 * mean
        law = Law(mean * one, variance * one, 0 * one, 0 * one, 0 * one, third * one)
        watch.look(step, law, memory=0.0)
        if not watch.waiting.size:
            break
    # of |D| at a time; passages are interpolated, which moves the median by less than 1%
    expected = next(t for t in range(500, 2000) if gamma(t / 1000 / scale, 0, scale).median() > 1)
    assert 1020 < expected < 1040
    assert watch.median()[0] == pytest.approx(expected, rel=0.015)


# Invariances, limits, errors


def test_dimensions_without_data_change_nothing():
    problem, network = start(50, 4, samples=40)
    X = np.column_stack([problem.X, np.zeros((40, 2))])
    theta_star = np.append(problem.theta_star, [0.3, -0.2])
    wide = lnsim.Problem(X, problem.y, theta_star)
    W = np.column_stack([network.W, np.ones((50, 2))])
    rule = dynamics(2e-3, 4.0)
    expected = escape.predict(problem, network, rule, 20_000).median
    other = escape.predict(wide, lnsim.Network(W, network.a), rule, 20_000).median
    np.testing.assert_allclose(other, expected, rtol=1e-3)


def test_with_hardly_any_noise_neurons_leave_by_the_fit_alone():
    """The samples' noise at a small step leaves the ratio within 5%, of 32 replicas."""
    problem, network = start(300, 50)
    rule, steps = dynamics(1e-4, 0.01), 40_000
    measured = np.median(never(replicas(problem, network, rule, steps, 32)["lazy_escape"]), axis=0)
    predicted = never(escape.predict(problem, network, rule, steps).median)
    both = np.isfinite(measured) & np.isfinite(predicted)
    assert 0.2 < both.mean() < 0.8
    assert np.mean(np.isfinite(measured) == np.isfinite(predicted)) > 0.97
    assert np.median(predicted[both] / measured[both]) == pytest.approx(1, abs=0.05)


def test_law_of_the_noise():
    """A law of larger fourth moment spreads the escapes, and hardly moves their medians."""
    problem, network = start(200, 5)
    medians = {
        law: escape.predict(
            problem, network, lnsim.SGD(1e-3, lnsim.LabelNoise(4.0, law=law)), 20_000
        ).median
        for law in ("rademacher", "gaussian")
    }
    both = (medians["rademacher"] > 0) & (medians["gaussian"] > 0)
    ratio = medians["gaussian"][both] / medians["rademacher"][both]
    assert np.median(np.abs(ratio - 1)) < 0.02
    assert np.any(ratio != 1)


def test_later_than_the_last_step():
    problem, network = start(100, 5)
    late = escape.predict(problem, network, dynamics(1e-3, 4.0), 12_000).median
    later = escape.predict(problem, network, dynamics(1e-3, 4.0), 60_000).median
    assert 0 < np.mean(late < 0) < 1
    assert np.all(later[late > 0] > 0)
    assert np.all(late[late > 0] <= 12_000)


@pytest.mark.parametrize(
    ("rule", "steps", "match"),
    [
        (lnsim.SGD(1e-3, lnsim.LabelNoise(1.0), batch_size=2), 10, "one sample a step"),
        (lnsim.SAM(1e-3, 0.1), 10, "one sample a step"),
        (lnsim.SGD(1e-1, lnsim.LabelNoise(1.0)), 10, "too large"),
        (lnsim.SGD(1e-3, lnsim.LabelNoise(1.0)), 0, "steps"),
    ],
)
def test_refuses(rule, steps, match):
    problem, network = start(100, 5)
    with pytest.raises(ValueError, match=match):
        escape.predict(problem, network, rule, steps)


def test_times_must_ascend():
    problem, network = start(100, 5)
    with pytest.raises(ValueError, match="times must ascend"):
        escape.lazy_fraction(problem, network, dynamics(1e-3, 1.0), [2, 1])


def test_the_law_of_the_cloud_has_the_escapes():
    problem, network = start(60, 4)
    rule = dynamics(2e-3, 2.0)
    times = np.array([0.0, 100.0, 1000.0, 5000.0])
    prediction = cloud.predict(problem, network, rule, times)
    expected = escape.predict(problem, network, rule, 5000).median
    np.testing.assert_array_equal(prediction["lazy_escape"], expected)
    shares = escape.lazy_fraction(problem, network, rule, times)
    np.testing.assert_array_equal(prediction["lazy_fraction"], shares)
    assert shares[0] == 1.0
    assert "lazy_fraction" in prediction.names
    of_sam = cloud.predict(problem, network, lnsim.SAM(1e-3, 0.05), times)
    assert "lazy_fraction" not in of_sam.names
    with pytest.raises(KeyError, match="no prediction of 'lazy_escape'"):
        of_sam["lazy_escape"]
