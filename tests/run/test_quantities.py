"""The table of quantities: what is made of its rows, and what a new row brings."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lnsim
from lnsim.figures import curves as figures_curves
from lnsim.run import curves, experiment, quantities
from lnsim.run.quantities import Axis, Quantity
from lnsim.run.quantity import NETWORKS
from lnsim.simulation import observables
from lnsim.simulation.verify import verify
from lnsim.sweeps import points
from lnsim.sweeps.sweep import Sweep

pytestmark = pytest.mark.small

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

STEPS, EVERY = 60, 6
BASE = {"samples": 10, "test_samples": 10, "dim": 3, "width": 5}
BASE |= {"steps": STEPS, "record_every": EVERY}

LARGEST = Quantity(
    name="norm_largest", formula="the largest ‖wᵢ‖", drawn=(quantities.TWO_LAYER,),
    label=r"largest $\|w_i\|$", last_label=r"largest $\|w_i\|$ at the end", beside="norm_mean",
)  # fmt: skip


@pytest.fixture
def largest(monkeypatch):
    """The table with a new quantity: a row and its formula."""
    monkeypatch.setitem(quantities.TABLE, LARGEST.name, LARGEST)
    monkeypatch.setitem(observables.FORMULAS, LARGEST.name, lambda view: view.norms.max(axis=1))


def run(**changes):
    label_noise = experiment.load("label-noise")
    return label_noise.run(label_noise.Config(**BASE | changes))


def swept(folder, sigmas):
    with ThreadPoolExecutor(1) as executor:
        return lnsim.sweep(
            "label-noise", {"sigma": sigmas}, out=folder, base=BASE, executor=executor
        )


def test_a_new_row_is_recorded_and_summarised(largest, tmp_path):
    trajectory = run(tracked=BASE["width"])
    expected = trajectory["tracked_norm"].max(axis=1)
    np.testing.assert_array_equal(trajectory["norm_largest"], expected)
    ends = trajectory.summary()["first_and_last"]["norm_largest"]
    assert ends == [expected[0], expected[-1]]
    trajectory.save(tmp_path)
    kept = lnsim.Trajectory.load(tmp_path)
    np.testing.assert_array_equal(kept["norm_largest"], expected)
    result = verify(kept, seed=0)
    assert result.same, result.lines
    problem, network = lnsim.gaussian_regression(4, 2), lnsim.ntk_init(3, 2)
    with pytest.raises(ValueError, match="'norm_largest': a trajectory has an array of that name"):
        lnsim.simulate(
            problem, network, lnsim.GD(1e-2), steps=1, record_every=1,
            observables={"norm_largest": np.size},
        )  # fmt: skip


def test_a_new_row_is_recorded_of_an_ensemble(largest):
    problem, network = lnsim.gaussian_regression(6, 3), lnsim.ntk_init(4, 3)
    noise = lnsim.LabelNoise(1.0)
    ensemble = lnsim.simulate(
        problem, network, lnsim.SGD(1e-2, noise), steps=8, record_every=4, replicas=2
    )
    assert ensemble["norm_largest"].shape == (2, 3)
    last = [np.linalg.norm(W, axis=1).max() for W in ensemble["final_W"]]
    np.testing.assert_allclose(ensemble["norm_largest"][:, -1], last, rtol=1e-12)


def test_a_new_row_is_drawn(largest):
    trajectory = run()
    figure = figures_curves.figure([trajectory], [""])
    axes = {axes.get_ylabel(): axes for axes in figure.axes}[r"largest $\|w_i\|$"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), trajectory["norm_largest"])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), trajectory.steps)
    (alone,) = trajectory.plot("norm_largest").axes
    assert alone.get_ylabel() == r"largest $\|w_i\|$"


def test_a_new_row_is_swept(largest, tmp_path):
    sweep = swept(tmp_path / "sweep", [0.5, 2.0])
    expected = [run(sigma=sigma)["norm_largest"][-1] for sigma in (0.5, 2.0)]
    assert sweep["norm_largest"].tolist() == expected
    (axes,) = sweep.plot("norm_largest").axes
    assert axes.get_ylabel() == r"largest $\|w_i\|$ at the end"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), expected)
    header = sweep.csv().splitlines()[0].split(",")
    assert header.index("norm_largest") == header.index("ntk_distance") + 1


def test_a_sweep_begun_without_a_quantity_goes_on_without_it(tmp_path, request):
    begun = swept(tmp_path / "sweep", [0.5])
    request.getfixturevalue("largest")
    longer = swept(tmp_path / "sweep", [0.5, 2.0])
    assert (longer.new, len(longer.rows)) == (1, 2)
    assert longer.rows[0] == begun.rows[0]
    assert longer["norm_mean"][1] == run(sigma=2.0)["norm_mean"][-1]
    assert longer.rows == Sweep.load(tmp_path / "sweep").rows
    with pytest.raises(ValueError, match="was begun without the column 'norm_largest'"):
        longer.plot("norm_largest")


def test_a_new_row_stands_in_the_readme(largest):
    line = next(line for line in quantities.markdown().splitlines() if "`norm_mean`" in line)
    assert line == (
        "| `norm_mean`, `norm_squared`, `second_layer_norm`, `norm_largest` "
        "| mean ‖wᵢ‖; ‖W‖²_F; ‖a‖; the largest ‖wᵢ‖ |"
    )


def test_the_readme_has_the_table():
    assert f"\n\n{quantities.markdown()}\n" in README


def test_names_stand_in_files_and_figures_in_the_order_in_which_they_always_did():
    of_networks = (
        "train_loss", "test_loss", "norm_mean", "norm_squared", "second_layer_norm",
        "alignment_mean", "cosine_mean", "interpolator_distance", "lazy_fraction", "ntk_distance",
    )  # fmt: skip
    twins = ("linearized_train_loss", "linearized_test_loss")
    tracked = ("tracked_norm", "tracked_alignment", "tracked_second_layer")
    ledger = ("ledger_removed", "ledger_restored")
    clouds = ("cloud_norm", "cloud_alignment", "lemma_3_nonpositive", "lemma_3_decrease")
    measures = (
        "sharpness", "hessian_trace", "flatness_gap", "kernel_alignment", "effective_rank",
        "balancedness", "gradient_noise", "batch_sharpness",
    )  # fmt: skip
    trajectory = run(ledger=True)
    assert [name for name in trajectory.arrays if name not in ("final_W", "final_a")] == [
        *of_networks, *twins, *measures, *tracked, *ledger, *clouds, "lazy_escape", "step",
        "cloud_step", "theta_star", "tracked_neurons", "diverged_at",
    ]  # fmt: skip
    assert tuple(points.columns())[9:19] == of_networks
    assert quantities.drawn(quantities.TWO_LAYER) == [
        "train_loss", "test_loss", "norm_mean", "alignment_mean", "cosine_mean"
    ]  # fmt: skip
    assert quantities.drawn(*NETWORKS) == [
        "train_loss", "test_loss", "test_accuracy", "first_layer_norm", "norm_mean",
        "ntk_distance", "pruned_accuracy", "sharpness",
    ]  # fmt: skip
    curvature = ("sharpness", "hessian_trace")
    assert quantities.names(quantities.RESNET) == (
        "train_loss", "test_loss", "train_accuracy", "test_accuracy", "smoothed_test_accuracy",
        *curvature,
    )  # fmt: skip
    assert quantities.names(quantities.WIDE_RESNET) == (
        "train_loss", "test_loss", "train_accuracy", "test_accuracy", "first_layer_norm",
        "ntk_distance", *curvature, "kernel_alignment", "kernel_rank",
    )  # fmt: skip


def test_every_array_of_a_run_is_as_its_row_says():
    trajectory = run(ledger=True, tracked=2, measures="all")
    records, clouds = trajectory.steps.size, trajectory["cloud_step"].size
    assert clouds < records
    rows = [row for row in quantities.TABLE.values() if quantities.TWO_LAYER in row.models]
    assert {row.name for row in rows if row.axis is not Axis.FILE} == trajectory.arrays.keys()
    for row in rows:
        if row.axis in (Axis.RECORD, Axis.CLOUD):
            neurons = 2 if row.name.startswith("tracked_") else BASE["width"]
            if row.name == "hessian_spectrum":
                neurons = trajectory["hessian_multiplicity"].size
            count = records if row.axis is Axis.RECORD else clouds
            shape = (count, neurons) if row.of_neurons else (count,)
            assert trajectory[row.name].shape == shape, row.name
    over = {name: curves.axis(trajectory, name) for name in curves.names(trajectory)}
    assert set(over.values()) == {"step", "cloud_step"}
    assert [name for name, axis in over.items() if axis == "cloud_step"] == [
        "lemma_3_nonpositive", "lemma_3_decrease"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train_loss", "train_loss"),
        ("noisy_train_loss", "train_loss"),
        ("linearized_test_loss", "linearized_test_loss"),
        ("sam_ntk_distance", "ntk_distance"),
        ("tau", "tau"),
        ("my_train_loss", None),
        ("clean_tau", None),
        ("noisy_tracked_norm", None),
        ("effective_rank", "effective_rank"),
        ("stable_rank", None),
    ],
)
def test_a_row_is_found_by_the_name_of_an_array(name, found):
    row = quantities.find(name)
    assert (row and row.name) == found


@pytest.mark.parametrize(
    "name", ["cloud_size", "tracked_size", "lemma_3_mine", "images", "kept_percent", "kernel_step"]
)
def test_an_observable_is_a_curve_whatever_its_name(name):
    problem, network = lnsim.gaussian_regression(4, 2), lnsim.ntk_init(3, 2)
    trajectory = lnsim.simulate(
        problem, network, lnsim.GD(1e-2), steps=4, record_every=2,
        observables={name: lambda network: float(network.W[0, 0])},
    )  # fmt: skip
    assert trajectory.summary()["first_and_last"][name] == trajectory[name][[0, -1]].tolist()
    assert curves.axis(trajectory, name) == "step"


def test_rows_refer_to_rows():
    for name, row in quantities.TABLE.items():
        assert name == row.name and row.formula
        assert set(row.drawn) <= set(row.models) <= {*quantities.ALL, *quantities.ANY}
        assert not row.beside or not quantities.TABLE[row.beside].beside
    assert set(quantities.INDEXES) <= quantities.TABLE.keys() >= observables.FORMULAS.keys()
