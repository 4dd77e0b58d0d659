"""What is drawn and exported of a sweep: its structure, not its pixels."""

import csv
import io
import math

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm

import lnsim
from lnsim.cli.main import main
from lnsim.experiments import label_noise
from lnsim.figures import canvas
from lnsim.sweeps import figure as figures_sweep
from lnsim.sweeps import map as maps
from lnsim.sweeps import points as sweep_points
from lnsim.sweeps.power_law import power_law
from lnsim.sweeps.sweep import Sweep

BASE = {"samples": 30, "dim": 4, "width": 40, "steps": 10_000, "test_samples": 10}


def made_up(grid, seeds=1, measure=lambda row: {}, **base):
    """A sweep whose predictions are theory's and whose measurements are made up."""
    configs = [{**BASE, **base}]
    for key, values in {**grid, "seed": range(seeds)}.items():
        configs = [{**config, key: value} for config in configs for value in values]
    points = [label_noise.Config(**config) for config in configs]
    alike = {sweep_points.shared(point): [] for point in points}
    for point in points:
        alike[sweep_points.shared(point)].append(point)
    predicted = {}
    for group in alike.values():
        found = sweep_points.predictions("label-noise", group)
        predicted |= dict(zip(group, found, strict=True))
    rows = []
    for point in points:
        row = {**vars(point), **dict.fromkeys(sweep_points.columns()), "status": "OK"}
        row |= {"regime": "rich"} | predicted[point]
        rows.append({**row, **measure(row)})
    return Sweep("folder", "label-noise", tuple(grid), {}, rows)


LRS, SIGMAS = np.geomspace(1e-4, 0.1, 7).tolist(), np.linspace(0.0, 8.0, 5).tolist()


def regimes(row):
    word = "diverged" if row["lr"] > 0.05 else "rich" if row["sigma"] > 3 else "lazy"
    return {"regime": word, "norm_mean": None if word == "diverged" else row["lr"]}


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def meshes(axes):
    return [mesh for mesh in axes.collections if isinstance(mesh, QuadMesh)]


@pytest.mark.small
def test_a_phase_diagram_has_the_regimes_and_theorys_lines():
    sweep = made_up({"sigma": SIGMAS, "lr": LRS}, seeds=3, measure=regimes)
    axes = sweep.plot().axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    assert "sigma" in axes.get_xlabel() and "eta" in axes.get_ylabel()
    (mesh,) = meshes(axes)
    words = np.array(list(maps.WORD_COLOURS))[mesh.get_array().astype(int)]
    assert words.shape == (7, 5)
    assert (words[-1] == "diverged").all() and (words[:-1, :2] == "lazy").all()
    assert (words[:-1, 2:] == "rich").all()
    np.testing.assert_allclose(axes.get_xlim(), [-1.0, 9.0])
    step = math.sqrt(LRS[1] / LRS[0])
    np.testing.assert_allclose(axes.get_ylim(), [1e-4 / step, 0.1 * step])
    *regions, predicted, decay, unstable = labels(axes)
    assert regions == ["lazy", "rich", "diverged"] and predicted.startswith("predicted\n(agreement")
    assert [decay, unstable] == [name for *_, name in maps.BOUNDARIES]


def test_theorys_line_is_where_the_decay_takes_the_length_of_the_run():
    sweep = made_up(
        {"sigma": np.linspace(2, 8, 15).tolist(), "lr": np.geomspace(1e-3, 1e-2, 15).tolist()}
    )
    axes = sweep.plot().axes[0]
    predicted, decay = (c for c in axes.collections if not isinstance(c, QuadMesh))
    points = np.concatenate([path.vertices for path in decay.get_paths()])
    np.testing.assert_allclose((points[:, 0] * points[:, 1]) ** 2, 1e-4, rtol=0.02)
    assert predicted.get_linestyle() != decay.get_linestyle()


@pytest.mark.small
def test_a_map_of_numbers_sets_apart_what_has_none():
    sweep = made_up({"sigma": SIGMAS, "lr": LRS}, measure=regimes)
    figure = sweep.plot("norm_mean")
    axes, bar = figure.axes
    apart, numbers = meshes(axes)
    assert isinstance(numbers.norm, LogNorm) and "at the end" in bar.get_ylabel()
    np.testing.assert_array_equal(numbers.get_array()[:-1, 0], LRS[:-1])
    assert np.ma.getmaskarray(np.ma.masked_invalid(numbers.get_array()))[-1].all()
    assert (apart.get_array()[-1] == 1.0).all() and "diverged" in labels(axes)
    small = made_up({"sigma": SIGMAS, "lr": LRS}, measure=lambda r: {"norm_mean": 1 + r["sigma"]})
    assert not isinstance(meshes(small.plot("norm_mean").axes[0])[1].norm, LogNorm)


