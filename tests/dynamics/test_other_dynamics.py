"""GD, SAM, the oscillation simulation, alternation, the linearised twin and the norm ledger."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lnsim
import naive

pytestmark = pytest.mark.small


@st.composite
def cases(draw):
    """(problem, network, settings) on both sides of every reduction."""
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**40))
    problem = lnsim.gaussian_regression(n, d, seed=seed, test_samples=5)
    network = lnsim.ntk_init(draw(st.sampled_from([1, 2, 5, 11, 24, 40])), d, seed=seed)
    return problem, network, {"seed": seed, "lr": draw(st.sampled_from([1e-3, 2e-2]))}


def relative(value, reference):
    return np.abs(value - reference).max() / max(np.abs(reference).max(), 1e-300)


def simulate(problem, network, dynamics, seed, steps=30, record_every=7, **more):
    return lnsim.simulate(
        problem, network, dynamics, steps=steps, record_every=record_every, seed=seed, **more
    )


@given(cases(), st.sampled_from([0.0, 0.05, 1.0]), st.sampled_from([0, 1, 3]), st.booleans())
def test_sam_is_the_two_explicit_passes(case, rho, batch, noisy):
    problem, network, setting = case
    sigma = 0.7 if noisy else 0.0
    noise = lnsim.LabelNoise(sigma) if noisy else None
    W, a = naive.sam(
        network.W, network.a, problem.X, problem.y, steps=30, rho=rho, sigma=sigma, batch=batch,
        noisy=noisy, **setting,
    )  # fmt: skip
    dynamics = lnsim.SAM(setting["lr"], rho, noise, batch_size=batch)
    for reduce in (None, False):
        run = simulate(problem, network, dynamics, setting["seed"], reduce=reduce)
        assert relative(run.final.W, W) < 1e-10
        assert relative(run.final.a, a) < 1e-10


@given(cases(), st.sampled_from([0, 1, 3]))
def test_sam_without_rho_is_sgd_bit_for_bit(case, batch):
    problem, network, setting = case
    noise = lnsim.LabelNoise(0.7)
    sam = lnsim.SAM(setting["lr"], 0.0, noise, batch_size=batch)
    sgd = lnsim.SGD(setting["lr"], noise, batch_size=batch)
    runs = [simulate(problem, network, rule, setting["seed"]) for rule in (sam, sgd)]
    for name, value in runs[0].arrays.items():
        np.testing.assert_array_equal(runs[1][name], value, err_msg=name)


@given(cases(), st.booleans())
def test_gradient_descent(case, noisy):
    problem, network, setting = case
    dynamics = lnsim.GD(setting["lr"], lnsim.LabelNoise(0.7) if noisy else None)
    W, a = naive.sam(
        network.W, network.a, problem.X, problem.y, steps=30, rho=0.0, sigma=0.7, batch=0,
        noisy=noisy, **setting,
    )  # fmt: skip
    run = simulate(problem, network, dynamics, setting["seed"])
    assert relative(run.final.W, W) < 1e-10
    assert relative(run.final.a, a) < 1e-10


@given(cases(), st.sampled_from([None, 1, 4, 7]))
def test_oscillation_with_and_without_windows(case, period):
    problem, network, setting = case
    dynamics = lnsim.Oscillation(setting["lr"], amplitude=0.3)
    if period is not None:
        dynamics = lnsim.Alternating(dynamics, period)
    start = simulate(problem, network, dynamics, setting["seed"], steps=0)
    assert set(np.unique(np.abs(start.final.a))) <= {0.0, 0.3}
    W, a, _ = naive.oscillation(
        network.W, start.final.a, problem.X, problem.y, steps=30, amplitude=0.3, period=period,
        **setting,
    )  # fmt: skip
    run = simulate(problem, network, dynamics, setting["seed"])
    assert relative(run.final.W, W) < 1e-10
    np.testing.assert_allclose(run.final.a, a, atol=1e-12)


@given(cases(), st.integers(1, 9), st.sampled_from([1, 3, 0]))
def test_alternating_label_noise_consumes_the_draws_it_does_not_use(case, period, batch):
    problem, network, setting = case
    noise = lnsim.LabelNoise(0.7)
    dynamics = lnsim.Alternating(lnsim.SGD(setting["lr"], noise, batch_size=batch), period)
    run = simulate(problem, network, dynamics, setting["seed"], steps=20)
    W, a = network.W, network.a
    draws = problem.samples if batch == 0 else batch
    stream = naive.words(setting["seed"], 0, 20 * draws)
    for t in range(20):
        sigma = 0.7 if (t // period) % 2 == 0 else 0.0
        samples, labels = naive.noisy_labels(stream, t, batch, problem.y, sigma, "rademacher")
        grad_W, grad_a = naive.gradient(W, a, problem.X, samples, labels)
        W, a = W - setting["lr"] * grad_W, a - setting["lr"] * grad_a
    assert relative(run.final.W, W) < 1e-10
    assert relative(run.final.a, a) < 1e-10


@given(
    cases(), st.sampled_from([0.0, 0.2]), st.sampled_from([0, 1, 3]),
    st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_the_linearised_twin(case, rho, batch, momentum, decay):
    problem, network, setting = case
    noise = lnsim.LabelNoise(0.7)
    if rho > 0.0:
        momentum = decay = 0.0
        dynamics = lnsim.SAM(setting["lr"], rho, noise, batch_size=batch)
    else:
        dynamics = lnsim.SGD(setting["lr"], noise, batch, momentum, decay)
    run = simulate(problem, network, dynamics, setting["seed"])
    theta = naive.linearized(
        network.W, network.a, problem.X, problem.y, steps=30, rho=rho, sigma=0.7, batch=batch,
        momentum=momentum, decay=decay, **setting,
    )  # fmt: skip
    for name, X, y in (
        ("linearized_train_loss", problem.X, problem.y),
        ("linearized_test_loss", problem.X_test, problem.y_test),
    ):
        expected = np.mean((X @ theta - y) ** 2) / 2
        assert run[name][-1] == pytest.approx(expected, rel=1e-8, abs=1e-14)


@given(cases(), st.sampled_from([0, 1, 3]), st.sampled_from([None, False]))
def test_the_norm_ledger_is_the_exact_identity(case, batch, reduce):
    problem, network, setting = case
    dynamics = lnsim.SGD(setting["lr"], lnsim.LabelNoise(0.7), batch_size=batch)
    run = simulate(problem, network, dynamics, setting["seed"], ledger=True, reduce=reduce)
    removed, restored = naive.ledger(
        network.W, network.a, problem.X, problem.y, steps=30, sigma=0.7, batch=batch, **setting
    )
    np.testing.assert_allclose(run["ledger_removed"][-1], removed, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(run["ledger_restored"][-1], restored, rtol=1e-8, atol=1e-13)
    before = (network.W**2).sum(axis=1) - network.a**2
    after = (run.final.W**2).sum(axis=1) - run.final.a**2
    error = after - (before - run["ledger_removed"][-1] + run["ledger_restored"][-1])
    assert np.abs(error).max() < 1e-10 * np.abs(before).max()


def test_the_ledger_does_not_depend_on_rings_records_or_resuming(monkeypatch):
    problem, network = lnsim.gaussian_regression(20, 4), lnsim.ntk_init(30, 4)
    dynamics = lnsim.SGD(1e-2, lnsim.LabelNoise(1.0))
    from lnsim.models import ledger

    monkeypatch.setattr(ledger, "LENGTH", 16)

    def run(**more):
        return simulate(problem, network, dynamics, 3, **({"steps": 100, "ledger": True} | more))

    whole = run(record_every=30)
    for other in (
        run(record_every=1),
        run(record_every=30, resume=run(steps=47, record_every=30)),
    ):
        for name in ("ledger_removed", "ledger_restored"):
            np.testing.assert_array_equal(other[name][-1], whole[name][-1], err_msg=name)


def test_lemma_3_shares_by_hand():
    problem, network = lnsim.gaussian_regression(6, 3), lnsim.ntk_init(5, 3)
    sigma, hits = 0.8, []
    for i in range(6):
        for noise in (-sigma, sigma):
            x = problem.X[i]
            r = network.a @ network.W @ x - problem.y[i] - noise
            hits += [
                -(r**2) * ((x @ w) ** 2 - a**2 * (x @ x))
                for w, a in zip(*vars(network).values(), strict=True)
            ]
    run = simulate(
        problem, network, lnsim.SGD(1e-3, lnsim.LabelNoise(sigma)), 0, steps=0, ledger=True
    )
    assert run["lemma_3_nonpositive"][0] == pytest.approx(np.mean(np.array(hits) <= 0))
    expected = np.mean(np.array(hits) <= -((sigma / 4) ** 2))
    assert run["lemma_3_decrease"][0] == pytest.approx(expected)


def test_the_chain_has_the_stated_frequencies():
    m, steps = 3000, 8
    problem, network = lnsim.gaussian_regression(5, 2), lnsim.ntk_init(m, 2)
    run = simulate(
        problem, network, lnsim.Oscillation(1e-6, 0.5), 1, steps=steps, record_every=1, tracked=m
    )
    states = run["tracked_second_layer"]
    assert set(np.unique(states)) == {-0.5, 0.0, 0.5}
    active = states != 0.0
    assert (active[1:] != active[:-1]).all()
    # 4 standard errors of a share of one half among m neurons.
    assert abs(active[0].mean() - 0.5) < 2 / np.sqrt(m)
    for t in range(1, steps):
        positive = states[t][active[t]] > 0
        assert abs(positive.mean() - 0.5) < 2 / np.sqrt(positive.size)


@pytest.mark.parametrize("backend_dynamics", [
    lnsim.GD(np.array([1e-2, 2e-2]), lnsim.LabelNoise(0.5)),
    lnsim.SAM(1e-2, np.array([0.0, 0.3])),
    lnsim.Oscillation(1e-2, 0.3),
    lnsim.Alternating(lnsim.Oscillation(1e-2, 0.3), 6),
])  # fmt: skip
def test_replicas_of_other_dynamics(backend_dynamics):
    problem, network = lnsim.gaussian_regression(6, 4), lnsim.ntk_init(9, 4)
    both = simulate(problem, network, backend_dynamics, 5, replicas=2)
    base = backend_dynamics.at(0)[0]
    if isinstance(base, lnsim.GD):
        first = lnsim.GD(base.lr[0], base.noise)
    elif isinstance(base, lnsim.SAM):
        first = lnsim.SAM(base.lr, base.rho[0])
    else:
        first = backend_dynamics
    alone = simulate(problem, network, first, 5)
    np.testing.assert_array_equal(both["final_W"][0], alone.final.W)
    np.testing.assert_array_equal(both["linearized_train_loss"][0], alone["linearized_train_loss"])
    assert not np.array_equal(both["final_W"][0], both["final_W"][1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lnsim.SAM(1e-3, -0.1), "rho must be"),
        (lambda: lnsim.SAM(1e-3, np.nan), "rho must be"),
        (lambda: lnsim.Oscillation(1e-3, 0.0), "amplitude must be"),
        (lambda: lnsim.Oscillation(0.0), "lr must be"),
        (lambda: lnsim.Alternating(lnsim.GD(1e-3), 0), "period must be at least 1"),
        (lambda: lnsim.GD(-1.0), "lr must be"),
    ],
)
def test_bad_values_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_what_does_not_go_together_is_refused():
    problem, network = lnsim.gaussian_regression(6, 4), lnsim.ntk_init(9, 4)
    for dynamics in (
        lnsim.SAM(1e-3, 0.1),
        lnsim.Oscillation(1e-3),
        lnsim.SGD(1e-3, momentum=0.5),
        lnsim.SGD(1e-3, weight_decay=0.5),
    ):
        with pytest.raises(ValueError, match="ledger covers SGD and GD"):
            simulate(problem, network, dynamics, 0, ledger=True)
    with pytest.raises(ValueError, match="amplitude must be one number"):
        simulate(problem, network, lnsim.Oscillation(np.array([1e-3, 2e-3])), 0, replicas=2)
    with pytest.raises(TypeError, match="dynamics must be"):
        simulate(problem, network, "sgd", 0)
    with pytest.raises(TypeError, match="dynamics must be"):
        lnsim.Alternating("sgd")
