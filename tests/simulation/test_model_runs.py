"""How runs of any model go: reduced, in replicas, in pieces, on schedules, at the edges."""

import numpy as np
import pytest
from test_models import DIM, MODELS, SAMPLES, agrees, data, deep, far, final, relu, run, two_layer

import lnsim
import naive_models as naive

NOISES = {
    "none": None,
    "label": lnsim.LabelNoise(0.5),
    "label, gaussian": lnsim.LabelNoise(0.5, "gaussian"),
    "flips": lnsim.LabelFlips(0.3),
    "gradient": lnsim.GradientNoise(0.3),
    "parameters": lnsim.ParameterNoise(0.02),
    "anticorrelated": lnsim.ParameterNoise(0.02, anticorrelated=True),
    "dropout": lnsim.Dropout(0.3),
    "all": (
        lnsim.LabelNoise(0.5), lnsim.GradientNoise(0.3), lnsim.Dropout(0.3),
        lnsim.ParameterNoise(0.02, anticorrelated=True),
    ),
}  # fmt: skip


def given_for(name, outputs=3):
    return data(outputs, classes=name == "flips")


def sides(trajectory):
    return set(trajectory.provenance["reduced"])


def reduced_and_dense(given, model, dynamics, steps=1000):
    small = run(given, model, dynamics, steps, reduce=True)
    dense = run(given, model, dynamics, steps, reduce=False)
    assert not sides(dense)
    assert far(final(dense), list(model.parameters.values())) > 1e-3
    assert far(final(small), final(dense)) < 1e-12
    return sides(small)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
