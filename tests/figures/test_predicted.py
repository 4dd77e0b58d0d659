"""The law of the cloud over what was measured: dashed lines, grey clouds, or why there is none."""

import dataclasses

import numpy as np
import pytest

from lnsim.cli.main import main
from lnsim.cli.plot import prediction_of
from lnsim.experiments.case import DRAWN, Case
from lnsim.figures import canvas, curves, panels, predicted, style
from lnsim.run import experiment
from lnsim.run.record import Status

SMALL = {"samples": 20, "dim": 3, "width": 30, "lr": 1e-3, "steps": 4000, "record_every": 8}
LOSSES = ("linearized_train_loss", "linearized_test_loss", "train_loss", "test_loss")


def run(name="label-noise", *, replicas=1, **keys):
    chosen = experiment.load(name)
    return chosen.run(chosen.Config(**{**SMALL, **keys}), replicas=replicas)


def figure_of(trajectory):
    return experiment.load(trajectory.config["experiment"]).figures(trajectory)["figure"]


def dashed(axes):
    return [line for line in axes.get_lines() if line.get_linestyle() == "--"]


def grey(axes):
    return [line for line in axes.get_lines() if line.get_color() == predicted.GREY]


def panel(figure, label):
    (found,) = [axes for axes in figure.axes if axes.get_ylabel() == label]
    return found


def entries(figure):
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


@pytest.fixture(scope="module", params=["label-noise", "sam"])
def drawn(request):
    """A run, its figure, and its prediction, made apart from that of the figure."""
    trajectory = run(request.param)
    return trajectory, figure_of(trajectory), Case.of_run(trajectory).drawn


def test_every_curve_has_its_prediction_dashed(drawn):
    _, figure, prediction = drawn
    expected = {
        "loss (clean labels)": LOSSES,
        f"${panels.MEAN} {panels.NEURON}$": ("norm_mean",),
        f"${panels.MEAN} {panels.ALIGNMENT}$": ("alignment_mean",),
        r"$\|W\|_F^2$": ("norm_squared",),
        r"$\mathrm{tr}\,H$": ("hessian_trace",),
    }
    for label, names in expected.items():
        lines = dashed(panel(figure, label))
        assert len(lines) == len(names)
        for line, name in zip(lines, names, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), prediction.times)
            np.testing.assert_array_equal(line.get_ydata(), prediction[name], err_msg=name)
            assert line.get_color() == style.BLACK


def test_the_tracked_neurons_have_their_paths_dashed(drawn):
    trajectory, figure, prediction = drawn
    paths = prediction.paths(trajectory["tracked_neurons"])
    lines = dashed(figure.axes[2])
    assert len(lines) == trajectory["tracked_norm"].shape[1] == 8
    for i, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), paths["tracked_norm"][:, i])
        np.testing.assert_array_equal(line.get_ydata(), paths["tracked_alignment"][:, i])


def test_every_cloud_lies_on_its_prediction_in_grey(drawn):
    _, figure, prediction = drawn
    clouds = [axes for axes in figure.axes if axes.get_title().startswith("$t$")]
    steps = [int(axes.get_title().split("= ")[1].replace(",", "")) for axes in clouds]
    assert len(clouds) == 4 and steps[-1] == 4000
    for axes, step in zip(clouds, steps, strict=True):
        (beneath,) = grey(axes)
        k = list(prediction.times).index(step)
        np.testing.assert_array_equal(beneath.get_xydata().T, prediction.cloud(k))
        (measured,) = [line for line in axes.get_lines() if line.get_color() == style.BLUE]
        assert len(measured.get_xdata()) == 30 and beneath.get_zorder() < measured.get_zorder()


def test_the_legend_has_one_entry_for_all_predictions(drawn):
    _, figure, _ = drawn
    assert entries(figure).count(predicted.LABEL) == 1
    (handle,) = figure.legends[0].get_lines()
    assert (handle.get_linestyle(), handle.get_markerfacecolor()) == ("--", predicted.GREY)


