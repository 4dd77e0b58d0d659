"""The number of CPU threads that torch uses.

The rounding of a sum that threads share depends on their number (weight gradients of convolutions,
sums of over 32,768 numbers), so a run sets the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def held(threads: int) -> Iterator[None]:
    """Inside, torch uses `threads` threads for the operations of the calling thread.

    Threads that it starts must call torch.set_num_threads themselves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
