"""All random numbers of lnsim, addressable word by word.

Training.  Draw k of replica c of seed s is word k of the NumPy bit generator
``Philox(key=[s, c])`` (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
A draw is one (sample, label noise) pair; step t of a dynamics with B draws per step uses draws
tB ... tB+B-1.  From the 64-bit word w:

    sample index   ((w >> 32) * n) >> 32          uniform on 0 ... n-1, bias below n / 2^32
    Rademacher     +1 if the lowest bit is 1, else -1
    chain sign     neuron i: bit i mod 64 of word i // 64 of the step (1: +, 0: -)
    other laws     v = ((w mod 2^32) + 1/2) / 2^32, uniform on (0, 1), through the inverse
                   distribution function

Further noises, several outputs and samples drawn without replacement: lnsim/dynamics/draws.py.

So the randomness of a trajectory depends on (seed, replica) alone: not on the backend, the chunk
size, the threads, how often it is recorded, or whether it was stopped and resumed.

Data and initialisation use separate generators, one for each purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lnsim.base import checks
from lnsim.base.checks import FloatArray
from lnsim.base.threads import in_blocks

LAWS = ("gaussian", "rademacher", "uniform")

_PURPOSES = {"train": 0, "test": 1, "theta_star": 2, "init": 3, "chain": 4}


def check_seed(seed: int) -> int:
    """`seed` as an int in [0, 2**64).  Raises TypeError or ValueError for any other."""
    seed = checks.integer("seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    return seed


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one `purpose`: "train", "test", "theta_star", "init" or "chain"."""
    return np.random.default_rng([check_seed(seed), _PURPOSES[purpose]])


class WordStream:
    """The words of S = `replicas` replicas, read forward from step to step.

    With one `seed`, replica c reads the stream of key [seed, c].  With a sequence of S seeds it
    reads that of [seed[c], 0], like a single run of seed[c].
    """

    def __init__(self, seed: int | Sequence[int], replicas: int, position: int = 0) -> None:
        if isinstance(seed, Sequence | np.ndarray):
            keys = [(check_seed(replica_seed), 0) for replica_seed in seed]
            if len(keys) != replicas:
                raise ValueError(f"seed must be one number or {replicas} of them, got {len(keys)}")
        else:
            keys = [(check_seed(seed), replica) for replica in range(replicas)]
        self._keys = np.array(keys, dtype=np.uint64)
        self._buffer = np.empty(0, dtype=np.uint64)
        self.position = position

    def take(self, count: int, replicas: NDArray[np.intp] | None = None) -> NDArray[np.uint64]:
        """The next `count` words of every replica, shape (S, count), valid until the next call.

        Where `replicas` : (k,) are given, the rows of the others may hold anything.  All calls
        write to the same buffer: to allocate memory costs as much time as to fill it.
        """
        # Imported here, as Numba takes most of a second to import.
        from lnsim.base import philox

        size = len(self._keys) * count
        if self._buffer.size < size:
            self._buffer = np.empty(size, dtype=np.uint64)
        words = self._buffer[:size].reshape(len(self._keys), count)
        of = np.arange(len(words)) if replicas is None else replicas
        in_blocks(
            lambda block: philox.fill_all(words, self._keys, of[block], self.position), of.size
        )
        self.position += count
        return words


def sample_index(words: NDArray[np.uint64], samples: int) -> NDArray[np.int64]:
    """The index of the sample that each word draws, in [0, `samples`); same shape as `words`."""
    return (((words >> np.uint64(32)) * np.uint64(samples)) >> np.uint64(32)).astype(np.int64)


def unit_noise(words: NDArray[np.uint64], law: str) -> FloatArray:
    """Label noise of mean 0 and standard deviation 1 under `law`; same shape as `words`."""
    if law == "rademacher":
        return np.where(words & np.uint64(1), 1.0, -1.0)
    uniform = ((words & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) / 2.0**32
    if law == "uniform":
        return math.sqrt(12.0) * (uniform - 0.5)
    if law == "gaussian":
        from scipy.special import ndtri

        return np.asarray(ndtri(uniform), dtype=np.float64)
    raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
