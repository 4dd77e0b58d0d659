"""The progress bar of training: images per second, the time left, and the latest record's training
loss and test accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from lnsim.base.progress import Progress, bar


class Reports(NamedTuple):
    """`step` is called with the steps done after each step, `record` with each record's values."""

    step: Callable[[int], object]
    record: Callable[[Mapping[str, float]], object]


@contextmanager
def training_progress(
    progress: Progress | str, images: float, steps: int, done: int
) -> Iterator[Reports]:
    """`progress`: True, the bar's label, a function to call with the steps done, or None.

    `images`: the mean number of images per step.
    """
    label = progress if isinstance(progress, str) else None
    with bar(
        progress, desc=label, total=images * steps, initial=images * done, unit="image",
        unit_scale=True, bar_format="{l_bar}{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}",
    ) as shown:  # 80 columns  # fmt: skip

        def record(values: Mapping[str, float]) -> None:
            loss, accuracy = values["train_loss"], values["test_accuracy"]
            shown.set_postfix_str(f"loss {loss:.4g}, accuracy {accuracy:.1%}")

        if shown is not None:
            yield Reports(lambda step: shown.update(images), record)
        else:
            step = progress if callable(progress) else lambda step: None
            yield Reports(step, lambda values: None)