def test_a_prediction_is_at_some_records_and_at_all_clouds(drawn):
    trajectory, _, prediction = drawn
    times, steps = prediction.times, trajectory.steps
    assert steps.size == 501 and np.isin(times, steps).all()
    assert np.isin(trajectory["cloud_step"], times).all()
    assert set(times) >= {steps[0], steps[1], steps[-1]}
    assert times.size <= DRAWN + trajectory["cloud_step"].size
    assert np.diff(times).max() < 2 * 4000 / (DRAWN / 2)


@pytest.mark.small
@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        ("label-noise", {"momentum": 0.5}, "no theory is derived for momentum 0.5"),
        ("label-noise", {"lr": 20.0}, "the run diverged"),
        ("label-noise", {"sigma": 60.0, "lr": 5e-3}, "small parameter"),
        ("sam", {"batch_size": 2}, "theory is derived for SAM with one sample a step"),
    ],
)
def test_without_a_prediction_nothing_is_dashed_and_the_figure_says_why(name, keys, reason):
    trajectory = run(name, **{"steps": 400, **keys})
    figure = figure_of(trajectory)
    assert not any(dashed(axes) or grey(axes) for axes in figure.axes)
    assert not figure.legends and predicted.LABEL not in entries(figure)
    (text,) = [t.get_text() for t in figure.texts]
    assert text.startswith("no prediction: ") and reason in text and "\n" not in text
    assert Case.of_run(trajectory).drawn in text


@pytest.mark.small
@pytest.mark.parametrize("look", style.STYLES)
def test_a_long_reason_stays_in_the_figure_and_covers_nothing(look, monkeypatch):
    monkeypatch.setattr(Case, "drawn", "for this and for that reason " * 20)
    stopped = dataclasses.replace(run(steps=400), status=Status("DIVERGED", 10**9))
    figure = stopped.plot(style=look)
    canvas.render(figure, "png", dpi=100)
    why, ended = figure.texts
    assert why.get_text().endswith(" ...") and ended.get_text().startswith("diverged at")
    boxes = [text.get_window_extent() for text in figure.texts]
    assert not boxes[0].overlaps(boxes[1])
    others = [o for axes in figure.axes for o in (axes.patch, axes.title, *axes.texts)]
    for box in boxes:
        assert not any(box.overlaps(other.get_window_extent()) for other in others)
        assert box.x0 > 0 and box.x1 < figure.bbox.x1 and box.y1 <= figure.bbox.y1


@pytest.mark.small
def test_the_legend_entry_is_above_the_panels(drawn):
    _, figure, _ = drawn
    canvas.render(figure, "png", dpi=100)
    box = figure.legends[0].get_window_extent()
    others = [o for axes in figure.axes for o in (axes.patch, axes.title, *axes.texts)]
    assert not any(box.overlaps(other.get_window_extent()) for other in others)
    assert box.y1 <= figure.bbox.y1


@pytest.mark.small
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lr": 2e-2, "steps": 8000},
        {"width": 300, "steps": 20_000, "record_every": 20},
        {"theta_norm": 0.3, "steps": 20_000, "record_every": 20},
    ],
    ids=["lower left", "note on the right", "upper right", "below the curves"],
)
def test_the_legend_of_the_losses_and_the_note_cover_no_curve(keys):
    """Each line is followed in pixels, ten points between each two records."""
    figure = figure_of(run(**keys))
    canvas.render(figure, "png", dpi=100)
    losses, trace = panel(figure, "loss (clean labels)"), panel(figure, r"$\mathrm{tr}\,H$")
    (note,) = [text for text in trace.texts if text.get_text() == "least value"]
    for axes, covering in ((losses, losses.get_legend()), (trace, note)):
        box = covering.get_window_extent()
        for line in axes.get_lines():
            x, y = axes.transData.transform(line.get_xydata()).T
            if list(line.get_xdata()) == [0, 1]:  # from edge to edge
                x = axes.bbox.x0 + np.array([0.0, 1.0]) * axes.bbox.width
            place = np.linspace(0, len(x) - 1, 10 * len(x))
            records = np.arange(len(x))
            x, y = np.interp(place, records, x), np.interp(place, records, y)
            inside = (box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)
            assert not inside.any()