@pytest.mark.small
def test_cells_that_were_not_run_and_values_not_reached_are_explained():
    sweep = made_up(
        {"sigma": SIGMAS, "lr": LRS}, seeds=3,
        measure=lambda r: {"last_escape": 5.0 if r["sigma"] + r["seed"] > 1 else None},
    )  # fmt: skip
    partial = Sweep("folder", "label-noise", sweep.swept, {}, sweep.rows[:-3])
    axes = partial.plot("last_escape").axes[0]
    found = meshes(axes)[1].get_array()
    assert found.mask[0, 0] and (found[:-1, 1:] == 5.0).all()  # 1 of 3 seeds, and all
    assert {"not run", "no value"} <= set(labels(axes))


def law(row):
    rng = np.random.default_rng([row["seed"], round(1e9 * row["lr"])])
    return {"last_escape": 2.0 * row["lr"] ** -1.7 * math.exp(0.1 * rng.standard_normal())}


@pytest.mark.small
def test_a_curve_has_the_spread_the_fit_and_theorys_exponent():
    sweep = made_up({"lr": LRS[:5]}, seeds=4, measure=law)
    axes = sweep.plot().axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    fit = power_law(sweep["lr"], sweep["last_escape"])
    assert fit.low < -1.7 < fit.high
    text = f"fit {fit.exponent:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
    theorem = "$T_1$ (Theorem 2) -2.00"
    assert labels(axes) == [label.replace("-", "\N{MINUS SIGN}") for label in (text, theorem)]
    values = sweep["last_escape"].reshape(5, 4)
    measured, fitted, theory = axes.lines
    np.testing.assert_array_equal(measured.get_ydata(), np.median(values, axis=1))
    np.testing.assert_allclose(fitted.get_ydata(), fit(fitted.get_xdata()))
    np.testing.assert_array_equal(theory.get_ydata(), sweep["predicted_last_escape"][::4])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (values.min(), values.max())


@pytest.mark.small
def test_an_x_without_a_value_for_every_seed_takes_no_part():
    def some(row):
        return {"last_escape": None} if row["lr"] < 2e-4 and row["seed"] == 1 else law(row)

    sweep = made_up({"lr": LRS[:5]}, seeds=2, measure=some)
    axes = sweep.plot().axes[0]
    kept = sweep["lr"] > 2e-4
    fit = power_law(sweep["lr"][kept], sweep["last_escape"][kept])
    assert labels(axes)[0].startswith(f"fit {fit.exponent:.2f} [".replace("-", "\N{MINUS SIGN}"))
    assert labels(axes)[-1] == "no value for some seed"
    assert axes.lines[-1].get_xdata() == LRS[:1]


@pytest.mark.small
def test_where_a_seed_diverged_is_marked_apart():
    def some(row):
        if row["lr"] == LRS[4] and row["seed"] == 1:
            return {"last_escape": None, "regime": "diverged"}
        return {"last_escape": None} if row["lr"] == LRS[0] else law(row)

    axes = made_up({"lr": LRS[:5]}, seeds=2, measure=some).plot().axes[0]
    marks = {line.get_label(): line.get_xdata().tolist() for line in axes.get_lines()}
    assert marks["no value for some seed"] == [LRS[0]]
    assert marks["diverged for some seed"] == [LRS[4]]


@pytest.mark.small
def test_columns_are_rows_and_sweeps_are_columns_of_a_figure():
    sweeps = [
        made_up({key: values}, seeds=2, measure=lambda r: {"norm_mean": 1.0, "last_escape": 3.0})
        for key, values in (("lr", LRS[:4]), ("sigma", [0.0, 1.0, 2.0]))
    ]
    figure = figures_sweep.figure(sweeps, ["last_escape", "norm_mean"])
    assert len(figure.axes) == 4
    assert figure.axes[1].get_xscale() == "linear"  # 0 has no logarithm
    assert canvas.render(figure, "png", dpi=30).startswith(b"\x89PNG")


