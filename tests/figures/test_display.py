"""How runs and sweeps show: in a notebook, on the user's axes, as tables, compared, in two styles.

What is drawn is checked by its structure, not its pixels.
"""

import base64
import dataclasses
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from lnsim.cli.main import main
from lnsim.figures import canvas
from lnsim.figures import curves as figures_curves
from lnsim.figures import style as figures_style
from lnsim.run import curves, quantities
from lnsim.run import experiment as experiments
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps.sweep import Sweep

SMALL = {"samples": 30, "dim": 4, "width": 20, "steps": 60, "record_every": 2, "test_samples": 10}


def run(name="label-noise", *, replicas=1, **changes):
    module = experiments.load(name)
    return module.run(module.Config(**{**SMALL, **changes}), replicas=replicas)


@pytest.fixture(scope="module")
def single():
    return run()


@pytest.fixture(scope="module")
def ensemble():
    return run(replicas=3)


@pytest.fixture(scope="module")
def arms():
    """As a Wide ResNet's run has it: arms by name, and a kernel measured at some records only."""
    steps = np.arange(0, 50, 10)
    arrays = {"step": steps, "kernel_step": steps[::2], "largest_stable_lr": np.array(3.0)}
    for i, arm in enumerate(("linearized", "clean", "noisy")):
        arrays[f"{arm}_test_loss"] = 0.5**i * np.exp(-steps / 20)
        if arm != "linearized":
            arrays[f"{arm}_ntk_distance"] = i * steps[::2] / 40
    return Trajectory(arrays, {"experiment": "wide-resnet", "lr": 1.0}, Status("OK", 40))


@pytest.fixture(scope="module")
def levels():
    """As ResNet-18's runs have it: a row for each tau, over epochs and over weights kept."""
    rows = np.arange(1.0, 7.0).reshape(2, 3)
    arrays = {"step": np.array([0, 8, 16]), "epoch": np.array([0, 1, 2]), "test_loss": rows,
              "tau": np.array([0.0, 0.2]), "kept_percent": np.array([100.0, 10.0, 1.0]),
              "pruned_accuracy": rows / 10}  # fmt: skip
    return Trajectory(arrays, {"experiment": "resnet", "lr": 0.1}, Status("OK", 16))


def legend(figure):
    (found,) = figure.legends or [a.get_legend() for a in figure.axes if a.get_legend()]
    return [text.get_text() for text in found.get_texts()]


