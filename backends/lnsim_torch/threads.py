"""How many threads of the CPU torch takes.

A sum that threads share is rounded otherwise for another number of them (convolutions' weight
gradients, sums of over 32,768 numbers), so a run says how many it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def held(threads: int) -> Iterator[None]:
    """Inside, what the calling thread asks of torch takes `threads` threads.

    Others that it starts call torch.set_num_threads themselves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