@pytest.mark.small
def test_an_axis_holds_its_prediction_unless_it_is_far_off():
    trajectory = run(steps=400)
    figure = figure_of(trajectory)
    prediction = Case.of_run(trajectory).drawn
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    for factor, top in ((1.5, 1.05 * 1.5 * high), (1e9, predicted.MOST_BEYOND * high)):
        axes.set_ylim(low, high)
        values = np.full(prediction.times.size, factor * high)
        prediction._known["train_loss"] = values
        predicted.draw(axes, prediction, "train_loss")
        assert axes.get_ylim() == pytest.approx((low, top))


@pytest.mark.small
def test_of_an_ensemble_the_mean_is_predicted_for_the_first_replica():
    trajectory = run(replicas=2)
    prediction = Case.of_run(trajectory).drawn
    axes = panel(figure_of(trajectory), r"$\|W\|_F^2$")
    measured, line = axes.get_lines()
    np.testing.assert_array_equal(measured.get_ydata(), trajectory["norm_squared"][0])
    np.testing.assert_array_equal(line.get_ydata(), prediction["norm_squared"])


@pytest.mark.small
def test_a_chosen_curve_of_a_run_has_its_prediction(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(canvas, "save", lambda figure, *rest: saved.append(figure))
    trajectory = run(steps=400)
    trajectory.save(tmp_path)
    names = ["norm_mean", "test_loss", "lazy_fraction"]
    assert main(["plot", str(tmp_path), "--column", *names]) == 0
    (figure,) = saved
    prediction = Case.of_run(trajectory).drawn
    for axes, name in zip(figure.axes, names, strict=False):
        measured, line = axes.get_lines()
        np.testing.assert_array_equal(measured.get_ydata(), trajectory[name])
        np.testing.assert_array_equal(line.get_ydata(), prediction[name])
        assert line.get_linestyle() == "--"
    assert entries(figure) == [predicted.LABEL]
    assert main(["plot", str(tmp_path), str(tmp_path), "--column", "norm_mean"]) == 0
    assert not any(line.get_color() == style.BLACK for line in saved[1].axes[0].get_lines())
    assert main(["plot", str(tmp_path), "--column", "lazy_fraction"]) == 0
    assert len(saved) == 3 and entries(saved[2]) == [predicted.LABEL]


@pytest.mark.small
def test_a_chosen_curve_says_why_it_has_no_prediction():
    trajectory = run(steps=400, momentum=0.5)
    figure = curves.figure([trajectory], [""], ["norm_mean"], prediction_of(trajectory))
    (text,) = entries(figure)
    assert " ".join(text.split()).startswith("no prediction: no theory is derived for momentum 0.5")
    assert not dashed(figure.axes[0])
    canvas.render(figure, "png", dpi=100)
    (box,) = [legend.get_window_extent() for legend in figure.legends]
    assert 0 < box.x0 < box.x1 < figure.bbox.x1
    assert not box.overlaps(figure.axes[0].patch.get_window_extent())


@pytest.mark.small
@pytest.mark.parametrize("name", ["relu", "diagonal", "large-steps"])
def test_runs_of_other_models_have_no_prediction_and_no_reason(name):
    chosen = experiment.load(name)
    known = chosen.Config.__dataclass_fields__
    keys = {
        "samples": 8,
        "dim": 3,
        "width": 6,
        "steps": 20,
        "record_every": 10,
        "count": 3,
        "nonzeros": 2,
    }
    config = chosen.Config(**{k: v for k, v in keys.items() if k in known})
    assert prediction_of(chosen.run(config)) == ""
