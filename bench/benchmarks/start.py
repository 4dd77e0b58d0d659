"""What is waited for before the first step: imports, --help, the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from .cases import DYNAMICS

FIRST_CALL = """
import time
import numba
from benchmarks.cases import Case
case = Case({dynamics!r}, width=30)
case.data
start = time.perf_counter()
case.run(1)
print(time.perf_counter() - start)
"""


class Import:
    """Each time in a process of its own."""

    number = 1

    def timeraw_lnsim(self) -> str:
        return "import lnsim"

    def timeraw_numba(self) -> str:
        return "import numba"

    def time_help(self) -> None:
        subprocess.run([sys.executable, "-m", "lnsim", "--help"], check=True, capture_output=True)


class Command:
    """Seconds of a whole command, figures included; `python -m bench.start` has their parts."""

    param_names: ClassVar = ["command"]
    params: ClassVar = [["run", "plot", "first"]]
    timeout = 600
    unit = "s"

    def track_command(self, command: str) -> float:
        script = str(Path(__file__).parents[1] / "start.py")
        rounds = "1" if command == "first" else "5"
        child = subprocess.run(
            [sys.executable, script, "--json", "--only", command, "--rounds", rounds],
            check=True, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        seconds: float = json.loads(child.stdout)[command]
        return seconds


class FirstCall:
    """Seconds of the first call in a process, numba imported; nothing, or all, compiled before."""

    param_names: ClassVar = ["dynamics", "compiled"]
    params: ClassVar = [list(DYNAMICS), ["nothing", "all"]]
    timeout = 600
    unit = "s"

    def track_first_call(self, dynamics: str, compiled: str) -> float:
        with tempfile.TemporaryDirectory() as cache:
            here = str(Path(__file__).parents[1])
            paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | {
                "NUMBA_CACHE_DIR": cache,
                "PYTHONPATH": os.pathsep.join(paths),
            }
            command = [sys.executable, "-c", FIRST_CALL.format(dynamics=dynamics)]
            for _ in ["nothing", "all"][: 1 + (compiled == "all")]:
                child = subprocess.run(
                    command, check=True, capture_output=True, encoding="utf-8", env=environment
                )
        return float(child.stdout)
