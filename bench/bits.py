"""Digests of every array of small runs, to check that a change of the code changes no bit.

    python bench/bits.py >after.txt        # and in an earlier checkout, with the same environment

Prints a line for each array of every experiment, of a sweep, and of the kernels of three networks:
SHA-256 of its type, shape and bytes.  Runs go through the command line, so the two checkouts need
to share only their commands and file formats.  Takes about a minute.
"""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LINEAR = ["steps=200", "record_every=50", "width=20", "dim=4", "samples=20", "test_samples=10"]
WIDE = ["samples=8", "test_samples=8", "steps=6", "record_every=2", "kernel_every=2"]
BACKENDS = ("numba", "torch")
LINEAR_RUNS: list[tuple[str, list[str]]] = [
    ("label-noise", ["ledger=true", "batch_size=2"]),
    ("label-noise", ["law=gaussian", "momentum=0.5", "weight_decay=1e-3"]),
    ("label-noise-periodic", ["period=60"]),
    ("oscillation", []),
    ("oscillation-periodic", ["period=60"]),
    ("sam", []),
]
IMAGE_RUNS = [
    ("linearization", ["samples=12", "test_samples=12", "width=16", "steps=40", "record_every=10"]),
    ("wide-resnet", WIDE),
    ("wide-resnet-sam", WIDE),
    ("resnet", [
        "samples=40", "test_samples=20", "width=2", "epochs=3", "record_every=1",
        "train_measured=0", "kept_percent=[100, 50.0, 10]",
    ]),
]  # fmt: skip


def digest(array: Any) -> str:
    """The first half of SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(array)
    header = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()[:32]


def images(path: Path) -> None:
    """Writes an .npz file of random images (N, 8, 8, 3) of ten classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 60), ("test", 40)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, 10, count).astype(np.uint8)
    np.savez(path, **arrays)


def lnsim(*arguments: str) -> None:
    """Runs a command of lnsim without output."""
    command = [sys.executable, "-m", "lnsim", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def of_runs(folder: Path) -> None:
    """Prints digests of the arrays of each experiment, on each backend that trains it."""
    images(folder / "images.npz")
    runs = [(name, backend, [*LINEAR, *keys]) for name, keys in LINEAR_RUNS for backend in BACKENDS]
    for name, keys in IMAGE_RUNS:
        for backend in BACKENDS if name == "linearization" else BACKENDS[1:]:
            runs.append((name, backend, [*keys, f"data={folder / 'images.npz'}"]))
    for number, (name, backend, keys) in enumerate(runs):
        out = folder / str(number)
        lnsim("run", name, "--backend", backend, "--out", str(out), "--set", *keys)
        with np.load(out / "trajectory.npz") as arrays:
            digests = {key: digest(arrays[key]) for key in sorted(arrays.files) if key != "about"}
        state = [key + digests.pop(key) for key in list(digests) if key.startswith("state_")]
        digests["state"] = hashlib.sha256(" ".join(state).encode()).hexdigest()[:32]
        for key, value in digests.items():
            print(f"{number} {name} {backend} {key} {value}")


def of_a_sweep(folder: Path) -> None:
    """Prints digests of the rows of a small sweep."""
    out = folder / "sweep"
    lnsim(
        "sweep",
        "label-noise",
        "--grid",
        "sigma=0.5,2",
        "--seeds",
        "3",
        "--set",
        *LINEAR,
        "--out",
        str(out),
    )
    with sqlite3.connect(out / "sweep.sqlite") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            rows = sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
            for i, row in enumerate(rows):
                print(f"sweep {table} {i} {hashlib.sha256(row.encode()).hexdigest()[:32]}")


def of_kernels() -> None:
    """Prints digests of the kernels, full and mean, of three networks."""
    import torch
    from lnsim_torch import empirical_ntk
    from lnsim_torch.networks import resnet18, wide_resnet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    perceptron = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 30), torch.nn.GELU(), torch.nn.Linear(30, 4)
    )
    x, x_test = torch.randn(6, 3, 8, 8), torch.randn(3, 3, 8, 8)
    networks = {
        "mlp": perceptron, "wide-resnet": wide_resnet(1, 1), "resnet18": resnet18(width=4).eval()
    }  # fmt: skip
    for name, network in networks.items():
        for outputs in ("full", "mean"):
            for other in (None, x_test):
                kernel = empirical_ntk(network, x, other, outputs=outputs)
                print(f"ntk {name} {outputs} {other is None} {digest(kernel)}")


def main() -> None:
    """Prints all digests."""
    with tempfile.TemporaryDirectory() as folder:
        of_runs(Path(folder))
        of_a_sweep(Path(folder))
    of_kernels()


if __name__ == "__main__":
    main()
