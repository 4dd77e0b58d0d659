"""Networks recomputed where sums are rounded otherwise: another number of processes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from lnsim.cli.main import main
from lnsim.run.record import Status
from lnsim.simulation import rounding
from lnsim.simulation.trajectory import Trajectory
from lnsim.simulation.verify import verify


def write_images(path, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 60), ("test", 40)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 10, count)
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with images, and runs on them.

    `amplified` is of two processes: so small a batch norm multiplies their rounding a hundredfold
    in an epoch. `calm` has no batch norm, and measures no curvature: `amplified` does.
    """
    root = tmp_path_factory.mktemp("runs")
    data = root / "images.npz"
    write_images(data, 0)
    given = [
        f"data={data}", "width=2", "samples=50", "test_samples=40", "epochs=8", "lr=0.1",
        "batch_size=10", "record_every=1", "tau=[0.0,0.6]", "kept_percent=[100,50,10]",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "lnsim", "run", "resnet", "--device", "cpu",
         "--out", str(root / "amplified"), "--set", *given],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calm = [f"data={data}", "samples=15", "test_samples=15", "steps=6", "record_every=2",
            "kernel_every=4", "curvature_every=0"]  # fmt: skip
    words = ["run", "wide-resnet", "--device", "cpu", "--out", str(root / "calm"), "--set", *calm]
    assert main(words) == 0
    return root


def elsewhere(trajectory, **changes):
    """The run with other arrays, as if two processes had made it."""
    return replace(
        trajectory,
        provenance={**trajectory.provenance, "processes": 2},
        arrays={**trajectory.arrays, **changes},
    )


def test_a_run_of_two_processes_is_no_other_run(root, capsys):
    trajectory = Trajectory.load(root / "amplified")
    assert trajectory.provenance["processes"] == 2
    capsys.readouterr()
    assert main(["verify", str(root / "amplified")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1].endswith("within a tolerance, as processes was 2 and is 1")
    assert told[2].startswith("rounding      is amplified in training, as expected: compared up to")
    step = int(told[2].rpartition(" ")[2])
    assert 0 <= step < trajectory.steps[-1]
    assert told[3:] == [f"result        all the same up to step {step}"]


@pytest.mark.parametrize("name", ["train_loss", "test_loss"])
def test_of_an_amplified_run_the_first_records_are_compared(root, name):
    trajectory = Trajectory.load(root / "amplified")
    for record, same in ((0, False), (-1, True)):
        changed = trajectory[name].copy()
        changed[1, record] *= 1.02
        result = verify(replace(trajectory, arrays={**trajectory.arrays, name: changed}))
        assert result.same is same, result.lines
    assert verify(trajectory).same


def test_other_images_are_another_run(root, tmp_path):
    trajectory = Trajectory.load(root / "amplified")
    write_images(tmp_path / "others.npz", 1)
    moved = {**trajectory.config, "data": str(tmp_path / "others.npz")}
    result = verify(replace(trajectory, config=moved))
    assert not result.same and "environment.json belongs to another" in " ".join(result.lines)
    about = {k: v for k, v in trajectory.provenance.items() if k != "config_sha256"}
    images = replace(trajectory, config=moved, provenance=about)
    result = verify(images)
    assert not result.same and "state images" in " ".join(result.lines)


def test_a_calm_run_is_compared_to_its_end(root):
    trajectory = Trajectory.load(root / "calm")
    result = verify(elsewhere(trajectory))
    assert result.same and result.lines[-1] == "result        all the same", result.lines
    assert result.lines[2] == "rounding      may have changed numbers by 0.1% up to step 6"
    for name in (
        "noisy_test_loss",
        "clean_ntk_distance",
        "noisy_first_layer_norm",
        "linearized_train_loss",
    ):
        near, far = (
            trajectory[name] * np.linspace(1, end, trajectory[name].size) for end in (1.0005, 1.005)
        )
        assert verify(elsewhere(trajectory, **{name: near})).same, name
        result = verify(elsewhere(trajectory, **{name: far}))
        assert not result.same and any(name in line for line in result.lines), name
    quicker = replace(
        elsewhere(trajectory),
        config={**trajectory.config, "lr": 2.05},
        provenance={
            **{k: v for k, v in trajectory.provenance.items() if k != "config_sha256"},
            "processes": 2,
        },
    )
    assert not verify(quicker).same
    state = {**trajectory.state}
    name = next(name for name in state if ".state.network." in name)
    state[name] = state[name] * 1.01
    assert not verify(replace(elsewhere(trajectory), state=state)).same


def test_an_accuracy_may_be_off_by_two_images(root):
    trajectory = Trajectory.load(root / "calm")
    for images, same in ((2, True), (3, False)):
        changed = trajectory["clean_test_accuracy"].copy()
        changed[1] += images / 15
        assert verify(elsewhere(trajectory, clean_test_accuracy=changed)).same is same


def test_where_time_is_up_what_was_recomputed_is_compared(root):
    trajectory = Trajectory.load(root / "calm")
    result = verify(elsewhere(trajectory), seconds=0.0)
    assert result.same and result.lines[2].endswith("by 0.1% up to step 0")
    changed = trajectory["clean_test_loss"].copy()
    changed[0] *= 1.01
    assert not verify(elsewhere(trajectory, clean_test_loss=changed), seconds=0.0).same


def test_another_end_is_another_run_where_rounding_decides_nothing(root):
    trajectory = Trajectory.load(root / "calm")
    diverged = replace(elsewhere(trajectory), status=Status("DIVERGED", 6))
    assert any("recomputed, it finished" in line for line in verify(diverged).lines)
    amplified = Trajectory.load(root / "amplified")
    assert verify(replace(amplified, status=Status("DIVERGED", 40))).same


def curve(values, status="OK"):
    steps = np.arange(len(values)) * 5
    arrays = {"step": steps, "clean_test_loss": np.array(values, dtype=float)}
    return Trajectory(arrays, {}, Status(status, int(steps[-1])))


@pytest.mark.parametrize(
    ("moved", "status", "last", "amplified"),
    [
        ([4, 2, 1, 1], "OK", 15, False),
        ([4, 2 + 4e-7, 1 + 4e-4, 1], "OK", 15, False),
        ([4, 2 + 4e-7, 1 + 4e-3, 1], "OK", 5, True),  # it does not come back
        ([4, 2.1, 1, 1], "OK", 0, True),
        ([4, 2, np.nan, np.nan], "DIVERGED", 5, True),
        ([4, 2, np.nan, np.nan], "STOPPED", 5, False),
    ],
)
def test_how_far_a_run_is_compared(moved, status, last, amplified):
    limit = rounding.allowed(curve([4, 2, 1, 1]), curve(moved, status))
    assert (limit.last_step, limit.amplified) == (last, amplified)
    assert limit.at_the_end == (last == 15)
    kept = limit.tolerance[: last // 5 + 1]
    assert (np.diff(kept) >= 0).all() and kept[0] == 1e-3 and kept[-1] <= 0.05


def test_records_that_neither_has_are_alike_where_both_have_ended():
    diverged = curve([4, 2, np.nan], "DIVERGED")
    assert rounding.allowed(diverged, diverged).at_the_end
    stopped = curve([4, 2, np.nan], "STOPPED")
    for moved in (stopped, curve([4, 2, 1])):
        limit = rounding.allowed(stopped, moved)
        assert (limit.last_step, limit.at_the_end, limit.amplified) == (5, False, False)
