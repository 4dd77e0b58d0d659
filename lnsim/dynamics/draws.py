"""What a step draws, made of its words (streams.py): samples, labels, and further noise.

Step t takes D words in this order; B is the batch, or n where all samples are taken, C the outputs:

    draws       B times k words.  Of mini-batches word 0 gives the sample by its high half; without
                replacement it is, at place j of an epoch of n draws, one of the n - j samples not
                yet drawn in it: an order that is 0 ... n - 1 when the epoch begins has the places
                j and j + ((w >> 32) (n - j) >> 32) exchanged, and place j is the sample
                (Fisher-Yates).  Epochs follow one another whatever B.
      none      k = 1, and no words at all where all samples are taken
      label noise, Rademacher: output c has bit c mod 32 of the low half of word c // 32
      label noise, other laws: output c has the low half of word c
      label noise on K labels of the full batch: K draws with replacement in place of n
      flips     of mini-batches the word after the sample's; in it and where all samples are taken
                the low half says whether, the high half to which class (flips.py)
    Gaussian noise on gradients, on parameters: P words each, number i from the low half of word i
    dropout     half a word for every sample and hidden unit, units fastest, low half first: the
                unit is dropped where it is below rate 2^32

So the scalar network under label noise has the words that it has always had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lnsim import streams
from lnsim.base.checks import FloatArray, Scalar
from lnsim.base.threads import in_blocks
from lnsim.dynamics.base import FULL_BATCH, Dynamics
from lnsim.dynamics.noise import (
    Dropout,
    GradientNoise,
    LabelFlips,
    LabelNoise,
    Noise,
    ParameterNoise,
)

Words = NDArray[np.uint64]

_BITS = 32


@dataclass(frozen=True)
class Sizes:
    """What decides how many words a step takes: n, C, P and the number of hidden units."""

    samples: int
    outputs: int
    parameters: int
    hidden: int


@dataclass(frozen=True)
class Targets:
    """What the loss compares with where there is no noise.

    of_samples : (n, C); where labels are classes also their numbers, labels : (n,), and what stands
    for every class, of_classes : (classes, C).
    """

    of_samples: FloatArray
    labels: NDArray[np.int64] | None = None
    of_classes: FloatArray | None = None


@dataclass(frozen=True)
class Draws:
    """The draws of T steps of S replicas; an axis of length 1 stands for all of it.

    index : (S, T, B), or None where all samples are taken.  targets : (S, T, B, C), what the loss
    compares with.  gradient, parameters : (S, T, P), noise to add.  keep : (S, T, B, H), what every
    hidden unit is multiplied by.  lr : (S, T), what the learning rate is multiplied by.  None: no
    such noise.
    """

    index: NDArray[np.int64] | None
    targets: FloatArray
    gradient: FloatArray | None
    parameters: FloatArray | None
    keep: FloatArray | None
    lr: FloatArray | None


def words_a_step(dynamics: Dynamics, sizes: Sizes) -> int:
    """D, the words that one step takes."""
    label_words, further = _layout(dynamics, sizes)
    return label_words + sum(count for _, count in further)


def _layout(dynamics: Dynamics, sizes: Sizes) -> tuple[int, list[tuple[Noise, int]]]:
    """The words of the samples and labels, and the noises after them with the words of each."""
    further: list[tuple[Noise, int]] = []
    each, batch = 1, dynamics.batch_size or sizes.samples
    draws = 0 if dynamics.batch_size == FULL_BATCH else batch
    for noise in dynamics.noises:
        match noise:
            case LabelNoise():
                draws = noise.labels or batch
                halves = -(-sizes.outputs // _BITS)
                each = halves if noise.law == "rademacher" else sizes.outputs
            case LabelFlips():
                draws, each = batch, 1 if dynamics.batch_size == FULL_BATCH else 2
            case Dropout():
                further.append((noise, -(-batch * sizes.hidden // 2)))
            case _:
                further.append((noise, sizes.parameters))
    further.sort(key=lambda pair: _ORDER.index(type(pair[0])))
    return draws * each, further


_ORDER = (GradientNoise, ParameterNoise, Dropout)


def drawn(
    dynamics: Dynamics,
    sizes: Sizes,
    words: Words,
    targets: Targets,
    order: NDArray[np.int64],
    first_step: int,
    factors: tuple[FloatArray | None, FloatArray | None] = (None, None),
) -> Draws:
    """The draws of `words` : (S, T, D), of which the first step is `first_step`.

    order : (S, n), the epoch's order without replacement, is updated in place.  factors: those of
    lr and of the noises' strengths, (T,) or (S, T) each, or None.
    """
    lr, strength = factors
    label_words, further = _layout(dynamics, sizes)
    index, shown = _labels(
        dynamics, sizes, words[..., :label_words], targets, order, first_step, strength
    )
    arrays: dict[type, FloatArray] = {}
    at = label_words
    for noise, count in further:
        part = words[..., at : at + count]
        at += count
        if isinstance(noise, Dropout):
            arrays[Dropout] = _keep(noise, part, shown.shape[-2], sizes.hidden, strength)
        else:
            unit = streams.unit_noise(part, "gaussian")
            arrays[type(noise)] = _times(noise.scalar, strength, unit)
    return Draws(
        index,
        shown,
        arrays.get(GradientNoise),
        arrays.get(ParameterNoise),
        arrays.get(Dropout),
        None if lr is None else np.atleast_2d(lr),
    )


def _labels(
    dynamics: Dynamics,
    sizes: Sizes,
    words: Words,
    targets: Targets,
    order: NDArray[np.int64],
    first_step: int,
    strength: FloatArray | None,
) -> tuple[NDArray[np.int64] | None, FloatArray]:
    """The samples (S, T, B) or None, and what the loss compares with, (S, T, B, C)."""
    replicas, steps, _ = words.shape
    full = dynamics.batch_size == FULL_BATCH
    noise = next((noise for noise in dynamics.noises if noise.on_labels), None)
    if full and noise is None:
        return None, targets.of_samples[None, None]
    if isinstance(noise, LabelNoise) and noise.labels is not None:
        words = words.reshape(replicas, steps, noise.labels, -1)
        unit = _unit(words, noise.law, sizes.outputs)
        epsilon = _times(noise.sigma, strength, unit)
        return None, _on_some(sizes, words[..., 0], targets.of_samples, epsilon, noise.labels)
    of_draws = dynamics.batch_size or sizes.samples
    each = words.shape[2] // of_draws
    index = None
    if not full:
        index = _samples(dynamics, sizes, words, each, order, first_step)
    if isinstance(noise, LabelNoise) and noise.law != "rademacher":
        unit = streams.unit_noise(words.reshape(replicas, steps, of_draws, -1), noise.law)
        epsilon = _times(noise.sigma, strength, unit)
        return index, targets.of_samples[... if index is None else index] + epsilon
    rows = targets.of_samples
    if isinstance(noise, LabelFlips):
        assert targets.labels is not None and targets.of_classes is not None
        rows = targets.of_classes
    samples = np.empty((replicas, 0, 0), dtype=np.int64) if index is None else index
    shown = np.empty((replicas, steps, of_draws, rows.shape[1]))
    _show(noise, (words, each), rows, targets.labels, samples, strength, shown)
    return index, shown


def _show(
    noise: Noise | None,
    words: tuple[Words, int],
    rows: FloatArray,
    labels: NDArray[np.int64] | None,
    index: NDArray[np.int64],
    strength: FloatArray | None,
    shown: FloatArray,
) -> None:
    """Writes what the loss compares with under flips, Rademacher noise or none (labels.py).

    words: and how many of them a draw takes.  rows: the targets, or under flips those of a class.
    """
    # Numba takes most of a second to import: only when something runs.
    from lnsim.dynamics import labels as loops

    replicas, steps = shown.shape[:2]
    scalar = np.empty(replicas)
    scalar[:] = 0.0 if noise is None else noise.scalar
    factors = np.empty((replicas, 0 if strength is None else steps))
    if strength is not None:
        factors[:] = strength

    def of_block(block: slice) -> None:
        drawn = words[0][block], words[1]
        noisy = index[block], scalar[block], factors[block]
        match noise:
            case LabelFlips():
                other = noise.to == "other"
                loops.show_flips(*drawn, labels, rows, *noisy, other, shown[block])
            case LabelNoise():
                loops.show_signs(*drawn, rows, *noisy, shown[block])
            case _:
                loops.show_targets(rows, index[block], shown[block])

    in_blocks(of_block, replicas)


def _samples(
    dynamics: Dynamics,
    sizes: Sizes,
    words: Words,
    each: int,
    order: NDArray[np.int64],
    first_step: int,
) -> NDArray[np.int64]:
    """The sample (S, T, B) of every draw of words (S, T, D), `each` a draw."""
    # Numba takes most of a second to import: only when something runs.
    from lnsim.dynamics.labels import draw_samples
    from lnsim.dynamics.shuffle import without_replacement

    batch = dynamics.batch_size
    index = np.empty((*words.shape[:2], batch), dtype=np.int64)
    if dynamics.replacement:
        in_blocks(
            lambda block: draw_samples(words[block], each, sizes.samples, index[block]), len(words)
        )
    else:
        place = first_step * batch % sizes.samples
        without_replacement(words[..., ::each], order, place, index)
    return index


def _unit(words: Words, law: str, outputs: int) -> FloatArray:
    """Unit label noise of every output, (S, T, B, C), of words (S, T, B, k)."""
    if law != "rademacher" or outputs == 1:
        return streams.unit_noise(words, law)
    c = np.arange(outputs)
    bits = words[..., c // _BITS] >> (c % _BITS).astype(np.uint64) & np.uint64(1)
    return np.where(bits, 1.0, -1.0)


def _on_some(
    sizes: Sizes, words: Words, targets: FloatArray, epsilon: FloatArray, count: int
) -> FloatArray:
    """All targets with noise n/K epsilon on those drawn.

    The mean over n of the loss then has the noise term (1/K) sum_k epsilon_k, not divided by n.
    """
    shown = np.broadcast_to(targets, (*words.shape[:2], *targets.shape)).copy()
    index = streams.sample_index(words, sizes.samples)
    s, t = np.ix_(range(len(words)), range(words.shape[1]))
    np.add.at(shown, (s[..., None], t[..., None], index), epsilon * (sizes.samples / count))
    return shown


def _keep(
    noise: Dropout, words: Words, batch: int, hidden: int, strength: FloatArray | None
) -> FloatArray:
    """0 or 1/(1 - rate) for every sample and hidden unit, (S, T, B, H)."""
    halves = np.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=-1)
    halves = halves.reshape(*words.shape[:2], -1)[..., : batch * hidden]
    rate = _times(noise.rate, strength, np.ones((*words.shape[:2], 1)))
    keep = np.where(halves >= (rate * 2.0**32).astype(np.uint64), 1.0 / (1.0 - rate), 0.0)
    return keep.reshape(*words.shape[:2], batch, hidden)


def _times(scalar: Scalar, strength: FloatArray | None, values: FloatArray) -> FloatArray:
    """`values` : (S, T, ...) times a scalar of every replica and a factor of every step."""
    axes = (1,) * (values.ndim - 2)
    values = values * np.reshape(scalar, (-1, 1, *axes))
    if strength is not None:
        values = values * np.atleast_2d(strength).reshape(*np.atleast_2d(strength).shape, *axes)
    return values
