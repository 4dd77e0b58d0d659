"""Sweeps: points and their summaries, and the one call that joins them."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sweeps import BASE, GRID, tiny

import lnsim
from lnsim.cli.main import main
from lnsim.experiments import label_noise, sam
from lnsim.run import experiment as experiments
from lnsim.run import quantities
from lnsim.sweeps import dispatch as sweep_workers
from lnsim.sweeps import grid as sweep_grid
from lnsim.sweeps import points as sweep_points


def test_a_point_is_the_run_alone(tmp_path):
    """Against runs with the twin, as the command line makes them."""
    sweep = tiny(tmp_path)
    assert len(sweep.rows) == 18 and set(sweep["regime"]) == {"lazy", "rich", "diverged"}
    names = {field.name for field in dataclasses.fields(label_noise.Config)}
    last = quantities.names(quantities.TWO_LAYER)
    for row in sweep.rows:
        config = label_noise.Config(**{k: v for k, v in row.items() if k in names})
        run = label_noise.run(config)
        assert row["status"] == run.status.code
        if row["status"] == "DIVERGED":
            assert row["diverged_at"] == run.status.step
            assert all(row[name] is None for name in (*sweep_points.TIMES, *last))
            continue
        assert [row[name] for name in last] == [float(run[name][-1]) for name in last]
        phases = run.phases()
        for name in sweep_points.TIMES:
            value = float(getattr(phases, name))
            found = math.nan if row[name] is None else row[name]
            assert found == pytest.approx(value, rel=1e-12, nan_ok=True)  # |W|^2 is rounded


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("label-noise", [{"momentum": m, "weight_decay": w} for m in (0, 0.5) for w in (0, 0.1)]),
        ("label-noise", [{"batch_size": 3, "lr": lr} for lr in (0.1, 0.2, 9)]),
        ("label-noise-periodic", [{"period": 50, "lr": lr} for lr in (0.02, 100)]),
        ("sam", [{"rho": rho, "sigma": s} for rho in (0, 0.1, 1) for s in (0, 2)]),
    ],
    ids=["momentum", "batches", "periodic", "sam"],
)
def test_a_chunk_of_mixed_points_is_the_points_alone(name, changes):
    cls = experiments.load(name).Config
    configs = [cls(**{**BASE, "lr": 0.02, **change}) for change in changes]
    together = sweep_points.run_points(name, configs)
    assert together == [sweep_points.run_points(name, [config])[0] for config in configs]


def test_every_executor_and_chunk_gives_the_same_bits(tmp_path, monkeypatch):
    whole = tiny(tmp_path / "a")
    assert (
        lnsim.sweep("label-noise", GRID, seeds=2, out=tmp_path / "b", base=BASE).rows == whole.rows
    )
    monkeypatch.setattr(sweep_workers, "CHUNK_SECONDS", 1e-9)
    assert tiny(tmp_path / "c").rows == whole.rows


@pytest.mark.small
@given(
    count=st.integers(1, 60), seeds=st.integers(1, 3), workers=st.integers(1, 8),
    steps=st.integers(0, 10**9),
)  # fmt: skip
def test_chunks_hold_every_point_once_and_agree_in_all_but_scalars(count, seeds, workers, steps):
    lrs = np.linspace(1e-3, 1e-2, count).tolist()
    points = sweep_grid.points(sam.Config, {"steps": steps}, {"lr": lrs, "width": [4, 5]}, seeds)
    chunks = sweep_workers.chunks(points, workers)
    assert sorted(repr(p) for chunk in chunks for p in chunk) == sorted(map(repr, points))
    for chunk in chunks:
        assert len({sweep_points.shared(point) for point in chunk}) == 1
        assert len(chunk) == 1 or len(chunk) <= -(-len(points) // (2 * workers))
        most = sweep_workers.CHUNK_SECONDS
        assert len(chunk) == 1 or len(chunk) * sweep_workers.seconds(chunk[0]) <= most


@pytest.mark.small
def test_long_points_come_first_and_the_last_chunks_are_short():
    points = sweep_grid.points(sam.Config, {"steps": 10**5}, {"width": [4, 5]}, 2000)
    chunks = sweep_workers.chunks(points, 2)
    assert [chunk[0].width for chunk in chunks] == sorted(
        (c[0].width for c in chunks), reverse=True
    )
    seconds = [len(chunk) * sweep_workers.seconds(chunk[0]) for chunk in chunks]
    for k, longest in enumerate(seconds):
        assert longest <= max(0.3 * sum(seconds[k:]), sweep_workers.LEAST_SECONDS)
    assert max(seconds[-2:]) <= sweep_workers.LEAST_SECONDS


@pytest.mark.small
def test_a_summary_of_an_ensemble_is_that_of_each_replica():
    problem = lnsim.gaussian_regression(12, 3, seed=0, test_samples=20)
    network = lnsim.ntk_init(20, 3, seed=0)
    lr = np.array([0.08, 100.0, 0.07])
    run = lnsim.simulate(
        problem, network, lnsim.SGD(lr, lnsim.LabelNoise(4.0)), steps=200, record_every=20,
        replicas=3,
    )  # fmt: skip
    rows = sweep_points.summarize(run)
    assert [row["status"] for row in rows] == ["OK", "DIVERGED", "OK"]
    assert rows[1]["diverged_at"] == run["diverged_at"][1] and rows[1]["norm_mean"] is None
    for s in (0, 2):
        assert rows[s]["norm_mean"] == run["norm_mean"][s, -1]
        assert rows[s]["first_escape"] == run.phases().first_escape[s]
    norms = run.summary()["first_and_last"]["norm_mean"]
    assert norms == [run["norm_mean"][:, 0].tolist(), [rows[s]["norm_mean"] for s in range(3)]]


@pytest.mark.small
def test_the_regimes():
    def regime(module, name, **changes):
        config = module.Config(**{**BASE, **changes})
        return sweep_points.run_points(name, [config])[0]["regime"]

    assert regime(label_noise, "label-noise", sigma=0.0, lr=1e-4) == "lazy"
    assert regime(label_noise, "label-noise", sigma=4.0, lr=0.08) == "rich"
    assert regime(label_noise, "label-noise", lr=100.0) == "diverged"
    assert regime(sam, "sam", rho=1.0, lr=1e-2, steps=2000) == "collapsed"


@pytest.mark.small
def test_the_decay_time_of_an_exponential_is_its_time_constant():
    run = label_noise.run(label_noise.Config(**BASE))
    for tau, found in ((37.0, 37.0), (198.0, 198.0), (201.0, math.nan)):
        falling = dataclasses.replace(
            run, arrays={**run.arrays, "norm_squared": 5.0 * np.exp(-run.steps / tau)}
        )
        np.testing.assert_allclose(sweep_points.decay_time(falling), found, rtol=1e-12)


@pytest.mark.small
def test_predictions_are_there_where_the_statements_cover_the_setting():
    def predicted(experiment="label-noise", **changes):
        config = experiments.load(experiment).Config(**{**BASE, **changes})
        return sweep_points.predictions(experiment, [config])[0]

    row = predicted(width=100, lr=1e-3, sigma=2.0)
    assert row["predicted_last_escape"] == pytest.approx(
        384 * math.sqrt(math.log(100)) / (2.0**2 * 1e-6 * 10)
    )
    assert row["predicted_decay_time"] == pytest.approx(1 / (1e-3 * 2.0) ** 2)
    assert None not in row.values()
    assert predicted("sam", rho=0.0, sigma=2.0, width=100, lr=1e-3) == row
    for name, changes in (
        ("label-noise", {"momentum": 0.5}), ("label-noise", {"weight_decay": 0.1}),
        ("label-noise", {"batch_size": 2}), ("label-noise", {"law": "gaussian"}),
        ("label-noise", {"lr": 1.5}), ("sam", {"rho": 0.1}), ("label-noise-periodic", {}),
        ("oscillation", {}),
    ):  # fmt: skip
        assert set(predicted(name, **changes).values()) == {None}, (name, changes)
    silent = predicted(sigma=0.0)
    assert silent.pop("predicted_instability") > 0 and set(silent.values()) == {None}
    assert predicted(width=1)["predicted_last_escape"] is None


def test_the_law_of_modes_foretells_the_decay_time(tmp_path):
    base = {"width": 300, "steps": 100_000, "record_every": 500, "test_samples": 10, "sigma": 8.0}
    (row,) = tiny(tmp_path, {"lr": [5e-4]}, base=base, seeds=1).rows
    predicted = sweep_points.decay_time_by_modes("label-noise", row)
    assert row["decay_time"] == pytest.approx(predicted, rel=0.03)
    assert math.isnan(sweep_points.decay_time_by_modes("label-noise", {**row, "sigma": 0.0}))


def test_the_grid_and_the_seeds_can_grow_and_nothing_runs_twice(tmp_path):
    seen = []
    first = tiny(tmp_path, {"sigma": [1.0, 2.0]}, progress=seen.append)
    assert (first.new, sum(seen)) == (4, 4)
    file = tmp_path / "sweep.sqlite"
    before = file.read_bytes()
    again = tiny(tmp_path, {"sigma": [1.0, 2.0]})
    assert again.new == again.missing == 0 and file.read_bytes() == before
    more = tiny(tmp_path, {"sigma": [2.0, 3.0]}, seeds=3)
    assert more.new == 4 and len(more.rows) == 8
    assert [(row["sigma"], row["seed"]) for row in more.rows] == [
        (1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1), (2.0, 2), (3.0, 0), (3.0, 1), (3.0, 2),
    ]  # fmt: skip
    assert [row for row in more.rows if row in first.rows] == first.rows


def test_a_folder_of_another_sweep_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out"
    tiny(out, {"sigma": [1.0, 2.0]}, seeds=1)
    before = (out / "sweep.sqlite").read_bytes()
    for grid, options, says in (
        ({"sigma": [1.0]}, {"base": {**BASE, "width": 21}}, "width = 20, not 21"),
        ({"sigma": [1.0]}, {"experiment": "sam"}, "is of experiment 'label-noise', not 'sam'"),
        ({"sigma": [1.0], "lr": [1e-3]}, {}, "sweeps sigma, not lr, sigma"),
        ({"lr": [1e-3]}, {}, "sweeps sigma, not lr"),
    ):
        with pytest.raises(ValueError, match=says):
            tiny(out, grid, **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ValueError, match="not empty and holds no sweep"):
        tiny(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    assert (out / "sweep.sqlite").read_bytes() == before


def test_the_command_line_sweeps_says_so_and_does_nothing_twice(tmp_path, capsys):
    command = ["sweep", "label-noise", "--out", str(tmp_path / "out"), "--seeds", "2",
               "--grid", "sigma=0,4", "lr=1e-3:1e-2:2:log", "--set",
               *(f"{key}={value}" for key, value in BASE.items())]  # fmt: skip
    assert main(command) == 0
    assert "points        8, 8 of them run now" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 of them run now: nothing to do" in capsys.readouterr().out
    for more, says in (
        (["--grid", "sigma=3"], "sigma has two grids"),
        (["--set", "width=9"], "width = 20, not 9"),
        (["--set", "sigma=1"], "sigma is swept and set to 1"),
        (["--grid", "dim"], "expected KEY=VALUES, got 'dim'"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


@pytest.mark.small
def test_importing_lnsim_brings_in_nothing_that_sweeps_need():
    code = """
import sys, lnsim, lnsim.cli.main
heavy = {"sqlite3", "distributed", "matplotlib", "multiprocessing", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
