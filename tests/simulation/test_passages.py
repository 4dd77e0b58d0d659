"""A run of which a summary is kept: what it has is that of the whole run, and its times are too."""

import numpy as np
import pytest

import lnsim
from lnsim.run.phases import SHARES, level
from lnsim.simulation.passages import Passages

LR, SIGMA = np.array([0.02, 0.03, 0.06, 100.0]), np.array([4.0, 4.0, 0.0, 4.0])


def run(dynamics, samples=30, *, summary, **options):
    problem = lnsim.gaussian_regression(samples, 4, seed=1, test_samples=10)
    network = lnsim.ntk_init(20, 4, seed=1)
    return lnsim.simulate(
        problem, network, dynamics, steps=options.pop("steps", 6000), record_every=40,
        linearized=False, tracked=0, clouds=False, summary=summary, **options,
    )  # fmt: skip


@pytest.mark.small
@pytest.mark.parametrize("samples", [30, 3])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_a_summary_has_the_phases_and_the_ends_of_the_whole_run(samples, decay):
    dynamics = lnsim.SGD(LR, lnsim.LabelNoise(SIGMA), weight_decay=decay)
    full, short = (
        run(dynamics, samples, summary=summary, replicas=4, steps=480) for summary in (False, True)
    )
    assert (full["diverged_at"] >= 0).tolist() == [False, False, False, True]
    for name, values in full.arrays.items():
        if name == "norm_squared":
            np.testing.assert_allclose(short[name], values, rtol=1e-13)
        elif values.shape != (4, full.steps.size):
            np.testing.assert_array_equal(short[name], values, err_msg=name)
        else:
            np.testing.assert_array_equal(short[name][:, [0, -1]], values[:, [0, -1]], name)
            kept = ~np.isnan(short[name])
            assert kept[:, 1:-1].sum() == 0 or name == "cosine_mean"
            np.testing.assert_array_equal(short[name][kept], values[kept], err_msg=name)
    for one, other in zip(vars(full.phases()).values(), vars(short.phases()).values(), strict=True):
        np.testing.assert_allclose(one[:3], other[:3], rtol=1e-9)


def test_cosines_are_computed_at_few_records_and_where_they_pass_the_levels():
    dynamics = lnsim.SGD(LR[:3], lnsim.LabelNoise(SIGMA[:3]))
    full, short = (run(dynamics, summary=summary, replicas=3) for summary in (False, True))
    phases = full.phases()
    assert np.isfinite(phases.convergence[:2]).all() and np.isnan(phases.alignment[2])
    np.testing.assert_array_equal(short.phases().alignment, phases.alignment)
    np.testing.assert_array_equal(short.phases().convergence, phases.convergence)
    computed = ~np.isnan(short["cosine_mean"])
    assert computed.mean() < 0.3
    for whole, some in zip(full["cosine_mean"], computed, strict=True):
        for share in SHARES:
            above = np.flatnonzero(whole >= level(whole[0], share))
            assert not above.size or some[above[0] - 1 : above[0] + 1].all()


@pytest.mark.small
def test_what_is_not_computed_is_below_the_bound(monkeypatch):
    """The cosine of every record, beside the bound from the last one that was computed."""
    bounds = []
    highest = Passages._highest

    def noted(self, replicas, W, scale):
        bound = highest(self, replicas, W, scale)
        bounds.append(np.full(2, np.nan))
        bounds[-1][replicas] = bound
        return bound

    monkeypatch.setattr(Passages, "_highest", noted)
    dynamics = lnsim.SGD(LR[:2], lnsim.LabelNoise(SIGMA[:2]), weight_decay=1e-3)
    full, _ = (run(dynamics, 3, summary=each, replicas=2, steps=480) for each in (False, True))
    known = np.array(bounds).T
    assert np.isfinite(known).sum() > 20
    cosines = full["cosine_mean"][:, 1:]
    assert (cosines <= known)[~np.isnan(known)].all()


@pytest.mark.small
def test_a_summary_is_of_a_run_from_start_to_end():
    with pytest.raises(ValueError, match="summary must be False for a run that is stopped"):
        run(lnsim.SGD(0.02), summary=True, stop=lambda: False)


@pytest.mark.small
def test_other_models_have_both_series_at_every_record():
    problem = lnsim.gaussian_regression(30, 4, seed=1, test_samples=10)
    model = lnsim.ReLUNetwork(np.full((3, 4), 0.1) + np.eye(3, 4), np.full(3, 0.3))
    full, short = (
        lnsim.simulate(
            problem, model, lnsim.SGD(0.01), steps=100, record_every=10, clouds=False, tracked=0,
            summary=summary, measures="sharpness",
        )
        for summary in (False, True)
    )  # fmt: skip
    for name in ("norm_squared", "cosine_mean", "sharpness"):  # Lanczos goes from record to record
        np.testing.assert_array_equal(short[name], full[name], err_msg=name)
    np.testing.assert_array_equal(short["train_loss"][[0, -1]], full["train_loss"][[0, -1]])
    assert np.isnan(short["train_loss"][1:-1]).all()