@pytest.mark.parametrize(
    "dynamics",
    [
        lnsim.SGD(lr=0.01),
        lnsim.SGD(lr=0.002, batch_size=4, momentum=0.5, weight_decay=0.05),
        lnsim.SAM(lr=0.01, rho=0.02, batch_size=2),
        lnsim.SAM(lr=0.01, rho=0.02, normalized=False, layers="first", through="jacobian"),
        lnsim.SAM(
            lr=0.01, rho=0.02, batch_size=0, normalized=False, micro_batch=3, layers="second"
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("samples", "expected"), [(SAMPLES, {"hidden"}), (3, {"hidden", "inputs"})]
)
def test_a_reduced_network_of_many_outputs_is_the_dense_one(samples, expected, dynamics, loss):
    model, _ = two_layer(3, width=40)
    assert reduced_and_dense(data(3, loss, samples), model, dynamics) == expected


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("noise", [lnsim.LabelNoise(0.3), lnsim.LabelFlips(0.3)], ids=str)
def test_noise_on_labels_keeps_the_reduction(noise, batch):
    model, _ = two_layer(3, width=40)
    given = data(3, classes=True)
    assert reduced_and_dense(given, model, lnsim.SGD(0.005, noise, batch)) == {"hidden"}


@pytest.mark.parametrize("samples", [SAMPLES, 3])
@pytest.mark.parametrize("sizes", [(DIM, 20, 2), (DIM, 12, 30, 9, 2), (DIM, 3, 20, 2)])
def test_a_reduced_deep_network_is_the_dense_one(sizes, samples):
    model, _ = deep(sizes)
    model = lnsim.DeepLinear(tuple(0.6 * W for W in model.weights))
    given = data(2, samples=samples)
    sgd = lnsim.SGD(0.003, lnsim.LabelNoise(0.3), batch_size=2)
    expected = {"hidden"} | ({"inputs"} if samples < DIM else set())
    assert reduced_and_dense(given, model, sgd) == expected


@pytest.mark.parametrize("name", ["none", "dropout", "label"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_relu_network_keeps_the_input_side(activation, name):
    model, _ = relu(2, activation, width=12)
    given = data(2, samples=3)
    sgd = lnsim.SGD(0.01, NOISES[name], batch_size=2, weight_decay=0.02)
    assert reduced_and_dense(given, model, sgd) == {"inputs"}


@pytest.mark.parametrize("name", ["gradient", "parameters", "all"])
def test_gaussian_noise_on_weights_trains_dense(name):
    model, _ = two_layer(3, width=40)
    assert not sides(run(data(3, samples=3), model, lnsim.SGD(0.01, NOISES[name]), 5))


@pytest.mark.small
@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("replacement", [True, False])
def test_replicas_are_the_single_runs_of_their_seeds(name, replacement):
    """With a learning rate and a strength of their own, bit for bit."""
    model, given = two_layer(3)[0], given_for(name)
    rates, seeds = np.array([0.01, 0.02, 0.005]), [5, 2, 9]
    strengths = np.array([1.0, 0.5, 0.0])

    def sgd(lr, factor):
        noises = lnsim.SGD(1.0, NOISES[name]).noises
        return lnsim.SGD(
            lr, tuple(noise.scaled(factor) for noise in noises), 2, replacement=replacement
        )

    together = run(given, model, sgd(rates, strengths), 15, seed=seeds, reduce=False)
    for c in range(3):
        alone = run(given, model, sgd(rates[c], strengths[c]), 15, seed=seeds[c], reduce=False)
        for key, array in alone.final.parameters.items():
            assert np.array_equal(together[f"final_{key}"][c], array), (c, key)
        assert np.array_equal(together["train_loss"][c], alone["train_loss"])


@pytest.mark.small
@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("replacement", [True, False])
def test_a_run_in_pieces_is_the_whole_one_bit_for_bit(name, batch, replacement):
    model, given = two_layer(3)[0], given_for(name)
    sgd = lnsim.SGD(0.01, NOISES[name], batch, momentum=0.5, replacement=replacement)
    schedule = lnsim.Scheduled(sgd, lr=lnsim.WarmUp(11), noise=lnsim.Piecewise((5,), (1.0, 0.5)))
    whole = run(given, model, schedule, 17, record_every=1)
    for pieces in (4, 6):
        stopped = run(given, model, schedule, 17, record_every=1, stop=_after(pieces))
        assert stopped.status.code == "STOPPED"
        resumed = run(given, model, schedule, 17, record_every=1, resume=stopped)
        assert resumed.status.code == "OK"
        for key in ("train_loss", "norm_mean", "singular_values"):
            assert np.array_equal(resumed[key], whole[key])
        for key, array in whole.final.parameters.items():
            assert np.array_equal(resumed.final.parameters[key], array)


def _after(records):
    """A `stop` that says yes when it has been asked so often."""
    asked = iter(range(records))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("name", ["two-layer, C = 3", "product", "deep", "relu"])
def test_how_often_a_run_is_recorded_changes_no_bit(name):
    model = MODELS[name]()[0]
    sgd = lnsim.SGD(0.01, NOISES["all"], 2, replacement=False)
    given = data(model.outputs)
    often, once = (run(given, model, sgd, 40, record_every=n) for n in (3, 40))
    for key, array in once.final.parameters.items():
        assert np.array_equal(often.final.parameters[key], array)


FACTORS = {
    "piecewise": (lnsim.Piecewise((7, 20), (1.0, 0.5, 0.1)),
                  lambda t: 1.0 if t < 7 else 0.5 if t < 20 else 0.1),
    "warm-up": (lnsim.WarmUp(15), lambda t: min(1.0, (t + 1) / 15)),
    "cosine": (lnsim.Decay(25, 0.1),
               lambda t: 0.1 + 0.9 * (1 + np.cos(np.pi * min(1, t / 25))) / 2),
    "linear": (lnsim.Decay(25, 0.1, "linear"), lambda t: 1 - 0.9 * min(1, t / 25)),
    "exponential": (lnsim.Decay(25, 0.1, "exponential"), lambda t: 0.1 ** min(1, t / 25)),
}  # fmt: skip
STRENGTHS = {
    "label": (lnsim.LabelNoise(0.7), {"label": (0.7, "rademacher", None)}),
    "gradient": (lnsim.GradientNoise(0.5), {"on_gradient": 0.5}),
    "anticorrelated": (
        lnsim.ParameterNoise(0.02, anticorrelated=True),
        {"on_parameters": 0.02, "anticorrelated": True},
    ),
    "dropout": (lnsim.Dropout(0.4), {"dropout": 0.4}),
}


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize("name", STRENGTHS)
def test_schedules(name, kind):
    made, (noise, oracle), (factor, witness) = two_layer(3), STRENGTHS[name], FACTORS[kind]
    sgd = lnsim.SGD(0.03, noise, 2, momentum=0.5, weight_decay=0.1)
    options = {"lr": 0.03, "batch": 2, "momentum": 0.5, "decay": 0.1, **oracle}
    agrees(data(3), made, lnsim.Scheduled(sgd, lr=factor), lr_factor=witness, **options)
    agrees(data(3), made, lnsim.Scheduled(sgd, noise=factor), noise_factor=witness, **options)


def test_a_product_of_schedules_on_flips():
    made, given = two_layer(3), data(3, "cross-entropy")
    factors = (lnsim.WarmUp(10), lnsim.Piecewise((20,), (1.0, 0.2)))
    sgd = lnsim.Scheduled(lnsim.SGD(0.1, lnsim.LabelFlips(0.8)), lr=factors, noise=factors)

    def both(t):
        return min(1, (t + 1) / 10) * (1.0 if t < 20 else 0.2)

    flips = (0.8, "other", given.number, given.rows)
    agrees(given, made, sgd, lr=0.1, flips=flips, lr_factor=both, noise_factor=both)


@pytest.mark.small
def test_schedules_of_replicas_are_those_of_single_runs():
    """A factor of several is the product: none of them alone has to be in range."""
    model, given = two_layer(3)[0], data(3, "cross-entropy")
    pairs = [((1.0, 0.5), (1.0, 2.0)), ((0.5, 0.2), (3.0, 0.1))]  # of lr and noise, by replica
    sgd = lnsim.SGD(0.1, lnsim.LabelFlips(0.5))

    def schedule(lr, noise):
        half = lnsim.Piecewise((7,), (0.5, 0.5))
        return lnsim.Scheduled(
            sgd, lr=lnsim.Piecewise((7,), lr), noise=(lnsim.Piecewise((7,), noise), half)
        )

    columns = [
        tuple(map(np.array, zip(*column, strict=True))) for column in zip(*pairs, strict=True)
    ]
    together = run(given, model, schedule(*columns), 15, seed=[4, 1], reduce=False)
    for c, (seed, pair) in enumerate(zip([4, 1], pairs, strict=True)):
        if c == 1:
            with pytest.raises(ValueError, match="tau must be a probability"):
                lnsim.Scheduled(sgd, noise=lnsim.Piecewise((7,), pair[1]))
        alone = run(given, model, schedule(*pair), 15, seed=seed, reduce=False)
        assert np.array_equal(together["final_W"][c], alone.final.W)


@pytest.mark.parametrize("smooth", [False, True])
def test_schedules_of_the_scalar_network(smooth):
    """Piecewise constant ones train by its own kernels."""
    network = lnsim.Network(two_layer(1)[0].W, two_layer(1)[0].a[0])
    factor, witness = FACTORS["cosine" if smooth else "piecewise"]
    made = network, naive.TwoLayer()
    sgd = lnsim.Scheduled(lnsim.SGD(0.03, lnsim.LabelNoise(0.7), 2), lr=factor, noise=factor)
    agrees(
        data(1), made, sgd, lr=0.03, batch=2, label=(0.7, "rademacher", None), lr_factor=witness,
        noise_factor=witness,
    )  # fmt: skip


def test_alternating_noise_of_any_kind():
    made, given = MODELS["relu"](), data(3)
    sgd = lnsim.SGD(0.03, (lnsim.LabelNoise(0.7), lnsim.GradientNoise(0.5)), 2)
    agrees(
        given, made, lnsim.Alternating(sgd, 6), lr=0.03, batch=2, label=(0.7, "rademacher", None),
        on_gradient=0.5, noise_factor=lambda t: 1.0 - t // 6 % 2,
    )  # fmt: skip


@pytest.mark.small
@pytest.mark.parametrize("name", ["label", "flips", "gradient", "parameters", "anticorrelated",
                                  "dropout"])  # fmt: skip
def test_noise_of_strength_0_is_no_noise(name):
    """Up to its words: the samples drawn are those of the full batch."""
    model, given = two_layer(3)[0], given_for(name)
    noise = NOISES[name].scaled(0.0)
    none, zero = (
        run(given, model, lnsim.GD(0.02, each), 20, reduce=False) for each in (None, noise)
    )
    assert far(final(zero), final(none)) < 1e-14


@pytest.mark.small
def test_no_steps_are_the_start():
    for make in MODELS.values():
        model, _ = make()
        trajectory = run(data(model.outputs), model, lnsim.SGD(0.01), 0)
        assert trajectory.steps.tolist() == [0]
        assert far(final(trajectory), list(model.parameters.values())) < 1e-14


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_fewer_samples_than_dimensions(name, samples):
    made = MODELS[name]()
    agrees(data(made[0].outputs, samples=samples), made, lnsim.SGD(lr=0.02, batch_size=2),
           20, lr=0.02, batch=2)  # fmt: skip


def test_weight_decay_off_the_inputs_span_under_a_schedule():
    made, given = MODELS["relu"](), data(3, samples=2)
    sgd = lnsim.SGD(0.03, batch_size=2, weight_decay=0.5, momentum=0.3)
    agrees(given, made, sgd, lr=0.03, batch=2, decay=0.5, momentum=0.3)
    for kind in ("piecewise", "linear"):
        factor, witness = FACTORS[kind]
        agrees(given, made, lnsim.Scheduled(sgd, lr=factor), lr=0.03, batch=2, decay=0.5,
               momentum=0.3, lr_factor=witness)  # fmt: skip


@pytest.mark.small
def test_one_output_as_a_row_is_one_as_a_vector():
    given, (row, _) = data(1), two_layer(1)
    vector = lnsim.Network(row.W, row.a[0])
    sgd = lnsim.SGD(0.03, lnsim.LabelNoise(0.7, "gaussian"), 2)
    runs = [run(given, model, sgd, 30) for model in (row, vector)]
    assert runs[0].final.a.shape == (1, 5) and runs[1].final.a.shape == (5,)
    assert far(final(runs[0]), final(runs[1])) < 1e-13
    for key in ("train_loss", "norm_mean", "interpolator_distance", "ntk_distance"):
        assert runs[0][key] == pytest.approx(runs[1][key], rel=1e-9)


def test_labels_of_one_column_are_labels():
    """(n, 1) and (n,) are the same problem, also where they are classes."""
    X, y = data(1).X, np.array([1.0, -1.0, 1.0] * 3)
    model, _ = two_layer(1)
    sgd = lnsim.SGD(0.03, lnsim.LabelFlips(0.4), 2)
    flat, column = (lnsim.simulate(lnsim.Problem(X, labels), model, sgd, steps=20, record_every=20)
                    for labels in (y, y[:, None]))  # fmt: skip
    assert far(final(column), final(flat)) == 0.0
    assert np.array_equal(column["train_accuracy"], flat["train_accuracy"])


@pytest.mark.small
@pytest.mark.parametrize("name", ["two-layer, C = 3", "product", "residual", "relu"])
def test_a_run_that_diverges_says_so_and_leaves_the_others(name):
    model = MODELS[name]()[0]
    rates = np.array([0.01, 1e3, 0.02])
    trajectory = run(data(model.outputs), model, lnsim.GD(rates), 60, replicas=3, record_every=1)
    assert trajectory.status.code == "OK"
    losses = trajectory["train_loss"]
    assert np.isfinite(losses[[0, 2]]).all() and np.isnan(losses[1, -1])
    assert run(data(model.outputs), model, lnsim.GD(1e3), 60).status.code == "DIVERGED"


@pytest.mark.small
def test_the_last_networks_of_a_run_that_diverges_warn_of_nothing():
    model, given = two_layer(2, width=1)[0], data(2, "cross-entropy")
    noises = (lnsim.LabelFlips(0.3), lnsim.Dropout(0.9))
    trajectory = run(given, model, lnsim.SGD(1e7, noises, 2, weight_decay=1e5), 20, replicas=2)
    assert trajectory.status.code in ("OK", "DIVERGED")


@pytest.mark.small
@pytest.mark.parametrize("batch", [1, 3, 0])
@pytest.mark.parametrize("noise", ["none", "label", "flips"])
def test_a_rule_of_ones_own_has_the_draws_of_sgd(noise, batch):
    made, given = MODELS["product"](), data(1, classes=noise == "flips")

    def rule(u, v, X, y, t):
        z = X.T @ (X @ (u * v) - y[:, 0]) / len(X)
        return u - 0.03 * v * z, v - 0.03 * u * z

    oracle = {
        "none": {},
        "label": {"label": (0.5, "rademacher", None)},
        "flips": {"flips": (0.3, "other", given.number, given.rows)} if noise == "flips" else {},
    }[noise]
    agrees(given, made, lnsim.CustomDynamics(rule, NOISES[noise], batch), lr=0.03, batch=batch,
           **oracle)  # fmt: skip


@pytest.mark.parametrize("name", ["product", "residual", "relu"])
def test_a_run_goes_on_from_its_file(name, tmp_path):
    model = MODELS[name]()[0]
    given = data(model.outputs)
    sgd = lnsim.SGD(0.01, NOISES["all"], 2, momentum=0.5, replacement=False)
    whole = run(given, model, sgd, 17, record_every=2)
    run(given, model, sgd, 17, record_every=2, stop=_after(4)).save(tmp_path / "run.npz")
    saved = lnsim.Trajectory.load(tmp_path / "run.npz")
    resumed = run(given, model, sgd, 17, record_every=2, resume=saved)
    for key, array in whole.final.parameters.items():
        assert np.array_equal(resumed.final.parameters[key], array)
    assert np.array_equal(resumed["train_loss"], whole["train_loss"])


def test_a_schedule_around_noise_that_alternates():
    made, (factor, witness) = two_layer(3), FACTORS["linear"]
    sgd = lnsim.Alternating(lnsim.SGD(0.03, lnsim.LabelNoise(0.7), 2), 6)
    agrees(
        data(3), made, lnsim.Scheduled(sgd, lr=factor, noise=lnsim.Piecewise((8,), (1.0, 0.5))),
        lr=0.03, batch=2, label=(0.7, "rademacher", None), lr_factor=witness,
        noise_factor=lambda t: (1.0 - t // 6 % 2) * (1.0 if t < 8 else 0.5),
    )  # fmt: skip


@pytest.mark.small
def test_class_numbers_and_signs_are_the_same_logistic_labels():
    model, given = two_layer(1)[0], data(1, "logistic")
    sgd = lnsim.SGD(0.1, lnsim.LabelFlips(0.3), 2)
    numbers = lnsim.Problem(given.X, given.number.astype(float), loss="logistic")
    ends = [
        lnsim.simulate(problem, model, sgd, steps=20, record_every=20).final.W
        for problem in (given.problem, numbers)
    ]
    assert np.array_equal(*ends)
