"""The section of `reproduce` on networks on images, at sizes at which it shows nothing."""

import json

import numpy as np
import pytest
from drawn_once import drawn_once

from lnsim.run.record import Record, Status

torch = pytest.importorskip("torch")

from lnsim.verdicts import judge, networks, reproduce

WIDE = {"samples": 8, "test_samples": 8, "steps": 4, "record_every": 2, "kernel_every": 4,
        "curvature_every": 2}  # fmt: skip
OVERRIDES = {
    "label-noise": {"samples": 12, "dim": 4, "width": 10, "lr": 1e-2, "steps": 40,
                    "record_every": 10},
    "wide-resnet": WIDE,
    "wide-resnet-sam": WIDE,
    "resnet": {"samples": 20, "test_samples": 10, "width": 2, "epochs": 2, "record_every": 1,
               "train_measured": 0, "kept_percent": [100, 10], "curvature_every": 2,
               "batch_size": 10},
}  # fmt: skip


@pytest.fixture
def one_synthetic_run(monkeypatch):
    """Of what reproduce does without images, which test_reproduce.py checks, one run is left."""
    monkeypatch.setattr(reproduce, "SYNTHETIC", ("label-noise",))
    monkeypatch.setattr(reproduce, "_sections", lambda runner, runs: [])


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 40), ("test", 20)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, 10, count).astype(np.uint8)
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def test_the_networks_are_trained_and_judged(one_synthetic_run, tmp_path, images):
    out = tmp_path / "page"
    with drawn_once():
        verdicts = reproduce.reproduce(out, overrides=OVERRIDES, data=images)
    assert [v.source for v in verdicts] == ["networks"] * 3
    assert all(np.isfinite(v.measured) for v in verdicts)
    for name in networks.RUNS:
        assert (out / name / "trajectory.npz").is_file() and (out / name / "figure.png").is_file()
    sections = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))["sections"]
    assert sections[-1]["key"] == "networks"
    assert '<section id="networks">' in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("flatter", "verdict"), [(0.5, judge.HOLDS), (2.0, judge.FAILS)])
def test_each_network_is_set_beside_the_one_without(flatter, verdict):
    def arms(*names):
        arrays = {}
        for name, share in names:
            for series in networks.MEASURED:
                arrays[f"{name}_{series}"] = np.array([9.0, share])
        return arrays

    def record(arrays):
        return Record({"step": np.arange(2), **arrays}, {}, Status("OK", 1))

    residual = {name: np.array([[9.0, flatter], [9.0, 1.0]]) for name in networks.MEASURED}
    runs = {
        "wide-resnet": record(arms(("clean", 1.0), ("noisy", flatter))),
        "wide-resnet-sam": record(arms(("clean", 1.0), ("sam", flatter))),
        "resnet": record({**residual, "tau": np.array([0.1, 0.0])}),
    }
    verdicts = networks.sharpness(runs)
    assert [v.verdict for v in verdicts] == [verdict] * 3
    assert all((v.predicted, v.measured) == (1.0, flatter) for v in verdicts)
