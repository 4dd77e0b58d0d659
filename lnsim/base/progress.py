"""Progress: a bar on a terminal, or a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable


def progress_bar(
    progress: bool | Callable[[int], object] | None, steps: int, done: int
) -> tuple[Callable[[int], object], Callable[[], object]]:
    """A function to call with the steps done, and one to call at the end."""
    if callable(progress):
        return progress, lambda: None
    if not progress or sys.stderr is None:  # closed
        return lambda step: None, lambda: None
    from tqdm.auto import tqdm

    # disable=None: silent where the output is no terminal.
    bar = tqdm(total=steps, initial=done, unit="step", unit_scale=True, disable=None)
    return lambda step: bar.update(step - bar.n), bar.close