@pytest.mark.small
@pytest.mark.parametrize(
    ("sweep", "columns", "says"),
    [
        (made_up({"lr": LRS[:2], "sigma": [1.0], "width": [3]}), (), "fix the others with --where"),
        (made_up({}), (), "leaves none"),
        (made_up({"lr": LRS}), ("norm_maen",), "did you mean 'norm_mean'?"),
        (made_up({"lr": LRS}), ("lr",), "unknown column 'lr'"),
        (made_up({"lr": LRS}), ("regime",), "regime holds words"),
        (made_up({"lr": LRS}), ("last_escape",), "last_escape has no value"),
        (made_up({"lr": LRS, "sigma": SIGMAS}), ("norm_mean",), "norm_mean has no value"),
        (Sweep("folder", "label-noise", ("lr",), {}, []), (), "folder has no points yet"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sweep, columns, says):
    with pytest.raises(ValueError) as caught:
        sweep.plot(*columns)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.small
def test_one_cell_one_value_and_words_can_be_drawn():
    for grid in ({"lr": [1e-3], "sigma": [1.0]}, {"law": ["gaussian", "uniform"], "lr": LRS}):
        axes = made_up(grid).plot().axes[0]
        assert meshes(axes)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["gaussian", "uniform"]
    one = made_up({"lr": [1e-3]}, seeds=3, measure=law).plot().axes[0]
    assert labels(one) == ["$T_1$ (Theorem 2)"]
    words = made_up({"law": ["gaussian", "uniform"]}, seeds=2, measure=law).plot().axes[0]
    assert [text.get_text() for text in words.get_xticklabels()] == ["gaussian", "uniform"]


@pytest.mark.small
def test_where_fixes_keys_by_values_of_the_grid():
    sweep = made_up({"lr": [1e-4, 0.1 + 0.2], "law": ["gaussian", "uniform"]}, seeds=2)
    part = sweep.where({"lr": 0.3, "law": "uniform"})
    assert part.swept == () and {row["lr"] for row in part.rows} == {0.1 + 0.2}
    assert {row["law"] for row in part.rows} == {"uniform"} and len(part.rows) == 2
    assert len(sweep.where({"seed": 1}).rows) == 4 and sweep.where({"seed": 1}).swept == sweep.swept
    for fixed, says in (
        ({"lr": 0.31}, "lr never is 0.31: there are 0.0001, 0.3"),
        ({"sigma": 1.0}, "'sigma' is not swept here: there are lr, law, seed"),
        ({"lr": "much"}, "lr never is 'much'"),
    ):
        with pytest.raises(ValueError) as caught:
            sweep.where(fixed)
        assert says in str(caught.value)


@pytest.mark.small
def test_columns_are_arrays_and_the_csv_is_exact():
    sweep = made_up({"lr": [1 / 3, 2 / 3]}, seeds=2, measure=law)
    table = sweep.table()
    np.testing.assert_array_equal(table["lr"], [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert np.isnan(table["norm_mean"]).all() and list(table["regime"]) == ["rich"] * 4
    rows = list(csv.DictReader(io.StringIO(sweep.csv())))
    assert [float(row["last_escape"]) for row in rows] == table["last_escape"].tolist()
    assert {row["norm_mean"] for row in rows} == {""} and list(rows[0]) == list(sweep.rows[0])
    with pytest.raises(KeyError, match="did you mean 'norm_mean'"):
        sweep["norm_maen"]


def test_the_command_line_draws_and_exports_sweeps_and_runs(tmp_path, capsys):
    from concurrent.futures import ThreadPoolExecutor

    out = tmp_path / "sweep"
    with ThreadPoolExecutor(1) as executor:
        sweep = lnsim.sweep(
            "label-noise", {"sigma": "0:4:3", "lr": "1e-3:0.1:3:log"}, out=out, seeds=2,
            base={**BASE, "steps": 100, "record_every": 10}, executor=executor,
        )  # fmt: skip
    assert main(["plot", str(out)]) == 0
    assert (out / "figure.png").exists() and (out / "figure.pdf").exists()
    curve = ["plot", str(out), "--where", "sigma=4", "--column", "norm_mean"]
    assert main([*curve, "--out", str(tmp_path / "curve")]) == 0
    assert (tmp_path / "curve" / "norm_mean-sigma=4.png").exists()
    capsys.readouterr()
    assert main(["plot", str(out), "--csv", "-"]) == 0
    assert capsys.readouterr().out == sweep.csv()
    assert main(["plot", str(out), "--csv", str(tmp_path / "points.csv"), "--where", "seed=1"]) == 0
    assert (tmp_path / "points.csv").read_text(encoding="utf-8") == sweep.where({"seed": 1}).csv()

    run = tmp_path / "run"
    small = [f"--set={key}={value}" for key, value in {**BASE, "steps": 100}.items()]
    assert main(["run", "label-noise", "--out", str(run), "--set=ledger=true", *small]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for name in ("figure.png", "ledger.pdf"):
        (run / name).unlink()
    assert main(["plot", str(run)]) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    for arguments, says in (
        ([str(tmp_path)], "is not a folder of a run or a sweep"),
        ([str(out), "--column", "sigma"], "unknown column"),
        ([str(out), "--where", "width=3"], "'width' is not swept"),
        ([str(out), str(out), "--csv", "-"], "--csv takes one sweep folder, got 2"),
        ([str(run), "--csv", "-"], "--csv is for sweep folders, not for runs"),
        ([str(run), "--column", "regime"], "no curve 'regime'"),
        ([str(run), str(out)], "is not a run folder"),
    ):
        capsys.readouterr()
        assert main(["plot", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
