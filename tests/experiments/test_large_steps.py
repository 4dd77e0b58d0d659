"""Large steps: the phases and their borders, runs kept and drawn, and settings at their edges."""

import dataclasses

import numpy as np
import pytest

import lnsim
from lnsim.cli import main
from lnsim.experiments import large_steps
from lnsim.experiments.large_steps import CATAPULT, DIVERGED, MONOTONE, UNSETTLED, Config, Map
from lnsim.figures import canvas
from lnsim.simulation.trajectory import Trajectory
from lnsim.simulation.verify import verify
from lnsim.theory import catapult

SMALL = {"width": 40, "count": 17, "steps": 60}
REGRESSION = {"problem": "regression", "samples": 12, "test_samples": 9, "dim": 4}


def run(driver=None, **changes):
    return large_steps.run(Config(**{**SMALL, **changes}), **(driver or {}))


def same(first, second):
    assert first.arrays.keys() == second.arrays.keys()
    for key in first.arrays:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_one_sample_has_the_three_phases_with_the_borders_of_theory():
    ends = Map(run(width=300, count=68, steps=200))
    np.testing.assert_allclose(np.diff(ends.multiples), 0.05)
    assert ends.rises == pytest.approx(2.0) and ends.diverges == pytest.approx(4.0)
    assert ends.kinds.tolist() == [MONOTONE] * 20 + [CATAPULT] * 40 + [DIVERGED] * 8
    assert abs(ends.predicted_rise - 2.0) < ends.cell
    between = ends.kinds == CATAPULT
    assert (ends.peak[between] > 1).all() and ends.peak[between].max() > 50
    assert (ends.peak[ends.kinds == MONOTONE] == 1).all()
    assert np.isnan(ends.peak[ends.kinds == DIVERGED]).all()
    product = ends.last_sharpness * ends.rates
    assert (product[~np.isnan(product)] < 2).all()
    assert np.isnan(product).sum() == 8
    flatter = ends.last_sharpness[between] / ends.curvature
    assert (flatter < 1).all() and (np.diff(flatter[:15]) < 0).all()


def test_the_paths_and_the_map_are_those_of_the_recursion():
    ends = Map(run())
    problem, network = large_steps.start(ends.config)
    f = network.predict(problem.X)[0, 0]
    assert ends.curvature == pytest.approx(np.sum(network.W**2) + np.sum(network.a**2))
    path = catapult.recursion(f, ends.curvature, ends.rates, 60)
    ended = ends.kinds != DIVERGED
    few = slice(0, 10)  # the others come down slowly, or amplify rounding
    np.testing.assert_allclose(
        ends.last_sharpness[ended][few], path.curvature[ended, -1][few], rtol=1e-5
    )
    np.testing.assert_allclose(ends.peak[ended][few], (path.f[ended] ** 2 / f**2).max(axis=1)[few])
    assert ends.law is not None and len(ends.law.multiples) == 170


def test_the_usual_data_has_the_three_phases_too():
    ends = Map(run(**{**REGRESSION, "samples": 50}, width=1000, steps=150))
    kinds = ends.kinds.tolist()
    assert kinds[0] == MONOTONE and kinds[-1] == DIVERGED and CATAPULT in kinds
    assert ends.rises == pytest.approx(2.0, abs=ends.cell)
    assert 3.0 < ends.diverges <= 4.0 + ends.cell
    assert np.nanmax(ends.last_sharpness * ends.rates) < 2
    assert ends.law is None and ends.predicted_rise == 2.0


def test_the_curvature_is_the_largest_eigenvalue_of_the_tangent_kernel():
    problem, network = large_steps.start(Config(**{**SMALL, **REGRESSION}))
    rows = [
        np.append(np.outer(network.a, x).ravel(), network.W @ x) / np.sqrt(problem.samples)
        for x in problem.X
    ]
    kernel = np.array(rows) @ np.array(rows).T
    largest = np.linalg.eigvalsh(kernel)[-1]
    assert large_steps.curvature(problem, network) == pytest.approx(largest, rel=1e-10)


