"""lnsim against a hand-written C loop of the same algorithm, interleaved, on one thread.

    python bench/floor.py

Needs a C compiler `cc` and a processor with AVX2 and FMA.  Prints the nanoseconds per step of whole
simulate() calls, with their range over the rounds, and the median ratio to the C loop.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import lnsim

ROUNDS = 7
NOISE = lnsim.LabelNoise(4.0)
SGD, SAM = lnsim.SGD(1e-3, NOISE), lnsim.SAM(1e-3, 0.1)
LONG, SHORT = 2_000_000, 100_000
RECORDED = {"record_every": LONG // 1000}
CASES = {
    "reduced": (SGD, "reduced", LONG, {}),
    "reduced, no twin": (SGD, "reduced", LONG, {"linearized": False}),
    "reduced, 1,000 records": (SGD, "reduced", LONG, RECORDED),
    "reduced, ledger": (SGD, "reduced", LONG, {"ledger": True}),
    "reduced, SAM": (SAM, "reduced", LONG, {}),
    "dense": (SGD, "dense", SHORT, {"reduce": False}),
    "oscillation": (lnsim.Oscillation(1e-3), "dense", SHORT, {}),
}


def compile_c(name: str, program: Path, *flags: str) -> None:
    """Compiles the C source `name` of this folder for this processor."""
    source = Path(__file__).with_name(name)
    subprocess.run(["cc", *flags, "-march=native", source, "-lm", "-o", program], check=True)


def simulate(dynamics: object, steps: int, options: dict) -> float:
    """Nanoseconds per step of one whole call at the setting of the figures."""
    problem, network = lnsim.gaussian_regression(200, 20), lnsim.ntk_init(1000, 20)
    start = time.perf_counter()
    lnsim.simulate(problem, network, dynamics, steps=steps, **({"record_every": steps} | options))
    return (time.perf_counter() - start) / steps * 1e9


def main() -> None:
    """Compiles the C loops, runs all cases round by round, and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floor"
        compile_c("floor.c", program, "-Ofast")
        times: dict[str, list[float]] = {name: [] for name in ("C reduced", "C dense", *CASES)}
        for dynamics, _, _, options in CASES.values():
            simulate(dynamics, 10, options)
        for _ in range(ROUNDS):
            for kind, arguments in (("reduced", []), ("dense", ["dense"])):
                output = subprocess.run(
                    [program, *arguments], check=True, capture_output=True, encoding="utf-8"
                ).stdout
                times[f"C {kind}"].append(statistics.median(map(float, output.split())))
            for name, (dynamics, _, steps, options) in CASES.items():
                times[name].append(simulate(dynamics, steps, options))
    print(f"{'':24}{'ns a step':>10}{'min':>9}{'max':>9}{'ratio to C':>12}")
    for name, values in times.items():
        floor = times[f"C {CASES[name][1]}"] if name in CASES else values
        ratio = statistics.median(v / f for v, f in zip(values, floor, strict=True))
        print(
            f"{name:24}{statistics.median(values):10.1f}{min(values):9.1f}{max(values):9.1f}"
            f"{ratio:12.2f}"
        )


if __name__ == "__main__":
    main()
