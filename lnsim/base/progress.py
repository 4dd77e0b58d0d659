"""Progress: a bar on a terminal, or a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Progress = bool | Callable[[int], object] | None
"""True for a bar on a terminal, a function to call with how far it is, or nothing."""


def bar(progress: object, **form: Any) -> AbstractContextManager[Any]:
    """A tqdm bar of this form, where `progress` asks for one; inside it is None where not.

    A function asks for none, and nothing can be shown where the error stream is closed.
    """
    if not progress or callable(progress) or sys.stderr is None:
        return nullcontext()
    from tqdm.auto import tqdm

    # disable=None: silent where the output is no terminal.
    shown: AbstractContextManager[Any] = tqdm(disable=None, **form)
    return shown


@contextmanager
def reports(
    progress: object, move: Callable[[Any, Any], object], **form: Any
) -> Iterator[Callable[[Any], object]]:
    """The function to report to: `progress` itself, or one that calls move(bar, report)."""
    with bar(progress, **form) as shown:
        if callable(progress):
            yield progress
        else:
            yield lambda report: None if shown is None else move(shown, report)


def of_steps(
    progress: Progress, steps: int, done: int
) -> AbstractContextManager[Callable[[int], object]]:
    """The function to call with the steps done, of `steps`; `done` are done before."""
    return reports(
        progress, lambda bar, step: bar.update(step - bar.n),
        total=steps, initial=done, unit="step", unit_scale=True,
    )  # fmt: skip