def of(losses, diverged=-1):
    """A map of one learning rate, with these losses."""
    arrays = {"train_loss": np.array(losses), "diverged_at": np.array([diverged])}
    arrays["step"] = np.arange(len(losses))
    config = dataclasses.asdict(Config(count=1))
    return Map(Trajectory(arrays, config, lnsim.Status("OK", len(losses) - 1)))


@pytest.mark.small
@pytest.mark.parametrize(
    ("losses", "diverged", "kind"),
    [
        ([1.0], -1, MONOTONE),
        ([4.0, 2.0, 1.0], -1, MONOTONE),
        ([4.0, 2.0, 2.03, 1.0], -1, MONOTONE),
        ([4.0, 2.0, 2.05, 1.0], -1, CATAPULT),
        ([4.0, 8.0, 3.9], -1, CATAPULT),
        ([4.0, 2.0, 4.0], -1, UNSETTLED),
        ([4.0, 3.0, 2.0], 3, DIVERGED),
        ([0.0, 0.0], -1, MONOTONE),
    ],
)
def test_a_kind_is_what_its_rule_says(losses, diverged, kind):
    assert of(losses, diverged).kinds.tolist() == [kind]


def test_a_run_is_kept_resumed_verified_and_drawn(tmp_path):
    whole = run()
    stopped = []
    half = run({"stop": lambda: len(stopped) > 20, "progress": stopped.append})
    assert half.status.code == "STOPPED" and half.status.step < 60
    half.save(tmp_path / "half")
    same(whole, run({"resume": Trajectory.load(tmp_path / "half")}))
    whole.save(tmp_path / "whole")
    kept = Trajectory.load(tmp_path / "whole")
    for seed in range(3):
        result = verify(kept, seed=seed)
        assert result.same, result.lines
    drawn = kept.plot()
    assert drawn.axes[0].get_ylabel().startswith("training loss")
    assert len(drawn.axes) == 4 and len(canvas.render(drawn, "png")) > 20_000
    for name in ("sharpness", "train_loss"):
        assert kept.plot(name).axes


EDGES = {
    "one rate": {"count": 1},
    "one rate that diverges": {"count": 1, "least": 8.0, "most": 9.0},
    "one neuron": {"width": 1},
    "no step": {"steps": 0},
    "huge steps": {"most": 1e300},
    "all diverge": {"least": 5.0, "most": 9.0},
    "tiny steps": {"least": 0.0, "most": 1e-3},
    "seldom recorded": {"record_every": 25},
    "no sharpness": {"measures": "none"},
    "every measure": {"measures": "all"},
    "regression": REGRESSION,
    "least of all": {**REGRESSION, "samples": 1, "test_samples": 1, "dim": 1, "width": 1},
    "a neuron followed": {"tracked": 1},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES.keys())
def test_edges_are_reported_and_drawn(edge):
    trajectory = run(**edge)
    lines = large_steps.EXPERIMENT.report(trajectory)
    assert len(lines) >= 2 and all(len(line) <= 80 and "nan" not in line for line in lines)
    drawn = large_steps.EXPERIMENT.figures(trajectory)["figure"]
    assert canvas.render(drawn, "png", dpi=30).startswith(b"\x89PNG")


@pytest.mark.small
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("problem", "classes"), ("least", -1.0), ("most", 1.0), ("most", np.nan), ("count", 0),
        ("width", 0), ("steps", -1), ("record_every", 0), ("measures", "sharpnes"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        run(**{key: value})


def test_from_the_command_line(tmp_path, capsys):
    words = ["--out", str(tmp_path / "run"), "--set", "count=9", "steps=50", "width=100"]
    assert main.main(["run", "large-steps", *words]) == 0
    out = capsys.readouterr().out
    assert "monotone      3 of 9" in out and "diverged      1 of 9" in out
    assert (tmp_path / "run" / "figure.pdf").exists()
    assert main.main(["plot", str(tmp_path / "run")]) == 0
    assert main.main(["verify", str(tmp_path / "run")]) == 0
    assert main.main(["theory", str(tmp_path / "run")]) == 2
    assert main.main(["sweep", "large-steps", "--grid", "width=1,2", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "cannot be swept: a sweep takes those that train one network" in error
