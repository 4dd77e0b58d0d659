"""How a command ends: its exit code, and Ctrl-C and SIGTERM on the way.

Exit codes: 0 done, 1 verify found a difference, 2 bad input, 3 the run diverged, 4 done but for a
figure or for what was to be printed, 130 stopped by Ctrl-C (SIGINT), 143 by SIGTERM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

MISMATCH, BAD_INPUT, DIVERGED, LOST, INTERRUPTED = 1, 2, 3, 4, 130


class Stop:
    """Tells, when called, whether Ctrl-C was pressed or SIGTERM came; `code` to exit with then."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number > 0

    @property
    def code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def handle(self, number: int, frame: object) -> None:
        """Notes the first signal; a Ctrl-C after it interrupts at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number  # batch systems send SIGTERM more than once


@contextmanager
def interrupted() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM are noted, to stop where nothing is lost."""
    stop = Stop()
    before = {n: signal.signal(n, stop.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
