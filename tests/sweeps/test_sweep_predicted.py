"""A sweep that theory fills: against runs, against the prediction of each point, and its files."""

import numpy as np
import pytest
from small_sweeps import tiny

import lnsim
from lnsim.cli.main import main
from lnsim.experiments import label_noise
from lnsim.experiments.case import Case
from lnsim.run import quantities
from lnsim.sweeps import points as sweep_points
from lnsim.sweeps import predicted
from lnsim.sweeps.sweep import Sweep

BASE = {
    "samples": 60, "test_samples": 20, "dim": 5, "width": 100, "steps": 4000, "record_every": 100,
}  # fmt: skip
GRID = {"sigma": "0.5:8:5:log", "lr": [1e-3, 2e-3, 4e-3, 8e-3, 0.1]}


def foretold(out, grid=GRID, *, base=BASE, experiment="label-noise", **options):
    options = {"predict": True, "seeds": 1, **options}
    return tiny(out, grid, base=base, experiment=experiment, **options)


def test_theory_and_runs_fill_the_same_table(tmp_path):
    """25 points, one seed: the regimes agree but for a point beside a boundary."""
    measured = tiny(tmp_path / "measured", GRID, base=BASE, seeds=1)
    theory = foretold(tmp_path / "theory")
    assert theory.predicted and not measured.predicted and "predicted" in repr(theory)
    assert list(theory.rows[0]) == list(measured.rows[0])
    assert [(row["lr"], row["sigma"]) for row in theory.rows] == [
        (row["lr"], row["sigma"]) for row in measured.rows
    ]
    known = [(a, b) for a, b in zip(measured.rows, theory.rows, strict=True) if b["regime"]]
    assert len(known) >= 20 and {b["regime"] for _, b in known} == {"lazy", "rich", "diverged"}
    assert sum(a["regime"] == b["regime"] for a, b in known) >= len(known) - 1
    for a, b in known:
        assert b["status"] == "PREDICTED" and b["diverged_at"] is None
        assert {n: a[n] for n in sweep_points.PREDICTED} == {
            n: b[n] for n in sweep_points.PREDICTED
        }
        if b["regime"] != "diverged" and b["sigma"] < 3:  # a run fluctuates about the mean
            assert b["norm_squared"] == pytest.approx(a["norm_squared"], rel=0.05)
            assert b["hessian_trace"] == pytest.approx(a["hessian_trace"], rel=0.1)
    same = Sweep.load(tmp_path / "theory")
    assert same.predicted and same.rows == theory.rows


def test_a_row_is_the_prediction_of_the_point(tmp_path):
    (row,) = foretold(tmp_path, {"lr": [4e-3]}, base={**BASE, "sigma": 4.0}).rows
    case = Case.of_setting(label_noise.Config(**BASE, lr=4e-3, sigma=4.0))
    steps = np.unique([*range(0, 4001, 100), *predicted.looks(4000)]).astype(float)
    prediction = case.predict(steps)
    names = [name for name in prediction.names if name not in predicted.LEFT_OUT]
    assert len(names) < len(prediction.names)
    assert all(row[name] is None for name in predicted.LEFT_OUT)
    last = {name: float(prediction[name][-1]) for name in names}
    shared = set(last) & set(sweep_points.recorded(quantities.TWO_LAYER))
    assert {"train_loss", "norm_mean", "sharpness", "cosine_mean"} <= shared
    for name in shared:
        summed = name in predicted.SUMMED
        assert row[name] == pytest.approx(last[name], rel=0.01 if summed else 1e-6), name
    escapes = predicted.escapes(prediction)
    assert row["first_escape"] == pytest.approx(escapes.min(), rel=1e-6)
    assert row["last_escape"] == pytest.approx(escapes.max(), rel=1e-6)
    fallen = np.interp(row["decay_time"], steps, prediction["norm_squared"])
    assert fallen == pytest.approx(prediction["norm_squared"][0] / np.e, rel=0.01)