class _Html(HTMLParser):
    """The text of every cell, the pictures, and whether every tag was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.pictures = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "td":
            self.cells.append(data)


def picture_size(source):
    """Width and height of an inline PNG."""
    data = base64.b64decode(re.fullmatch(r"data:image/png;base64,(.*)", source)[1])
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.small
def test_a_trajectory_says_what_it_is(single, ensemble):
    assert repr(single) == "<Trajectory of label-noise: finished after 60 steps, 31 records>"
    assert repr(ensemble).endswith("31 records of 3 replicas>")


@pytest.mark.small
def test_a_trajectory_shows_as_a_table_of_its_ends_and_a_figure(single, ensemble):
    shown = _Html(single._repr_html_())
    at = shown.cells.index("norm_mean")
    ends = single["norm_mean"][[0, -1]]
    assert shown.cells[at + 1 : at + 3] == [f"{end:.4g}" for end in ends]
    (picture,) = shown.pictures
    assert 500 < picture_size(picture)[0] < 1000
    cells = _Html(ensemble._repr_html_()).cells
    median = np.median(ensemble["norm_mean"][:, -1])
    assert cells[cells.index("norm_mean") + 2] == f"{median:.4g}"


@pytest.mark.small
def test_runs_of_networks_and_broken_runs_show_too(arms, levels):
    cells = _Html(arms._repr_html_()).cells
    assert cells[cells.index("test_loss, noisy") + 1] == "0.25"
    assert "test_loss, τ = 0.2" in _Html(levels._repr_html_()).cells
    broken = run(lr=5.0)
    assert broken.status.code == "DIVERGED"
    assert len(_Html(broken._repr_html_()).pictures) == 1
    bare = Trajectory({"step": np.array([0])}, {"dynamics": "<b>"}, Status("OK", 0))
    assert _Html(bare._repr_html_()).pictures == []
    stopped = Trajectory(dict(run(steps=0).arrays), {}, Status("STOPPED", 0))
    assert len(_Html(stopped._repr_html_()).pictures) == 1


def rows():
    for lr in (0.1, 0.01):
        for seed in range(2):
            yield {"lr": lr, "seed": seed, "regime": "rich", "last_escape": 3.0 / lr,
                   "predicted_last_escape": 9.0 / lr, "norm_mean": None}  # fmt: skip


@pytest.mark.small
def test_a_sweep_shows_its_keys_its_regimes_and_its_figure():
    sweep = Sweep("folder", "label-noise", ("lr",), {}, list(rows()))
    shown = _Html(sweep._repr_html_())
    assert shown.cells == ["lr", "2", "0.01", "0.1", "seed", "2", "0", "1"]
    assert len(shown.pictures) == 1 and "regimes: rich 4" in sweep._repr_html_()
    for other in (Sweep("folder", "sam", ("lr",), {}, []), sweep.where({"lr": 0.1})):
        text = other._repr_html_()
        assert _Html(text).pictures == [] and "no figure: " in text


@pytest.mark.small
def test_a_curve_goes_onto_the_users_axes_and_leaves_the_rest_to_them(single, ensemble):
    figure = Figure()
    axes = figure.subplots()
    assert single.plot("norm_mean", ax=axes, label="one", color="red") is figure
    assert ensemble.plot("norm_mean", ax=axes, label="three") is figure
    one, three = axes.lines
    np.testing.assert_array_equal(one.get_xydata().T, [single.steps, single["norm_mean"]])
    assert (one.get_color(), one.get_label()) == ("red", "one")
    np.testing.assert_array_equal(three.get_ydata(), np.median(ensemble["norm_mean"], axis=0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (ensemble["norm_mean"].min(), ensemble["norm_mean"].max())
    assert (axes.get_xscale(), axes.get_xlabel()) == ("linear", "step $t$")
    assert axes.get_xlim()[0] < 0 < 60 < axes.get_xlim()[1]
    sweep = Sweep("folder", "label-noise", ("lr",), {}, list(rows()))
    assert sweep.plot("last_escape", ax=figure.add_subplot(133)) is figure


@pytest.mark.small
def test_named_curves_have_a_panel_each(single):
    figure = single.plot("norm_mean", "test_loss", "cosine_mean")
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    assert single.plot("norm_mean").get_figwidth() == figures_style.ONE_COLUMN
    assert figure.get_figwidth() == figures_style.TWO_COLUMNS


@pytest.mark.small
@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (("norm_maen",), {}, "did you mean 'norm_mean'?"),
        (("norm",), {}, "no curve 'norm'"),
        (("cloud_norm",), {}, "no curve 'cloud_norm'"),
        (("theta_star",), {}, "no curve 'theta_star'"),
        ((), {"ax": Figure().subplots()}, "ax takes the name of one curve, got 0"),
        (("norm_mean",), {"style": "poster"}, "style must be one of paper, screen, got 'poster'"),
        (("norm_mean",), {"color": "red"}, "color is for a curve drawn on ax"),
    ],
)
def test_what_cannot_be_drawn_is_refused(single, names, options, says):
    with pytest.raises((ValueError, TypeError)) as caught:
        single.plot(*names, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.small
def test_a_quantity_of_all_arms_is_one_curve_each(arms, levels):
    assert [curve.arm for curve in curves.find(arms, "test_loss")] == [
        "linearized", "clean", "noisy",
    ]  # fmt: skip
    assert curves.usual(arms) == ["test_loss", "ntk_distance"]
    figure = arms.plot("test_loss", "ntk_distance")
    assert legend(figure) == ["linearised", "gradient descent", "label noise"]
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_xdata(), [0, 20, 40])
    pruned = levels.plot("test_loss", "pruned_accuracy")
    assert legend(pruned) == ["τ = 0", "τ = 0.2"]
    loss, kept = pruned.axes
    assert (loss.get_xlabel(), kept.get_xlabel()) == ("epoch", "weights kept (%)")
    assert kept.get_xlim()[0] > kept.get_xlim()[1]


@pytest.mark.small
def test_the_table_has_every_curve_at_every_record(single, ensemble, arms, levels):
    table = curves.table(ensemble)
    assert list(table)[:2] == ["replica", "step"]
    at = (table["replica"] == 2) & (table["step"] == 10)
    assert table["norm_mean"][at] == ensemble["norm_mean"][2, 5]
    assert "replica" not in curves.table(single) and "lazy_escape" not in table
    kernel = curves.table(arms)["noisy_ntk_distance"]
    np.testing.assert_array_equal(kernel, [0.0, np.nan, 1.0, np.nan, 2.0])
    np.testing.assert_array_equal(curves.table(levels)["tau"], [0, 0, 0, 0.2, 0.2, 0.2])
    np.testing.assert_array_equal(curves.table(levels)["test_loss"], np.arange(1.0, 7.0))


@pytest.mark.small
def test_dataframes_need_pandas_and_say_so(ensemble, monkeypatch):
    sweep = Sweep("folder", "label-noise", ("lr",), {}, list(rows()))
    monkeypatch.setitem(sys.modules, "pandas", None)
    for shown in (ensemble, sweep):
        with pytest.raises(ValueError, match=r"needs pandas, .* pip install 'lnsim\[notebook\]'"):
            shown.to_dataframe()


def test_dataframes_are_the_tables(ensemble):
    pandas = pytest.importorskip("pandas")
    frame = ensemble.to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and frame.shape[0] == 3 * 31
    mean = frame.groupby("step")["norm_mean"].mean().to_numpy()
    np.testing.assert_allclose(mean, ensemble["norm_mean"].mean(axis=0))
    sweep = Sweep("folder", "label-noise", ("lr",), {}, list(rows()))
    assert sweep.to_dataframe()["last_escape"].tolist() == [30.0, 30.0, 300.0, 300.0]


@pytest.mark.small
@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"lr": 0.1, "sigma": 1.0}, {"lr": 0.1, "sigma": 2.5}],
         [r"$\sigma$ = 1", r"$\sigma$ = 2.5"]),
        ([{"experiment": "sam", "rho": 0.1, "steps": 5}, {"experiment": "gd", "steps": 9}],
         ["sam", "gd"]),
        ([{"law": "uniform", "seed": 1}, {"law": "uniform", "seed": 2}], ["seed = 1", "seed = 2"]),
        ([{"steps": 5}, {"steps": 9}], ["$T$ = 5", "$T$ = 9"]),
        ([{"experiment": "sam", "rho": 1}, {"experiment": "sam", "rho": 2}, {"experiment": "gd"}],
         [r"sam, $\rho$ = 1", r"sam, $\rho$ = 2", "gd"]),
        ([{"lr": 0.1}, {"lr": 0.1}], ["run 0", "run 1"]),
    ],
)  # fmt: skip
def test_labels_are_what_configurations_differ_in(configs, expected):
    names = [f"run {i}" for i in range(len(configs))]
    assert figures_curves.labels(configs, names) == expected


@pytest.mark.small
def test_runs_are_drawn_over_each_other(single):
    longer = run(steps=600, record_every=6)
    figure = figures_curves.figure([single, longer], ["short", "long"])
    panels = figure.axes[:5]
    assert legend(figure) == ["short", "long"]
    for axes, name in zip(panels, quantities.drawn(quantities.TWO_LAYER), strict=True):
        for line, trajectory in zip(axes.lines, (single, longer), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), trajectory[name])
        assert axes.lines[0].get_color() != axes.lines[1].get_color()
        assert axes.get_xlim() == (6, 600)  # where both have a record


@pytest.mark.small
def test_runs_with_nothing_in_common_are_refused(single, levels):
    with pytest.raises(ValueError, match="'label-noise' and 'resnet' have different curves"):
        figures_curves.figure([single, levels], ["", ""])
    bare = Trajectory({"step": np.array([0])}, {}, Status("OK", 0))
    with pytest.raises(ValueError, match="no curve to draw"):
        figures_curves.figure([bare], [""])


@pytest.mark.small
def test_a_style_is_one_size_and_one_font_wherever_the_figure_is_drawn(single):
    before = dict(rcParams)
    paper, screen = (single.plot(style=style) for style in ("paper", "screen"))
    assert dict(rcParams) == before
    assert screen.get_figwidth() == 1.5 * paper.get_figwidth() == 1.5 * figures_style.TWO_COLUMNS
    for figure, family, size in ((paper, "STIXGeneral", 9.0), (screen, "DejaVu Sans", 11.7)):
        label = figure.axes[0].xaxis.label
        assert label.get_fontfamily() == [family] and label.get_fontsize() == pytest.approx(size)
        canvas.render(figure, "png", dpi=30)
        ticks = [tick for axes in figure.axes for tick in axes.get_xticklabels()]
        assert {tuple(tick.get_fontfamily()) for tick in ticks} == {(family,)}, family
    with figures_style.use("screen"):
        assert single.plot().get_figwidth() == 10.5
        with figures_style.use(None):
            assert single.plot("norm_mean").get_figwidth() == 1.5 * figures_style.ONE_COLUMN
    assert single.plot().get_figwidth() == 7.0


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


@pytest.mark.small
@pytest.mark.parametrize("style", figures_style.STYLES)
@pytest.mark.parametrize("name", ["label-noise", "label-noise-periodic", "oscillation"])
def test_how_a_run_ended_stands_in_the_figure_and_covers_nothing(name, style):
    long = Status("DIVERGED", 10**9)
    broken = dataclasses.replace(run(name), status=long)
    figure = broken.plot(style=style)
    canvas.render(figure, "png", dpi=100)
    text = figure.texts[-1]
    assert text.get_text() == "diverged at step 1,000,000,000"
    (box,) = boxes([text])
    others = [o for axes in figure.axes for o in (axes.patch, axes.title, *axes.texts)]
    assert not any(box.overlaps(other) for other in boxes(others))
    one_column = broken.plot("test_loss", style=style)
    canvas.render(one_column, "png", dpi=100)
    assert legend(one_column) == ["diverged at step 1,000,000,000"]
    (below,) = boxes(one_column.legends)
    assert not below.overlaps(boxes([one_column.axes[0].patch])[0])
    for drawn, inside in ((figure, box), (one_column, below)):
        assert 0 < inside.x0 < inside.x1 < drawn.bbox.x1 and 0 < inside.y0 < inside.y1
        assert inside.y1 <= drawn.bbox.y1


@pytest.mark.small
def test_a_twin_outside_the_axes_says_where_it_ends(single):
    falling = np.geomspace(1.0, 1e-28, single.steps.size)
    fallen = np.where(single.steps > 0, 1e-9 * falling, 1.0)
    for values, end in ((falling, ""), (fallen, " → 1e-37")):
        arrays = {**single.arrays, "linearized_train_loss": values}
        bare = dataclasses.replace(single, arrays=arrays)
        figure = experiments.load("label-noise").figures(bare)["figure"]
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert names == ["test", "train", "lin. test", f"lin. train{end}"]


def test_replicas_that_diverged_are_told(ensemble):
    gone = {**ensemble.arrays, "diverged_at": np.array([-1, 40, 1007])}
    broken = dataclasses.replace(ensemble, arrays=gone)
    assert curves.ends(broken) == {"": "2 of 3 replicas diverged, from step 40 on"}
    assert legend(broken.plot("norm_mean")) == [curves.ends(broken)[""]]


@pytest.mark.small
def test_a_figure_shows_in_a_notebook_by_itself(single):
    assert single.plot("norm_mean")._repr_png_().startswith(b"\x89PNG")


@pytest.mark.small
def test_letters_are_embedded_as_outlines_that_stay_letters(single):
    """Type 42 fonts are embedded whole; matplotlib's own Type 3 are refused by some journals."""
    data = canvas.render(single.plot("norm_mean"), "pdf")
    assert b"/CIDFontType2" in data and b"/FontFile2" in data and b"/Type3" not in data


