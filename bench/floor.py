"""lnsim against a hand-written C loop of the same algorithm, interleaved, on one thread.

    python -m bench.floor [--out FILE.json]

Needs a C compiler `cc` and a processor with AVX2 and FMA.
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
from bench.tables import Cell, Table, parser, ratios, report

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


def measured() -> Table:
    """Compiles the C loops and runs all cases round by round."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floor"
        compile_c("floor.c", program, "-Ofast")
        times: dict[str, list[float]] = {name: [] for name in ("C, reduced", "C, dense", *CASES)}
        for dynamics, _, _, options in CASES.values():
            simulate(dynamics, 10, options)
        for _ in range(ROUNDS):
            for kind, arguments in (("reduced", []), ("dense", ["dense"])):
                output = subprocess.run(
                    [program, *arguments], check=True, capture_output=True, encoding="utf-8"
                ).stdout
                times[f"C, {kind}"].append(statistics.median(map(float, output.split())))
            for name, (dynamics, _, steps, options) in CASES.items():
                times[name].append(simulate(dynamics, steps, options))
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, values in times.items():
        floor = times[f"C, {CASES[name][1]}"] if name in CASES else values
        rows[name] = (values, ratios(values, floor))
    return Table(
        "One run beside C",
        "Whole `simulate()` calls beside a C loop of the same algorithm (AVX2 by hand; dense: "
        f"`-Ofast`): d = 20, m = 1000, float64, one thread, {ROUNDS} rounds. The C loop has no "
        "linearised twin; every `simulate()` call trains one along unless told `linearized=False`.",
        ("ns a step", "to the C loop"),
        rows,
    )


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    report([measured()], "python -m bench.floor", arguments.out)