def test_escapes_are_those_of_the_root_mean_square_neuron_by_neuron():
    case = Case.of_setting(label_noise.Config(**BASE, lr=4e-3, sigma=3.0))
    prediction = case.predict(predicted.looks(4000))
    mean, radius = prediction.mean, 1 / np.sqrt(100)
    found = predicted.escapes(prediction)
    assert np.isfinite(found).any() and np.isinf(found).any()
    for i in range(0, 100, 7):
        moved = []
        for k in range(len(prediction.times)):
            now = mean.M[i] @ mean.G[k]
            away = now[:-1] - mean.M[i, :-1]
            moved.append(np.sqrt(away @ away + now[-1] ** 2 * np.trace(mean.course.Z[k])))
        out = np.flatnonzero(np.array(moved) > radius)
        if out.size:
            k = out[0]
            at = np.interp(radius, moved[k - 1 : k + 1], prediction.times[k - 1 : k + 1])
            assert found[i] == pytest.approx(at, rel=1e-9)
        else:
            assert np.isinf(found[i])


def test_what_theory_refuses_has_its_reason_and_no_values(tmp_path):
    rows = foretold(tmp_path, {"momentum": [0.0, 0.5]}, base={**BASE, "sigma": 2.0}).rows
    assert rows[0]["regime"] == "rich" or rows[0]["regime"] == "lazy"
    assert rows[1]["status"].startswith("REFUSED: no theory is derived for momentum 0.5")
    columns = set(sweep_points.columns()) - {"status"}
    assert all(rows[1][name] is None for name in columns)
    strong = predicted.summary(Case.of_setting(label_noise.Config(**BASE, lr=8e-3, sigma=60.0)))
    assert strong["regime"] is None and "small parameter" in strong["status"]


def test_a_point_does_not_depend_on_its_chunk():
    configs = [label_noise.Config(**BASE, lr=lr, sigma=3.0) for lr in (1e-3, 0.2, 3e-3)]
    together = predicted.predict_points("label-noise", configs)
    assert together == [predicted.predict_points("label-noise", [c])[0] for c in configs]


def test_sam_is_predicted_too(tmp_path):
    base = {**BASE, "steps": 1000, "lr": 4e-3}
    row, still = foretold(tmp_path, {"rho": [0.0, 0.2]}, base=base, experiment="sam").rows[::-1]
    assert row["status"] == still["status"] == "PREDICTED"
    assert row["norm_squared"] < still["norm_squared"] and still["regime"] == "lazy"


def test_runs_and_predictions_are_never_in_one_file(tmp_path):
    grid = {"sigma": [1.0, 2.0]}
    first = foretold(tmp_path / "theory", grid)
    again = foretold(tmp_path / "theory", grid)
    assert (first.new, again.new, again.rows) == (2, 0, first.rows)
    assert foretold(tmp_path / "theory", {"sigma": [2.0, 3.0]}).new == 1
    before = (tmp_path / "theory" / "sweep.sqlite").read_bytes()
    with pytest.raises(ValueError, match="points that were predicted, and these are to be run"):
        tiny(tmp_path / "theory", grid, base=BASE, seeds=1)
    assert (tmp_path / "theory" / "sweep.sqlite").read_bytes() == before
    tiny(tmp_path / "runs", grid, base={**BASE, "steps": 10}, seeds=1)
    with pytest.raises(ValueError, match="points that were run, and these are to be predicted"):
        foretold(tmp_path / "runs", grid, base={**BASE, "steps": 10})


@pytest.mark.parametrize(
    ("experiment", "says"),
    [("deep", "two-layer linear networks"), ("label-noise-periodic", "no theory is derived")],
)
def test_an_experiment_without_theory_is_refused_before_anything_is_written(
    tmp_path, experiment, says
):
    with pytest.raises(ValueError, match=says):
        lnsim.sweep(experiment, {"lr": [1e-3]}, out=tmp_path / "out", predict=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line_predicts_and_draws(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["sweep", "label-noise", "--predict", "--out", str(out), "--grid", "sigma=1,8,64",
               "lr=1e-3,8e-3,0.1", "--set", *(f"{k}={v}" for k, v in BASE.items())]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "9, 9 of them predicted now" in said and "not predicted" in said
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out
    assert main(["plot", str(out)]) == 0
    axes = Sweep.load(out).plot().axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "not predicted" in names and not any("agreement" in name for name in names)
    assert "predicted" in axes.get_title()
