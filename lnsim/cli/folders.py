"""Loading a run folder, and the command that resumes its run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lnsim.run.folder import in_shell
from lnsim.simulation.trajectory import Trajectory

CHECKPOINT = "checkpoint.npz"


def newest(folder: Path) -> Trajectory:
    """Loads a run folder: the checkpoint of a run that was stopped, or the finished run."""
    stopped = (folder / CHECKPOINT).is_file()
    return Trajectory.load(folder, CHECKPOINT if stopped else "trajectory.npz")


def how_to_resume(out: Path) -> str:
    """The command that resumes the run in folder `out`."""
    return f"lnsim run --resume --out {in_shell(out)}"


@contextmanager
def hinting(out: Path) -> Iterator[None]:
    """Adds to an OSError raised inside how to resume from the checkpoint, if there is one."""
    try:
        yield
    except OSError as error:
        if not (out / CHECKPOINT).is_file():
            raise
        raise OSError(
            f"{error}; go on from the last checkpoint with: {how_to_resume(out)}"
        ) from error
