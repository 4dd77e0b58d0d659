"""What the user has set of matplotlib changes no figure of lnsim, and every axes of the user's."""

from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from matplotlib.figure import Figure

from lnsim.figures import animation, canvas, curves, linearization, output
from lnsim.figures import networks as figures_networks
from lnsim.figures import style as figures_style
from lnsim.run import experiment as experiments
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory
from lnsim.sweeps import figure
from lnsim.sweeps.sweep import sweep

SMALL = {"samples": 30, "dim": 4, "width": 20, "steps": 60, "record_every": 2, "test_samples": 10}
SPOILT = {
    "axes.autolimit_mode": "round_numbers",
    "axes.facecolor": "pink",
    "axes.formatter.limits": (0, 1),
    "axes.grid": True,
    "axes.labelcolor": "red",
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.unicode_minus": False,
    "axes.xmargin": 0.4,
    "axes.ymargin": 0.4,
    "date.autoformatter.year": "%y",
    "errorbar.capsize": 3,
    "figure.autolayout": True,
    "figure.dpi": 33,
    "figure.facecolor": "yellow",
    "figure.figsize": (1, 1),
    "figure.subplot.left": 0.4,
    "font.family": "monospace",
    "font.size": 31,
    "font.weight": "bold",
    "hatch.color": "red",
    "image.cmap": "hot",
    "legend.facecolor": "red",
    "legend.framealpha": 1,
    "legend.loc": "center",
    "lines.linestyle": "--",
    "lines.marker": "x",
    "mathtext.default": "rm",
    "patch.force_edgecolor": True,
    "path.sketch": (1, 100, 2),
    "pcolor.shading": "nearest",
    "pdf.compression": 0,
    "savefig.bbox": "tight",
    "savefig.dpi": 37,
    "savefig.facecolor": "green",
    "savefig.pad_inches": 1,
    "savefig.transparent": True,
    "scatter.marker": "s",
    "text.color": "blue",
    "text.usetex": True,
    "xtick.bottom": False,
    "xtick.direction": "in",
    "xtick.top": True,
    "ytick.minor.visible": True,
}  # fmt: skip


def run(name, **changes):
    module = experiments.load(name)
    return module.run(module.Config(**{**SMALL, **changes}))


def arms(names):
    """Curves of three arms, such as networks on images have them."""
    steps = np.arange(0, 50, 10)
    arrays = {"step": steps, "kernel_step": steps[::2]}
    for i, arm in enumerate(("linearized", "clean", "noisy")):
        for j, name in enumerate(names):
            at = steps[::2] if name == "ntk_distance" else steps
            arrays[f"{arm}_{name}"] = (1 + j) * 0.5**i * np.exp(-at / 20)
    return Trajectory(arrays, {"experiment": "wide-resnet", "lr": 1.0}, Status("OK", 40))


def levels():
    rows = np.arange(1.0, 7.0).reshape(2, 3)
    arrays = {"epoch": np.array([0, 1, 2]), "tau": np.array([0.0, 0.2]),
              "kept_percent": np.array([100.0, 10.0, 1.0]), "test_loss": rows,
              "test_accuracy": rows / 10, "smoothed_test_accuracy": rows / 12,
              "pruned_accuracy": rows / 10}  # fmt: skip
    return Trajectory(arrays, {"experiment": "resnet", "lr": 0.1}, Status("OK", 16))


