"""The progress bar of training: images a second and time left, and of the latest record the
training loss and the test accuracy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any


class Bar:
    """`progress`: True, the bar's label, a function to call with the steps done, or nothing.

    `images`: those of one step, in the mean.
    """

    def __init__(
        self,
        progress: bool | str | Callable[[int], object] | None,
        images: float,
        steps: int,
        done: int,
    ) -> None:
        self._call = progress if callable(progress) else None
        self._images, self._bar = images, None
        if progress and not callable(progress) and sys.stderr is not None:  # closed
            self._bar = _tqdm(progress, images * steps, images * done)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int) -> None:
        """One step more is done, `step` in all."""
        if self._call is not None:
            self._call(step)
        if self._bar is not None:
            self._bar.update(self._images)

    def show(self, values: Mapping[str, float]) -> None:
        """The latest record."""
        if self._bar is not None:
            loss, accuracy = values["train_loss"], values["test_accuracy"]
            self._bar.set_postfix_str(f"loss {loss:.4g}, accuracy {accuracy:.1%}")


def _tqdm(progress: bool | str, total: float, done: float) -> Any:
    from tqdm.auto import tqdm

    label = progress if isinstance(progress, str) else None
    # disable=None: silent where the output is no terminal.
    return tqdm(
        desc=label, total=total, initial=done, unit="image", unit_scale=True, disable=None,
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}",  # 80 columns
    )  # fmt: skip
