"""The experiments on any model: runs, resuming, verifying, sweeps, replicas, figures, bad keys."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lnsim
from lnsim.base import config as configs
from lnsim.cli import main
from lnsim.experiments import _models
from lnsim.experiments.case import Case
from lnsim.figures import canvas
from lnsim.run import curves, quantities
from lnsim.run import experiment as experiments
from lnsim.simulation.verify import verify
from lnsim.sweeps import points

NAMES = ("two-layer", "diagonal", "deep", "relu")
SMALL = {
    "samples": 12,
    "test_samples": 20,
    "dim": 6,
    "steps": 120,
    "record_every": 10,
    "tracked": 3,
}
LAYERS = {"width": 9, "outputs": 4, "rank": 2, "lr": 1e-2}
OF_MODEL = {
    "two-layer": LAYERS,
    "diagonal": {"nonzeros": 2, "drop_every": 50},
    "deep": LAYERS,
    "relu": {**LAYERS, "outputs": 1},
}


def build(name, **changes):
    made_by = experiments.load(name)
    return made_by, configs.build(made_by.Config, {**SMALL, **OF_MODEL[name], **changes})


def run(name, driver=None, **changes):
    made_by, config = build(name, **changes)
    return made_by.run(config, **(driver or {}))


def same(first, second):
    assert first.arrays.keys() == second.arrays.keys()
    for key in first.arrays:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_kept_resumed_verified_reported_and_drawn(name, tmp_path):
    whole = run(name)
    assert whole.status.code == "OK" and np.isfinite(whole["train_loss"]).all()
    stopped = []
    half = run(name, {"stop": lambda: len(stopped) > 5, "progress": stopped.append})
    assert half.status.code == "STOPPED"
    half.save(tmp_path / "half")
    same(whole, run(name, {"resume": lnsim.Trajectory.load(tmp_path / "half")}))
    shorter = run(name, steps=60)
    same(whole, run(name, {"resume": shorter}))
    whole.save(tmp_path / "whole")
    kept = lnsim.Trajectory.load(tmp_path / "whole")
    for seed in range(3):
        result = verify(kept, seed=seed)
        assert result.same, result.lines
    np.testing.assert_array_equal(kept.final.flat, whole.final.flat)
    lines = experiments.load(name).report(kept)
    assert lines[0].startswith("loss          start and end: train ")
    assert all(len(line) < 100 and "\n" not in line and "nan" not in line for line in lines)
    drawn = kept.plot()
    assert len(canvas.render(drawn, "png")) > 10_000
    usual = curves.usual(kept)
    model = quantities.of_kernel(json.loads(str(kept["model"]))["model"])
    assert usual[:2] == ["train_loss", "test_loss"] and set(usual) <= set(quantities.drawn(model))
    named = [axes for axes in kept.plot(*usual).axes if axes.get_ylabel()]
    assert len(named) == len(usual) and usual[-1] in kept._repr_html_()


def test_the_panels_of_each_model():
    def labels(trajectory):
        return [axes.get_ylabel() for axes in trajectory.plot().axes]

    assert labels(run("two-layer"))[1] == "accuracy (%)"
    assert labels(run("two-layer"))[-1] == "singular values"
    assert labels(run("diagonal"))[1:3] == [r"$\beta_j$", r"$\|\beta\|_1^2\,/\,\|\beta\|_2^2$"]
    assert labels(run("deep"))[1] == "singular values" and len(labels(run("deep"))) == 3
    assert sum("alignment" in label for label in labels(run("relu"))) == 2
    several = run("two-layer", problem="regression", loss="squared", noise="label", sigma=0.1)
    assert any(r"\Theta^\star w_i" in label for label in labels(several))
    for changes in ({"steps": 0}, {"tracked": 0}, {"lr": 1e6}):
        assert len(labels(run("relu", **changes))) >= 2


def test_a_run_without_an_experiment_is_drawn_as_a_model():
    problem = lnsim.sparse_regression(8, 5, 2)
    network = lnsim.diagonal_init(5, 0.5)
    alone = lnsim.simulate(problem, network, lnsim.GD(0.1), steps=40, record_every=4, replicas=2)
    assert len(alone.plot().axes) == 4
    with pytest.raises(ValueError, match="the theory is of two-layer linear networks"):
        Case.of_run(run("two-layer"))


@pytest.mark.parametrize("name", NAMES)
def test_replicas_and_points_of_a_sweep_are_the_runs_alone(name, tmp_path):
    key = "tau" if name == "two-layer" else "sigma"
    values = [0.1, 0.3]
    base = {**SMALL, **OF_MODEL[name]}
    with ThreadPoolExecutor(1) as executor:
        sweep = lnsim.sweep(
            name, {key: values}, out=tmp_path / "s", seeds=2, base=base, executor=executor
        )
    assert len(sweep.rows) == 4
    for row in sweep.rows:
        alone = run(name, **{key: row[key], "seed": row["seed"]})
        assert row["train_loss"] == alone["train_loss"][-1]
        assert row["test_loss"] == alone["test_loss"][-1]
        regimes = {"trained"} if name in ("diagonal", "deep") else {"lazy", "rich", "collapsed"}
        assert row["regime"] in regimes
    assert set(points.columns(name)) <= sweep.rows[0].keys()
    (axes,) = sweep.plot().axes
    assert axes.get_ylabel() == "test loss at the end"
    ensemble = run(name, {"replicas": 2, "clouds": False})
    assert ensemble["train_loss"].shape == (2, 13)
    first = run(name)
    np.testing.assert_array_equal(ensemble["train_loss"][0], first["train_loss"])


@pytest.mark.parametrize("name", OF_MODEL)
def test_a_map_of_two_keys_is_drawn(name, tmp_path):
    key = "tau" if name == "two-layer" else "sigma"
    grid = {key: [0.1, 0.3], "lr": [1e-4, 1e-3]}
    with ThreadPoolExecutor(1) as executor:
        base = {**SMALL, **OF_MODEL[name]}
        base.pop("lr", None)
        sweep = lnsim.sweep(name, grid, out=tmp_path / "s", base=base, executor=executor)
    assert len(sweep.rows) == 4 and len(sweep.plot().axes) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"rho": 0.1}, {"momentum": 0.5}, {"weight_decay": 0.1, "warm_up": 20}, {"lr": 0.02},
        {"rho": 0.1, "batch_size": 4, "micro_batch": 2}, {"batch_size": 3, "replacement": False},
    ],
)  # fmt: skip
def test_points_with_and_without_a_key_run_together_give_what_they_give_alone(changes):
    (key,) = [key for key in changes if key in points.SCALARS] or ["lr"]
    made_by, config = build("two-layer", **changes)
    other = dataclasses.replace(config, **{key: getattr(type(config)(), key)})
    groups = {}
    for point in (config, other):
        groups.setdefault(points.shared(point), []).append(point)
    together = [row for group in groups.values() for row in points.run_points("two-layer", group)]
    for point, row in zip((config, other), together, strict=True):
        assert row["train_loss"] == made_by.run(point)["train_loss"][-1]


@pytest.mark.parametrize("name", NAMES)
def test_what_0_means(name):
    """No radius is SGD, no batch size all samples, no micro-batch the batch, no schedule none."""
    _, config = build(name, noise="none", drop_every=0)
    assert config.rho == config.micro_batch == config.decay_steps == config.drop_every == 0

    def final(**changes):
        trajectory = run(name, **{"noise": "none", "drop_every": 0, "batch_size": 3, **changes})
        return trajectory.final.flat

    def expected(dynamics):
        trajectory = lnsim.simulate(
            config.make_problem(), config.make_model(), dynamics, steps=120, record_every=10
        )
        return trajectory.final.flat

    lr = config.lr
    np.testing.assert_array_equal(final(), expected(lnsim.SGD(lr, batch_size=3)))
    np.testing.assert_array_equal(final(batch_size=0), expected(lnsim.GD(lr)))
    sam = lnsim.SAM(lr, 0.01, batch_size=3)
    np.testing.assert_array_equal(final(rho=0.01), expected(sam))
    np.testing.assert_array_equal(final(rho=0.01), final(rho=0.01, micro_batch=3))
    assert not np.array_equal(final(rho=0.01), final(rho=0.01, micro_batch=1))
    dropped = lnsim.Scheduled(
        lnsim.SGD(lr, batch_size=3), lr=lnsim.Piecewise((50, 100), (1.0, 0.1, 0.01))
    )
    np.testing.assert_array_equal(final(drop_every=50), expected(dropped))
    decayed = lnsim.Scheduled(lnsim.SGD(lr, batch_size=3), lr=lnsim.Decay(80, 0.01, "cosine"))
    np.testing.assert_array_equal(final(decay_steps=80), expected(decayed))
    if name != "diagonal":
        as_drawn = lnsim.gaussian_regression(12, 6, outputs=config.outputs).theta_star
        regression = {"problem": "regression", "loss": "squared"}
        for norm, target in ((0, as_drawn), (2, 2 * as_drawn / np.linalg.norm(as_drawn))):
            found = run(name, noise="none", theta_norm=norm, **regression)["theta_star"]
            np.testing.assert_allclose(found, target, rtol=1e-14)


NOISY = [
    ("two-layer", {"noise": "none"}),
    ("two-layer", {"noise": "flips", "flip": "any", "batch_size": 0}),
    ("two-layer", {"loss": "logistic", "outputs": 1}),
    ("two-layer", {"loss": "squared", "noise": "label"}),
    ("two-layer", {"noise": "gradient", "sigma": 0.01, "start": "small"}),
    ("two-layer", {"noise": "parameters", "sigma": 0.001, "start": "unbalanced", "balance": 0.1}),
    ("diagonal", {"form": "product", "noise": "dropout", "scale": 0.3}),
    ("diagonal", {"form": "difference", "power": 3, "noise": "gradient", "sigma": 0.01}),
    ("deep", {"noise": "anticorrelated", "sigma": 0.001, "residual": True, "start": "identity"}),
    ("deep", {"depth": 1, "problem": "classes", "loss": "cross-entropy", "noise": "none"}),
    ("relu", {"noise": "label-k", "labels": 3, "batch_size": 0, "activation": "erf"}),
    ("relu", {"rho": 0.05, "normalized": False, "micro_batch": 2, "batch_size": 4}),
    ("relu", {"rho": 0.05, "layers": "first", "through": "loss", "noise": "none"}),
    ("relu", {"decay_steps": 50, "decay_curve": "linear", "warm_up": 10, "drop_every": 30}),
]


@pytest.mark.parametrize(("name", "changes"), NOISY)
def test_every_word_runs(name, changes):
    trajectory = run(name, **changes)
    assert trajectory.status.code == "OK"
    assert trajectory["train_loss"][-1] != trajectory["train_loss"][0]
    if "outputs" in OF_MODEL[name] and changes.get("loss") == "cross-entropy":
        assert "test_accuracy" in trajectory.arrays
    assert experiments.load(name).report(trajectory)


def test_classes_have_no_alignment_and_no_time_of_it():
    phases = run("two-layer", lr=0.3).phases()
    assert np.isnan([phases.alignment, phases.convergence, phases.decay_rate]).all()
    assert phases.first_escape <= 120


def test_a_backend_that_has_the_scalar_network_alone_is_named(monkeypatch):
    class Engine:
        """Has `advance` alone."""

    monkeypatch.setattr("lnsim.backend.load", lambda name: Engine())
    with pytest.raises(ValueError, match="one that trains any model, such as numba, got 'plain'"):
        run("diagonal", {"backend": "plain"})


@pytest.mark.parametrize("name", ["parameter_norm", "singular_values", "model", "final_W7"])
def test_an_observable_of_a_model_has_a_name_of_its_own(name):
    problem, network = lnsim.low_rank_teacher(6, 3, 2, [1.0]), lnsim.deep_init(3, [4], 2)
    how = {"steps": 2, "record_every": 1}
    with pytest.raises(ValueError, match=f"'{name}': a trajectory has an array of that name"):
        lnsim.simulate(problem, network, lnsim.GD(0.1), observables={name: np.size}, **how)
    mine = {"tracked_beta": lambda model: float(model.predictor.max())}
    kept = lnsim.simulate(problem, network, lnsim.GD(0.1), observables=mine, **how)
    assert "tracked_beta" in curves.names(kept)


def test_every_noise_has_a_run_above():
    words = {changes.get("noise") for _, changes in NOISY}
    assert words >= _models.NOISES.keys() - {"label", "flips"}


@pytest.mark.parametrize(
    ("name", "assignments", "message"),
    [
        ("two-layer", ["noise=lots"], "noise must be one of anticorrelated, dropout, flips,"),
        ("two-layer", ["noise=label"], "LabelNoise is for the squared loss, got 'cross-entropy'"),
        ("two-layer", ["tau=2"], "tau must be a probability, at most 1, got 2"),
        ("two-layer", ["problem=all"], "problem must be one of classes, low-rank, regression"),
        ("two-layer", ["problem=regression"], "loss must be squared for the problem 'regression'"),
        ("two-layer", ["outputs=1"], "the network must have 2 outputs for these labels, got 1"),
        ("two-layer", ["start=rich"], "start must be one of balanced, mean-field, ntk, small"),
        ("two-layer", ["loss=logistic"], "classes must be 2 under the logistic loss, got 10"),
        ("diagonal", ["loss=logistic"], "loss must be squared for a sparse target"),
        ("diagonal", ["nonzeros=101"], "nonzeros must be at most 100, got 101"),
        ("diagonal", ["form=cube"], "form must be one of difference, product, square"),
        ("diagonal", ["batch_size=1"], "batch_size must be 0 for noise on 1 labels of the full"),
        ("diagonal", ["noise=dropout"], "Dropout needs hidden units"),
        ("deep", ["depth=0"], "depth must be at least 1, got 0"),
        ("deep", ["rank=17"], "rank must be at most 16, got 17"),
        ("relu", ["rho=0.1", "momentum=0.5"], "momentum must be 0 with rho > 0, got 0.5"),
        ("relu", ["rho=0.1", "batch_size=4", "micro_batch=3"], "micro_batch must divide the batch"),
        ("relu", ["noise=flips"], "LabelFlips needs labels that are classes"),
        ("relu", ["decay_steps=5", "decay_end=2"], "end must be at most 1, got 2"),
        ("relu", ["widht=5"], "unknown key 'widht': did you mean 'width'?"),
    ],
)
def test_bad_keys_give_one_clear_line(name, assignments, message, tmp_path, capsys):
    command = ["run", name, "--out", str(tmp_path / "run"), "--set", *assignments]
    assert main.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lnsim: {message}")


def test_the_commands(tmp_path, capsys):
    out = str(tmp_path / "run")
    changes = [f"{key}={value}" for key, value in {**SMALL, **OF_MODEL["deep"]}.items()]
    assert main.main(["list", "deep"]) == 0
    listed = capsys.readouterr().out
    assert "depth = 3" in listed and "residual = false" in listed
    assert main.main(["run", "deep", "--out", out, "--set", *changes]) == 0
    assert main.main(["run", "deep", "--out", out, "--resume", "--set", "steps=150"]) == 0
    assert main.main(["verify", out]) == 0
    assert main.main(["plot", out]) == 0
    assert main.main(["plot", out, "--column", "test_loss"]) == 0
    assert main.main(["theory", out]) == 2
    assert main.main(["plot", out, "--animate", str(tmp_path / "film.gif")]) == 2
    errors = capsys.readouterr().err
    assert "this run (deep) is of any model" in errors and "no clouds of neurons" in errors
    grid = [f"sigma={a}" for a in ("0.1,0.2",)]
    sweep = ["sweep", "deep", "--grid", *grid, "--out", str(tmp_path / "s"), "--set", *changes]
    assert main.main(sweep) == 0
    assert "trained 2" in capsys.readouterr().out
    assert main.main(["plot", str(tmp_path / "s")]) == 0
