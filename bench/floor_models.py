"""lnsim's other models against hand-written C loops of the same algorithm, and against NumPy.

    python -m bench.floor_models [--out FILE.json]

A whole simulate() call and the loop it is held against take turns in one process, on one thread;
times are CPU time, which another program that shares the processor does not count into.  The C
loops (floor_models.c, plain loops, `cc -O3 -march=native`, and once more with `-Ofast`) read words
of the random stream that are ready, and work out of them what they draw; simulate() makes its words
too.  Of the deep network in batches of 64 the eight matrix products of a step in NumPy are timed,
nothing else.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lnsim
from bench.floor import ROUNDS, compile_c
from bench.rounds import interleaved
from bench.tables import Cell, Table, parser, ratios, report
from lnsim.streams import WordStream

OPTIMISED = ("-O3", "-Ofast")
SAMPLES, DIM, WIDTH, OUTPUTS, SIDE, BATCH = 200, 20, 1000, 10, 64, 64


@dataclass
class Case:
    """A simulation of so many steps, and by name the loops that take as many, without a check."""

    problem: lnsim.Problem
    network: Any
    dynamics: lnsim.SGD
    steps: int
    floors: dict[str, Callable[[int], object]]

    def simulate(self, steps: int) -> lnsim.Trajectory:
        """One whole call."""
        return lnsim.simulate(
            self.problem, self.network, self.dynamics, steps=steps, record_every=max(steps, 1)
        )


def load_loops(folder: Path, optimised: str) -> ctypes.CDLL:
    """The C loops."""
    program = folder / f"floor{optimised}.so"
    compile_c("floor_models.c", program, optimised, "-shared", "-fPIC")
    return ctypes.CDLL(str(program))


def call(function: Any, *arguments: Any) -> None:
    """Calls a C function: arrays are pointers, None is the null pointer, int long."""
    converted: list[Any] = []
    for each in arguments:
        if isinstance(each, np.ndarray):
            converted.append(each.ctypes.data_as(ctypes.c_void_p))
        elif isinstance(each, float):
            converted.append(ctypes.c_double(each))
        else:
            converted.append(None if each is None else ctypes.c_long(each))
    function.restype = None
    function(*converted)


def words(steps: int) -> NDArray[np.uint64]:
    """The words of the stream that simulate() reads, seed 0."""
    return WordStream(0, 1).take(steps)[0].copy()


def two_layer(libraries: dict[str, Any], *, classes: bool) -> Case:
    """C = 10 outputs, reduced to p = r + C: label noise, or cross-entropy with flips."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((SAMPLES, DIM))
    Y = X @ rng.standard_normal((DIM, OUTPUTS)) / 4
    labels = Y.argmax(1)
    network = lnsim.ntk_init(WIDTH, DIM, outputs=OUTPUTS)
    steps, lr, sigma, tau = 200_000, 1e-3, 1.0, 0.3
    if classes:
        problem = lnsim.Problem(X, labels, loss="cross-entropy")
        dynamics = lnsim.SGD(lr, lnsim.LabelFlips(tau))
    else:
        problem, dynamics = lnsim.Problem(X, Y), lnsim.SGD(lr, lnsim.LabelNoise(sigma))
    coordinates = network.reduced(X, hidden=True, inputs=True)
    inputs = np.ascontiguousarray(coordinates.X)
    width, rank = coordinates.model.width, inputs.shape[1]
    drawn = words(2 * steps)

    def loop(functions: Any, count: int) -> NDArray[np.float64]:
        theta = coordinates.model.flat.copy()
        call(
            functions.two_layer, theta, inputs, Y, labels if classes else None, drawn, count,
            SAMPLES, rank, width, OUTPUTS, lr, sigma, tau,
        )  # fmt: skip
        return theta

    return _case(problem, network, dynamics, steps, loop, libraries)


def diagonal(libraries: dict[str, Any]) -> Case:
    """d = 100, label noise."""
    rng = np.random.default_rng(0)
    n, d, lr, sigma, steps = 40, 100, 1e-3, 0.1, 1_000_000
    X, beta = rng.standard_normal((n, d)), np.zeros(d)
    beta[:5] = 1.0
    problem, network = lnsim.Problem(X, X @ beta), lnsim.diagonal_init(d, 0.1)
    drawn = words(steps)

    def loop(functions: Any, count: int) -> NDArray[np.float64]:
        theta = network.flat.copy()
        call(functions.diagonal, theta, X, problem.y, drawn, count, n, d, lr, sigma)
        return theta

    dynamics = lnsim.SGD(lr, lnsim.LabelNoise(sigma))
    return _case(problem, network, dynamics, steps, loop, libraries)


