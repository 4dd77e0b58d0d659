"""Sweeps small enough for tests."""

from concurrent.futures import ThreadPoolExecutor

import lnsim

BASE = {"samples": 12, "test_samples": 20, "dim": 3, "width": 20, "steps": 200, "record_every": 20}
GRID = {"sigma": "0:4:3", "lr": "1e-3,0.08,100"}


def tiny(out, grid=GRID, *, threads=1, base=BASE, experiment="label-noise", **options):
    """A sweep in a thread of this process."""
    with ThreadPoolExecutor(threads) as executor:
        options = {"executor": executor, "seeds": 2, **options}
        return lnsim.sweep(experiment, grid, out=out, base=base, **options)
