"""Progress: a bar on a terminal, or a function that the caller gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Progress = bool | Callable[[int], object] | None
"""True for a bar on a terminal, a function to call with the steps done, or None for nothing."""


def bar(progress: object, **form: Any) -> AbstractContextManager[Any]:
    """A context that gives a tqdm bar with the options `form`, or None.

    It gives None if `progress` is false or a function, or where nobody would see it: the error
    stream is no terminal, and this is no notebook.
    """
    if not progress or callable(progress) or not _is_seen():
        return nullcontext()
    from tqdm.auto import tqdm  # a slow import

    tqdm_bar: AbstractContextManager[Any] = tqdm(**form)
    return tqdm_bar


def _is_seen() -> bool:
    stream = sys.stderr
    in_notebook = type(stream).__module__.startswith("ipykernel.")
    return stream is not None and (in_notebook or stream.isatty())


@contextmanager
def reports(
    progress: object, move: Callable[[Any, Any], object], **form: Any
) -> Iterator[Callable[[Any], object]]:
    """The function to report to: `progress` itself, or one that calls move(bar, report)."""
    with bar(progress, **form) as tqdm_bar:
        if callable(progress):
            yield progress
        else:
            yield lambda report: None if tqdm_bar is None else move(tqdm_bar, report)


def of_steps(
    progress: Progress, steps: int, done: int
) -> AbstractContextManager[Callable[[int], object]]:
    """The function to call with the number of steps done, of `steps`; it starts at `done`."""
    return reports(
        progress, lambda bar, step: bar.update(step - bar.n),
        total=steps, initial=done, unit="step", unit_scale=True,
    )  # fmt: skip
