"""Recomputing a segment: an honest run passes, one changed number is found where it lies."""

from dataclasses import replace

import numpy as np
import pytest

from lnsim import simulate
from lnsim.base import archive
from lnsim.cli.main import main
from lnsim.dynamics import SGD
from lnsim.models.problems import gaussian_regression
from lnsim.models.two_layer import ntk_init
from lnsim.run.record import Status
from lnsim.simulation import verify as verifying
from lnsim.simulation.recorder import WAYPOINTS_HOLD
from lnsim.simulation.snapshots import waypoint_records
from lnsim.simulation.trajectory import Trajectory
from lnsim.simulation.verify import verify

SMALL = ["samples=20", "test_samples=10", "dim=4", "width=12", "lr=1e-2", "steps=200",
         "record_every=20", "tracked=2"]  # fmt: skip
SYNTHETIC = ("label-noise", "label-noise-periodic", "oscillation", "oscillation-periodic", "sam")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run folder of each synthetic experiment."""
    root = tmp_path_factory.mktemp("runs")
    for name in SYNTHETIC:
        more = ["ledger=true"] if name == "label-noise" else []
        assert main(["run", name, "--out", str(root / name), "--set", *SMALL, *more]) == 0
    return root


def seed_of(trajectory, steps):
    """A seed that draws the segment with these steps at its ends."""
    for seed in range(100):
        line = verify(trajectory, seed=seed).lines[0]
        if line.startswith(f"recomputed    steps {steps},"):
            return seed
    raise AssertionError(f"no seed draws {steps}")


@pytest.mark.small
@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_segment_of_an_honest_run_agrees_to_the_bit(runs, name):
    trajectory = Trajectory.load(runs / name)
    drawn = set()
    for seed in range(12):
        result = verify(trajectory, seed=seed)
        assert result.same and "bit for bit" in result.lines[1], result.lines
        drawn.add(result.lines[0].partition(", a segment")[0])
    # States are kept at records 1, 2, 4 and 8 of 10.
    ends = [(0, 20), (20, 40), (40, 80), (80, 160), (160, 200)]
    assert drawn <= {f"recomputed    steps {a} to {b}" for a, b in ends} and len(drawn) > 2


@pytest.mark.small
@pytest.mark.parametrize("array", ["norm_mean", "train_loss", "tracked_norm", "ledger_removed"])
def test_one_changed_number_is_found_in_its_segment_alone(runs, array):
    honest = Trajectory.load(runs / "label-noise")
    changed = honest[array].copy()
    changed[6] = np.nextafter(changed[6], np.inf)
    forged = replace(honest, arrays={**honest.arrays, array: changed})
    result = verify(forged, seed=seed_of(honest, "80 to 160"))
    assert not result.same
    assert array in result.lines[-1] and "at the record of step 120:" in result.lines[-1]
    assert verify(forged, seed=seed_of(honest, "20 to 40")).same


@pytest.mark.small
@pytest.mark.parametrize("array", ["final_W", "lazy_escape", "cloud_norm", "theta_star"])
def test_a_changed_end_is_found(runs, array):
    honest = Trajectory.load(runs / "label-noise")
    changed = honest[array].copy()
    changed.flat[-1] += 1.0
    forged = replace(honest, arrays={**honest.arrays, array: changed})
    result = verify(forged, seed=seed_of(honest, "160 to 200"))
    assert not result.same and any(array in line for line in result.lines)


@pytest.mark.small
def test_networks_stopped_at_other_steps_are_not_compared_at_their_ends():
    def stopped(**steps):
        state = {f"{arm}.status": np.array(f'["STOPPED", {step}]') for arm, step in steps.items()}
        state |= {f"{arm}.state.weight": np.array(float(step)) for arm, step in steps.items()}
        return Trajectory({"step": np.array([0, 5])}, {}, Status("STOPPED", 10), state)

    recorded = stopped(clean=10, noisy=20)
    compared = [
        {pair.name for pair in verifying._pairs(recorded, again, None)}
        for again in (recorded, stopped(clean=10, noisy=10), stopped(clean=10))
    ]
    assert "state noisy.state.weight" in compared[0]
    assert compared[1] == compared[2] == {"step"}


@pytest.mark.small
def test_differences_fill_no_screens(runs):
    honest = Trajectory.load(runs / "label-noise")
    changed = {name: value + 1 for name, value in honest.arrays.items() if value.dtype.kind == "f"}
    forged = replace(honest, arrays={**honest.arrays, **changed})
    lines = verify(forged, seed=seed_of(honest, "160 to 200")).lines
    assert [line.split()[0] for line in lines[2:]] == ["differs"] * 11
    assert lines[-1].endswith(" more")


@pytest.mark.small
def test_what_is_another_elsewhere_is_named_and_tolerated(runs):
    honest = Trajectory.load(runs / "label-noise")
    elsewhere = {**honest.provenance, "cpu": "another"}
    close = {"norm_mean": honest["norm_mean"] * (1 + 1e-9)}
    there = replace(honest, provenance=elsewhere, arrays={**honest.arrays, **close})
    result = verify(there, seed=1)
    assert result.same and "within a tolerance, as cpu was another and is" in result.lines[1]
    by_two = replace(honest, provenance={**honest.provenance, "processes": 2})
    assert "within a tolerance, as processes was 2 and is 1" in verify(by_two, seed=1).lines[1]
    far = {"norm_mean": honest["norm_mean"] * (1 + 1e-5)}
    assert not verify(replace(there, arrays={**honest.arrays, **far}), seed=1).same


@pytest.mark.small
def test_the_command(runs, tmp_path, capsys):
    folder = runs / "label-noise"
    capsys.readouterr()
    assert main(["verify", str(folder), "--seed", "3"]) == 0
    assert "all the same" in capsys.readouterr().out
    honest = Trajectory.load(folder)
    replace(honest, arrays={**honest.arrays, "train_loss": honest["train_loss"] + 1.0}).save(
        tmp_path
    )
    assert main(["verify", str(tmp_path), "--seed", "3"]) == 1
    assert "differs       train_loss at the record of step" in capsys.readouterr().out
    for arguments, says in (
        ([str(tmp_path / "none")], "is not a run folder"),
        ([str(folder), "--seconds", "-1"], "seconds must be at least 0, got -1"),
    ):
        assert main(["verify", *arguments]) == 2
        output = capsys.readouterr()
        assert says in output.err and output.err.count("\n") == 1


@pytest.mark.small
def test_it_stops_in_time_and_compares_what_it_has(runs):
    trajectory = Trajectory.load(runs / "sam")
    result = verify(trajectory, seed=seed_of(trajectory, "80 to 160"), seconds=0.0)
    assert result.same and result.lines[0].startswith("recomputed    steps 80 to 100,")


@pytest.mark.small
def test_a_run_that_diverged_diverges_again(tmp_path):
    arguments = ["run", "label-noise", "--out", str(tmp_path), "--set", *SMALL, "lr=0.5"]
    assert main(arguments) == 3
    trajectory = Trajectory.load(tmp_path)
    for seed in range(4):
        assert verify(trajectory, seed=seed).same
    ended = replace(trajectory, status=replace(trajectory.status, code="OK"))
    found = [verify(ended, seed=seed) for seed in range(4)]
    assert any("recomputed, it diverged at step" in line for r in found for line in r.lines)


@pytest.mark.small
def test_states_on_the_way_are_few_and_small():
    assert waypoint_records(1) == []
    assert waypoint_records(9) == [1, 2, 4, 8]
    problem, network = gaussian_regression(samples=10, dim=5, seed=0), ntk_init(20_000, 5, 0)
    run = simulate(problem, network, SGD(lr=1e-3), steps=300, record_every=1)
    kept = [value for name, value in run.state.items() if name.startswith("at ")]
    assert 0 < sum(value.nbytes for value in kept) <= WAYPOINTS_HOLD
    assert not any(name.startswith("at 256:") for name in run.state)


@pytest.mark.small
def test_a_run_of_nobodys_experiment_is_refused():
    problem, network = gaussian_regression(samples=10, dim=2, seed=0), ntk_init(3, 2, 0)
    run = simulate(problem, network, SGD(lr=1e-3), steps=4, record_every=1)
    with pytest.raises(ValueError, match="only a run of an experiment can be verified"):
        verify(run)


@pytest.mark.small
def test_networks_are_recomputed_from_the_start(tmp_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(10)
    archive.write(tmp_path / "images.npz", arrays)
    small = [f"data={tmp_path / 'images.npz'}", "samples=10", "test_samples=10", "width=1",
             "epochs=3", "batch_size=5", "record_every=1", "tau=[0.0,0.5]"]  # fmt: skip
    out = tmp_path / "run"
    assert main(["run", "resnet", "--out", str(out), "--device", "cpu", "--set", *small]) == 0
    honest = Trajectory.load(out)
    assert verify(honest).same
    changed = honest["test_loss"].copy()
    changed[0, 2] += 1e-6
    forged = replace(honest, arrays={**honest.arrays, "test_loss": changed})
    result = verify(forged)
    assert not result.same and result.lines[-1].startswith(
        "differs       test_loss[0, 2]: recorded"
    )