def deep(libraries: dict[str, Any]) -> Case:
    """Three layers 64 x 64, one sample a step."""
    problem, network = _deep()
    lr, steps = 1e-4, 20_000
    X, Y, drawn = problem.X, problem.y, words(steps)

    def loop(functions: Any, count: int) -> NDArray[np.float64]:
        theta = network.flat.copy()
        call(functions.deep, theta, X, Y, drawn, count, SAMPLES, SIDE, lr)
        return theta

    return _case(problem, network, lnsim.SGD(lr), steps, loop, libraries)


def deep_batches() -> Case:
    """Three layers 64 x 64 on batches of 64, and the products of a step in NumPy."""
    problem, network = _deep()
    W1, W2, W3 = (np.ascontiguousarray(W) for W in network.weights)
    X = problem.X[:BATCH].copy()

    def products(count: int) -> None:
        for _ in range(count):
            h1 = X @ W1.T
            h2 = h1 @ W2.T
            g3 = h2 @ W3.T
            g2 = g3 @ W3
            g1 = g2 @ W2
            _ = g3.T @ h2, g2.T @ h1, g1.T @ X

    return Case(problem, network, lnsim.SGD(1e-4, batch_size=BATCH), 2000, {"NumPy": products})


def _deep() -> tuple[lnsim.Problem, lnsim.DeepLinear]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((SAMPLES, SIDE))
    Y = X @ rng.standard_normal((SIDE, SIDE)) / np.sqrt(SIDE)
    return lnsim.Problem(X, Y), lnsim.deep_init(SIDE, (SIDE, SIDE), SIDE)


def _case(
    problem: lnsim.Problem,
    network: Any,
    dynamics: lnsim.SGD,
    steps: int,
    loop: Callable[[Any, int], NDArray[np.float64]],
    libraries: dict[str, Any],
) -> Case:
    """A case whose floors are `loop` with each library."""
    floors = {}
    for name, functions in libraries.items():

        def floor(count: int, functions: Any = functions) -> NDArray[np.float64]:
            return loop(functions, count)

        floors[f"C {name}"] = floor
    return Case(problem, network, dynamics, steps, floors)


def cases(libraries: dict[str, Any]) -> dict[str, Case]:
    """All of them, by name."""
    return {
        "10 outputs, m = 1000, label noise": two_layer(libraries, classes=False),
        "the same, cross-entropy, flips": two_layer(libraries, classes=True),
        "diagonal, d = 100, label noise": diagonal(libraries),
        "deep, three layers 64 x 64": deep(libraries),
        "the same, batches of 64; NumPy": deep_batches(),
    }


def cpu(work: Callable[[int], object], steps: int) -> float:
    """Nanoseconds of CPU time a step."""
    start = time.process_time()
    work(steps)
    return (time.process_time() - start) / steps * 1e9


def measured() -> Table:
    """Runs all cases round by round."""
    rows: dict[str, tuple[Cell, ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        libraries = {flag: load_loops(Path(folder), flag) for flag in OPTIMISED}
        for name, case in cases(libraries).items():
            contenders = {"lnsim": case.simulate, **case.floors}
            for work in contenders.values():
                work(10)  # what is compiled for it, is now
            times = interleaved(
                {(name, key): partial(cpu, work, case.steps) for key, work in contenders.items()},
                ROUNDS,
            )
            ours, floor, *optimised = times.values()
            rows[name] = (
                floor,
                ours,
                ratios(ours, floor),
                ratios(ours, optimised[0]) if optimised else None,
            )
    return Table(
        "The other models beside C",
        "CPU time of whole `simulate()` calls beside plain C loops (`-O3 -march=native`, without "
        "intrinsics) that read words which are ready, and beside the eight matrix products of a "
        f"step in NumPy, nothing else of it. One thread, {ROUNDS} rounds. Without leave to reorder "
        "sums C adds them one by one; the last column is the same loop with `-Ofast`, which has "
        "that leave, as lnsim's kernels do. One sample a step unless said.",
        ("floor, ns a step", "lnsim, ns a step", "to the floor", "to C `-Ofast`"),
        rows,
    )


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    report([measured()], "python -m bench.floor_models", arguments.out)
