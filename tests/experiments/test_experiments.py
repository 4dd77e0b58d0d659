"""The synthetic experiments: their configurations, their effects, and their figures everywhere."""

import dataclasses
import inspect

import numpy as np
import pytest

from lnsim.base import config as configs
from lnsim.experiments import _synthetic, label_noise, label_noise_periodic, oscillation, sam
from lnsim.experiments.case import Case
from lnsim.figures import canvas
from lnsim.run import experiment as experiments
from lnsim.sweeps import dispatch
from lnsim.verdicts.reproduce import SYNTHETIC

TINY = {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 60, "record_every": 3}
EDGES = {
    "no step": {"steps": 0},
    "two records": {"steps": 5, "record_every": 5},
    "diverged": {"lr": 40.0, "record_every": 1},
    "few samples": {"samples": 2, "tracked": 0},
    "one neuron, one input, no noise": {"width": 1, "dim": 1, "sigma": 0.0},
}


def build(name, **changes):
    module = experiments.load(name)
    known = {field.name for field in dataclasses.fields(module.Config)}
    values = {**TINY, "period": 20, **changes}
    return module, module.Config(**{k: v for k, v in values.items() if k in known})


@pytest.mark.small
def test_the_synthetic_experiments_are_listed():
    assert set(SYNTHETIC) <= set(experiments.names())
    with pytest.raises(ValueError, match="oscillation"):
        experiments.load("oscilation")


@pytest.mark.small
def test_a_key_has_its_default_its_meaning_and_a_list_of_its_own():
    @dataclasses.dataclass(frozen=True)
    class Config:
        lr: float = configs.key(0.5, "learning rate")
        tau: list = configs.key([0.0, 0.1], "shares")

    first, second = Config(), Config(lr=2.0)
    assert (first.lr, second.lr, first.tau) == (0.5, 2.0, [0.0, 0.1])
    first.tau.append(1.0)
    assert second.tau == Config().tau == [0.0, 0.1]
    meanings = [field.metadata["meaning"] for field in dataclasses.fields(Config)]
    assert meanings == ["learning rate", "shares"]


@pytest.mark.small
@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_run_alike(name):
    first, *rest = inspect.signature(experiments.load(name).run).parameters.values()
    assert first.name == "config" and [p.name for p in rest[:2]] == ["backend", "device"]
    assert rest[1].default == ""
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in rest)


@pytest.mark.small
@pytest.mark.parametrize(
    ("name", "changes", "columns", "samples"),
    [
        ("label-noise", {}, 5, 1),
        ("label-noise", {"batch_size": 3}, 5, 3),
        ("sam", {"batch_size": 0}, 5, 12),
        ("oscillation", {}, 10, 1),
    ],
)
def test_the_time_of_a_point_is_guessed_from_what_a_step_touches(name, changes, columns, samples):
    """Of 4 inputs a network of 10 neurons moves as one of 5; a chain has its 10."""
    _, config = build(name, steps=10**9, record_every=10**9, **changes)
    expected = 1e9 * samples * columns * 4 * dispatch.STEP_SECONDS
    assert dispatch.seconds(config) == pytest.approx(expected, rel=1e-2)


@pytest.mark.small
@pytest.mark.parametrize("name", SYNTHETIC)
def test_configurations_survive_their_file(name, tmp_path):
    module, config = build(name)
    run = module.run(config)
    run.save(tmp_path)
    values = configs.read_toml(tmp_path / "config.toml")
    assert values.pop("experiment") == name and values.pop("backend") == "numba"
    again = configs.build(module.Config, values)
    assert again == config
    for key, value in module.run(again).arrays.items():
        np.testing.assert_array_equal(value, run[key], err_msg=key)


@pytest.mark.small
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_figure_renders_and_every_report_has_five_lines(name, edge):
    module, config = build(name, **edge)
    run = module.run(config)
    assert (run.status.code == "DIVERGED") == (config.lr > 1)
    assert canvas.render(module.figures(run)["figure"], "png", dpi=30).startswith(b"\x89PNG")
    lines = module.report(run)
    assert len(lines) == 5 and all("\n" not in line for line in lines)


@pytest.mark.small
@pytest.mark.parametrize("edge", [{"steps": 0}, {"lr": 40.0}, {"width": 1}])
def test_the_ledger_has_a_figure_of_its_own(edge):
    module, config = build("label-noise", ledger=True, **edge)
    drawn = module.figures(module.run(config))
    assert list(drawn) == ["figure", "ledger"]
    assert canvas.render(drawn["ledger"], "png", dpi=30).startswith(b"\x89PNG")
    _, without = build("label-noise", **edge)
    assert list(module.figures(module.run(without))) == ["figure"]


