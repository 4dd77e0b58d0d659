"""Run folders, checkpoints and sweeps that an earlier lnsim left are read and gone on with.

`earlier/` was written by the last commit at which all modules stood in one folder, on numpy 2.4 and
torch 2.14: every experiment named below run to its end, and stopped at its second record.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lnsim import Sweep, Trajectory, sweep
from lnsim.cli.main import main

EARLIER = Path(__file__).parent / "earlier"
SYNTHETIC = ("label-noise", "oscillation-periodic", "sam", "linearization")
CLOSE = {"linearization": 1e-5, "resnet": 1e-3}
"""Relative differences that float32 sums of another processor or version may make."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the files, from which the images' relative path is right."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.small) for name in SYNTHETIC), "resnet"]
)
def test_a_stopped_run_goes_on_to_the_earlier_end(name, folder):
    if name == "resnet":
        pytest.importorskip("torch")
    stopped = folder / f"{name}-stopped"
    assert Trajectory.load(stopped, "checkpoint.npz").status.step > 0
    assert main(["run", "--resume", "--out", str(stopped)]) == 0
    end, earlier = Trajectory.load(stopped), Trajectory.load(folder / name)
    assert end.status == earlier.status
    assert end.config == earlier.config
    assert end.arrays.keys() == earlier.arrays.keys()
    for key, values in earlier.arrays.items():
        np.testing.assert_allclose(
            end[key], values, rtol=CLOSE.get(name, 1e-9), atol=1e-9, err_msg=key
        )


@pytest.mark.parametrize("name", [*SYNTHETIC, "resnet"])
def test_a_finished_run_is_verified_and_drawn(name, folder):
    if name == "resnet":
        pytest.importorskip("torch")
    assert main(["verify", str(folder / name), "--seed", "0"]) == 0
    assert main(["plot", str(folder / name)]) == 0
    assert (folder / name / "figure.png").stat().st_size > 10_000


@pytest.mark.small
def test_a_sweep_is_read_and_extended(folder):
    earlier = Sweep.load(folder / "sweep")
    assert earlier["sigma"].tolist() == [0.5, 0.5, 2.0, 2.0]
    longer = sweep("label-noise", {"sigma": [0.5, 2.0, 3.0]}, out=folder / "sweep", seeds=3,
                   base=dict(earlier.base))  # fmt: skip
    assert (longer.new, longer.missing, len(longer.rows)) == (5, 0, 9)
    there = [row for row in longer.rows if row["sigma"] < 3 and row["seed"] < 2]
    assert there == list(earlier.rows)
