"""Exit codes of the commands, and the handling of Ctrl-C and SIGTERM.

Exit codes: 0 done, 1 verify found a difference, 2 bad input, 3 the run diverged, 4 done except for
a figure or for printed output, 130 stopped by Ctrl-C (SIGINT), 143 by SIGTERM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

MISMATCH, BAD_INPUT, DIVERGED, LOST, INTERRUPTED = 1, 2, 3, 4, 130


class Stop:
    """Returns, when called, whether SIGINT or SIGTERM arrived; `code` is the exit code for it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number > 0

    @property
    def code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def handle(self, number: int, frame: object) -> None:
        """Records the first signal; a later Ctrl-C interrupts at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number  # batch systems repeat SIGTERM


@contextmanager
def interrupted() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM are only recorded, so that work stops where nothing is lost."""
    stop = Stop()
    before = {n: signal.signal(n, stop.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