def swept(folder, grid, executor):
    base = {**SMALL, "steps": 20, "record_every": 10}
    return sweep("label-noise", grid, out=folder, base=base, executor=executor)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What every figure is drawn from, by the name of the figure: functions that draw it."""
    folder = tmp_path_factory.mktemp("sweeps")
    with ThreadPoolExecutor(1) as executor:
        line = swept(folder / "line", {"lr": [1e-3, 1e-2, 1e-1]}, executor)
        square = swept(folder / "map", {"lr": [1e-3, 1e-2], "sigma": [1.0, 2.0]}, executor)
    kept = run("label-noise", ledger=True)
    periodic = run("label-noise-periodic", period=10)
    chain = run("oscillation")
    networks = arms([column for column, _ in figures_networks.PANELS])
    wide = arms([column for column, _ in linearization.PANELS])
    resnet = levels()
    return {
        "two phases": lambda: output.of_run(kept)["figure"],
        "ledger": lambda: output.of_run(kept)["ledger"],
        "windows": periodic.plot,
        "oscillation": chain.plot,
        "screen": lambda: kept.plot(style="screen"),
        "curves": lambda: curves.figure([kept, periodic], ["a", "b"], ["norm_mean"]),
        "many curves": lambda: kept.plot("norm_mean", "test_loss", "lazy_fraction"),
        "linearization": lambda: linearization.of_arms(wide),
        "networks": lambda: figures_networks.of_arms(networks, "on what"),
        "resnet": lambda: figures_networks.epochs_and_pruning(resnet, "on what"),
        "sweep": lambda: line.plot("norm_mean"),
        "map": square.plot,
        "map of numbers": lambda: figure.figure([square], ["test_loss", "regime"]),
        "table": kept._repr_html_,
        "table of a sweep": square._repr_html_,
    }  # fmt: skip


def content(drawn):
    return drawn if isinstance(drawn, str) else canvas.render(drawn, "png")


FIGURES = (
    "two phases", "ledger", "windows", "oscillation", "screen", "curves", "many curves",
    "linearization", "networks", "resnet", "sweep", "map", "map of numbers", "table",
    "table of a sweep",
)  # fmt: skip


@pytest.mark.small
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_whatever_matplotlib_is_set_to(name, made):
    plain = content(made[name]())
    with matplotlib.rc_context(SPOILT):
        spoilt = content(made[name]())
        assert {key: matplotlib.rcParams[key] for key in ("font.size", "axes.facecolor")} == {
            "font.size": 31, "axes.facecolor": "pink",
        }  # fmt: skip
    assert plain == spoilt


@pytest.mark.small
def test_a_figure_is_saved_and_shown_as_it_was_made(made):
    one, same = made["sweep"](), made["sweep"]()
    plain = [canvas.render(one, "pdf"), one._repr_png_()]
    with matplotlib.rc_context(SPOILT):
        assert [canvas.render(same, "pdf"), same._repr_png_()] == plain


@pytest.mark.small
def test_no_figure_is_left_out(made):
    assert set(made) == set(FIGURES)


def test_a_film_is_the_same_whatever_matplotlib_is_set_to(tmp_path, monkeypatch):
    trajectory = run("label-noise")
    animation.write(trajectory, tmp_path / "plain.gif")
    with matplotlib.rc_context(SPOILT):
        animation.write(trajectory, tmp_path / "spoilt.gif")
    assert (tmp_path / "plain.gif").read_bytes() == (tmp_path / "spoilt.gif").read_bytes()
    spoilt = {**SPOILT, "animation.codec": "none", "animation.writer": "none"}
    monkeypatch.setenv("PATH", str(tmp_path))  # ffmpeg is where the user says, and nowhere else
    with matplotlib.rc_context({**spoilt, "animation.ffmpeg_path": get_ffmpeg_exe()}):
        animation.write(trajectory, tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.small
def test_the_users_axes_have_the_users_look(made):
    trajectory = run("label-noise")
    with matplotlib.rc_context({"lines.linestyle": ":", "font.size": 20, "lines.linewidth": 5}):
        axes = Figure().subplots()
        trajectory.plot("norm_mean", ax=axes)
        (line,) = axes.lines
        assert line.get_linestyle() == ":" and line.get_linewidth() == 5
        assert axes.yaxis.label.get_size() == 20 and axes.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.small
def test_what_the_user_has_set_is_back_after_drawing(made):
    with matplotlib.rc_context({**SPOILT, "timezone": "Europe/Berlin"}):
        before, backend = dict(matplotlib.rcParams), matplotlib.rcParams["backend"]
        with figures_style.drawing():
            assert matplotlib.rcParams["axes.facecolor"] == "white"
            assert matplotlib.rcParams["backend"] == backend
            with figures_style.drawing({"font.size": 12}):
                assert matplotlib.rcParams["font.size"] == 12
            assert matplotlib.rcParams["font.size"] == 8.5
        assert dict(matplotlib.rcParams) == before
        with pytest.raises(ZeroDivisionError), figures_style.drawing():
            raise ZeroDivisionError
        assert dict(matplotlib.rcParams) == before
