"""The curvature of the loss at a single model, asked for outside a run."""

import numpy as np
import pytest

import lnsim

pytestmark = pytest.mark.small

PROBLEM = lnsim.gaussian_regression(20, 3)
NETWORK = lnsim.ntk_init(4, 3)


def test_the_eigenvector_belongs_to_the_largest_eigenvalue():
    loss = lnsim.Curvature(NETWORK, PROBLEM)
    largest, direction = loss.sharpness()
    dense = loss.dense()
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(dense)[-1], rtol=1e-12)
    np.testing.assert_allclose(dense @ direction, largest * direction, atol=1e-9 * largest)
    np.testing.assert_allclose(np.trace(dense), loss.trace, rtol=1e-12)


def test_the_same_call_gives_the_same_bits():
    first, again = (lnsim.Curvature(NETWORK, PROBLEM).sharpness() for _ in range(2))
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


def test_it_is_that_of_a_run():
    run = lnsim.simulate(PROBLEM, NETWORK, lnsim.GD(1e-2), steps=0, record_every=1, measures="all")
    loss = lnsim.Curvature(NETWORK, PROBLEM)
    assert run["sharpness"][0] == pytest.approx(loss.sharpness()[0], rel=1e-12)
    assert run["gradient_noise"][0] == pytest.approx(loss.noise, rel=1e-12)
    assert run["kernel_alignment"][0] == pytest.approx(loss.alignment, rel=1e-12)
    assert run["batch_sharpness"][0] == pytest.approx(loss.batch_sharpness(0, True), rel=1e-12)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lnsim.ntk_init(4, 2), "model must have 3 inputs, got 2"),
        (lnsim.ntk_init(4, 3, outputs=2), "model must have 1 outputs, got 2"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        lnsim.Curvature(network, PROBLEM)


@pytest.mark.parametrize("asked", ["dense", "spectrum"])
def test_a_hessian_that_is_too_large_is_refused_by_the_name_of_what_was_asked(asked):
    network = lnsim.ntk_init(3_000, 3)
    arguments = {"dense": (), "spectrum": (network.reduced(PROBLEM.X, hidden=False, inputs=False),)}
    says = f"^{asked} takes models of at most 6,000 parameters; this one has 12,000$"
    with pytest.raises(ValueError, match=says):
        getattr(lnsim.Curvature(network, PROBLEM), asked)(*arguments[asked])


@pytest.mark.parametrize(
    "network", [lnsim.ntk_init(100, 80), lnsim.ReLUNetwork(np.ones((100, 80)), np.ones((1, 100)))]
)
def test_its_spectrum_is_refused_before_the_first_step(network):
    problem, begun = lnsim.gaussian_regression(100, 80), []
    with pytest.raises(ValueError, match="hessian_spectrum takes reduced models of at most 6,000"):
        lnsim.simulate(
            problem, network, lnsim.GD(1e-3), steps=10, record_every=1,
            measures="hessian_spectrum", progress=begun.append,
        )  # fmt: skip
    assert begun == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("sharpnes", "measures has no 'sharpnes' for this model: did you mean 'sharpness'"),
        ("support", "measures has no 'support' for this model"),
        ("all,none", "measures must not have both 'all' and 'none', got"),
        (["none", "sharpness", "all"], "measures must not have both 'all' and 'none'"),
    ],
)
def test_measures_that_cannot_be_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        lnsim.simulate(PROBLEM, NETWORK, lnsim.GD(1e-2), steps=1, record_every=1, measures=asked)


def test_a_run_goes_on_however_its_measures_were_written(tmp_path):
    def run(asked, steps, **options):
        return lnsim.simulate(
            PROBLEM, NETWORK, lnsim.GD(1e-2), steps=steps, record_every=1, measures=asked, **options
        )

    run(("none", "sharpness"), 2).save(tmp_path)
    whole = run("none,sharpness", 4)
    for asked in ("none, sharpness", ["none", "sharpness"], ("none", "sharpness")):
        resumed = run(asked, 4, resume=lnsim.Trajectory.load(tmp_path))
        np.testing.assert_array_equal(resumed["sharpness"], whole["sharpness"])
        assert resumed.config == whole.config


def test_measures_are_names_in_a_text_or_a_sequence():
    def names(asked):
        run = lnsim.simulate(
            PROBLEM, NETWORK, lnsim.GD(1e-2), steps=1, record_every=1, measures=asked
        )
        return set(run.arrays)

    plain, usual = names("none"), names(())
    assert usual - plain == {
        "sharpness", "hessian_trace", "flatness_gap", "kernel_alignment", "effective_rank",
        "balancedness", "gradient_noise", "batch_sharpness",
    }  # fmt: skip
    assert names("none, sharpness") - plain == {"sharpness"} == names(["none", "sharpness"]) - plain
    spectrum = {"hessian_spectrum", "hessian_multiplicity"}
    assert names("hessian_spectrum") - usual == spectrum == names("all") - usual
    with pytest.raises(TypeError, match=r"measures must be names of measures, in a .*, got 3"):
        names(3)


@pytest.mark.parametrize("width", [5, 2_000])
def test_a_relu_network_none_of_whose_neurons_fires_has_no_curvature(width):
    """Its prediction is 0 all around, at whatever width."""
    X = np.abs(PROBLEM.X)
    network = lnsim.ReLUNetwork(np.full((width, 3), -1.0), np.ones((1, width)))
    loss = lnsim.Curvature(network, lnsim.Problem(X, PROBLEM.y))
    largest, direction = loss.sharpness()
    assert largest == 0.0 and np.linalg.norm(direction) == pytest.approx(1.0)


def test_a_start_that_the_hessian_takes_to_0_is_replaced():
    loss = lnsim.Curvature(NETWORK, PROBLEM)
    assert loss.sharpness(np.zeros(NETWORK.size))[0] == loss.sharpness()[0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda loss: loss.product(np.zeros(3)), r"v must have shape \(16,\)"),
        (lambda loss: loss.sharpness(np.zeros(17)), r"start must have shape \(16,\)"),
        (lambda loss: loss.batch_sharpness(-1, True), "size must be .*got -1"),
    ],
)
def test_what_does_not_fit_is_named(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(lnsim.Curvature(NETWORK, PROBLEM))