def test_the_command_line_compares_runs_and_obeys_the_style(tmp_path, capsys):
    one, two, other = (str(tmp_path / name) for name in ("one", "two", "other"))
    run().save(one)
    run(lr=5.0).save(two)
    small = [f"--set={key}={value}" for key, value in SMALL.items()]
    assert main(["run", "sam", "--out", other, "--style", "screen", *small]) == 0
    before = {path.name for path in (tmp_path / "one").iterdir()}
    capsys.readouterr()
    assert main(["plot", one, two, other, "--column", "norm_mean", "test_loss"]) == 0
    assert capsys.readouterr().out == f"figure        {tmp_path / 'one' / 'curves.png'}\n"
    assert {path.name for path in (tmp_path / "one").iterdir()} - before == {
        "curves.pdf", "curves.png",
    }  # fmt: skip
    widths = [
        int.from_bytes((tmp_path / name).read_bytes()[16:20], "big")
        for name in ("one/curves.png", "other/figure.png")
    ]
    assert widths == [1400, 2100]
    for arguments, says in (
        ([one, two, "--column", "norm_maen"], "did you mean 'norm_mean'?"),
        ([one, two, "--where", "lr=1"], "--where is for sweep folders, not for runs"),
        ([one, str(tmp_path)], "is not a run folder"),
    ):
        capsys.readouterr()
        assert main(["plot", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    with pytest.raises(SystemExit):
        main(["plot", one, "--style", "poster"])
    assert "invalid choice: 'poster'" in capsys.readouterr().err