@pytest.mark.small
@pytest.mark.parametrize("name", SYNTHETIC)
def test_an_ensemble_has_a_figure_and_a_report(name):
    module, config = build(name)
    run = module.run(config, replicas=2)
    assert canvas.render(module.figures(run)["figure"], "png", dpi=30).startswith(b"\x89PNG")
    assert module.report(run) == module.report(module.run(config))


@pytest.mark.small
def test_figures_are_the_same_bytes_every_time():
    module, config = build("label-noise-periodic")
    run = module.run(config)
    for kind in ("png", "pdf"):
        first, second = (
            canvas.render(module.figures(run)["figure"], kind, dpi=30) for _ in range(2)
        )
        assert first == second


@pytest.mark.small
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("oscillation", "amplitude", 0.0),
        ("oscillation-periodic", "amplitude", -0.1),
        ("oscillation", "lr", -1e-3),
        ("oscillation-periodic", "period", 0),
        ("label-noise-periodic", "period", 0),
        ("sam", "rho", -0.1),
        ("sam", "sigma", -1.0),
        ("label-noise", "theta_norm", -1.0),
    ],
)
def test_values_out_of_range_are_named(name, key, value):
    module, config = build(name, **{key: value})
    with pytest.raises(ValueError, match=key):
        module.run(config)


@pytest.mark.small
def test_the_amplitude_is_the_fourth_root_of_lr_unless_given():
    assert oscillation.Config(lr=1e-4).amplitude == pytest.approx(0.1)
    assert oscillation.Config(lr=1e-4, amplitude=0.3).amplitude == 0.3


@pytest.mark.small
def test_the_law_of_modes_says_why_there_is_none():
    for changes, word in (
        ({"momentum": 0.5}, "momentum"),
        ({"weight_decay": 0.1}, "weight decay"),
        ({"batch_size": 0}, "full batches"),
        ({"lr": 40.0}, "diverged"),
    ):
        module, config = build("label-noise", **changes)
        curve, reason = Case.of_run(module.run(config)).law_of_modes()
        assert curve is None and word in reason


def test_the_law_of_modes_is_over_the_measured_norm():
    run = label_noise.run(label_noise.Config(steps=200_000))
    curve, reason = Case.of_run(run).law_of_modes()
    assert reason == ""
    np.testing.assert_allclose(curve, run["norm_squared"], rtol=0.03)


@pytest.mark.small
def test_window_changes_of_a_known_series():
    _, config = build("label-noise-periodic", steps=60, record_every=7)
    run = label_noise_periodic.run(config)
    line = dataclasses.replace(run, arrays={**run.arrays, "norm_mean": 100.0 - run.steps})
    on, off = _synthetic.window_changes(line, 20)
    np.testing.assert_allclose(on, [-20.0, -20.0])
    np.testing.assert_allclose(off, [-20.0])


@pytest.mark.parametrize("name", ["label-noise-periodic", "oscillation-periodic"])
def test_norms_fall_while_it_is_on_and_rest_while_it_is_off(name):
    module = experiments.load(name)
    run = module.run(module.Config(width=200, steps=40_000))
    on, off = _synthetic.window_changes(run, 5000)
    assert len(on) == len(off) == 4
    assert (on < 0).all()
    assert np.abs(off).sum() < 0.05 * np.abs(on).sum()


def test_sam_leaves_the_lazy_regime_and_without_rho_does_not():
    config = sam.Config(steps=30_000)
    run, still = sam.run(config), sam.run(dataclasses.replace(config, rho=0.0))
    assert run["lazy_fraction"][-1] == 0.0 and run["norm_mean"][-1] < 0.7
    assert still["lazy_fraction"][-1] == 1.0
    assert still["norm_mean"][-1] == pytest.approx(still["norm_mean"][0], rel=1e-3)


def test_an_oscillating_second_layer_shrinks_the_first():
    run = oscillation.run(oscillation.Config(width=32, steps=200_000))
    level = np.sqrt(run.config["lr"])
    assert _synthetic.first_below(run, level) < run.config["lr"] ** -2
    # The record spacing is odd, so that every chain is seen to move.
    seen = np.abs(run["tracked_second_layer"])
    assert ((seen == 0).any(axis=0) & (seen > 0).any(axis=0)).all()
