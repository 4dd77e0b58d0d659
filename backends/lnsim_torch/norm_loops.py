r"""Batch norm, the sum with a shortcut and ReLU in one pass each way, compiled, for one CPU thread.

Forward.  For the values x of one channel, n of them, with weight w and bias b, and a shortcut r,

    mu = mean x,    v = mean (x - mu)^2,    s = 1 / sqrt(v + eps),
    xhat = (x - mu) s,    z = w xhat + b + r,    y = max(z, 0)  or z.

Backward.  With g = dL/dz, which is dL/dy where y > 0 and 0 elsewhere, or dL/dy without ReLU,

    dL/db = sum g,    dL/dw = sum g xhat,    dL/dr = g,
    dL/dx = w s (g - (dL/db + xhat dL/dw) / n).

Layout.  The channels are last in memory, so a tensor is a row of n C numbers in which channel c has
the places c, c + C, ...  A loop over the C channels of one pixel would be too short for vectors
where C is 8.  So the row is cut into lines of L = C floor(64 / C) numbers (C where that is more),
over which the sums run place by place; in the end the places of a channel are added.  What is left
over is a shorter line.

Rounding.  Lines are summed in float32 over blocks of at most BLOCK numbers, which stay in the first
cache, and the blocks in float64.  A block's squares are taken about its own mean, m_i, and those of
all n_i about mu follow by sum_i (M_i + n_i (m_i - mu)^2) (Chan, Golub, LeVeque 1983): no digits
cancel where the mean is large beside the deviation.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from lnsim.base.compiled import compiled

BLOCK = 8192
"""The numbers of a block, 16 KiB."""

LINE = 256
"""The numbers of a line, at least, where there are more than this many; four vectors or more."""

_FAST = {"contract", "reassoc", "nsz"}
_loop = compiled(nogil=True, error_model="numpy", fastmath=_FAST)


@_loop
def _line(channels: int) -> int:
    """The numbers of a line, and of a block: multiples of the number of channels."""
    return channels * max(1, LINE // channels)


@_loop
def _by_channel(places: Any, sums: Any) -> None:
    """Writes the sums over the places of each channel, (C,) float64."""
    channels = len(sums)
    sums[:] = 0.0
    for start in range(0, len(places), channels):
        for c in range(channels):
            sums[c] += places[start + c]


@_loop
def moments(x: Any, mean: Any, square: Any) -> None:
    """Writes the mean and mean square deviation of each channel, (C,) float64, of x : (n C,)."""
    channels, total = len(mean), len(x)
    line = _line(channels)
    block = line * max(1, BLOCK // line)
    blocks = -(-total // block)
    places = np.empty(line, np.float32)
    centre = np.empty(line, np.float32)
    of_block = np.empty((blocks, 2, channels))
    counts = np.empty(blocks)
    for k in range(blocks):
        start, stop = k * block, min((k + 1) * block, total)
        counts[k] = (stop - start) // channels
        places[:] = 0.0
        for at in range(start, stop, line):
            part = x[at : min(at + line, stop)]
            for i in range(len(part)):
                places[i] += part[i]
        _by_channel(places, of_block[k, 0])
        of_block[k, 0] /= counts[k]
        for first in range(0, line, channels):
            for c in range(channels):
                centre[first + c] = of_block[k, 0, c]
        places[:] = 0.0
        for at in range(start, stop, line):
            part = x[at : min(at + line, stop)]
            for i in range(len(part)):
                deviation = part[i] - centre[i]
                places[i] += deviation * deviation
        _by_channel(places, of_block[k, 1])
    n = total // channels
    for c in range(channels):
        value = 0.0
        for k in range(blocks):
            value += counts[k] * of_block[k, 0, c]
        mean[c] = value / n
        value = 0.0
        for k in range(blocks):
            value += of_block[k, 1, c] + counts[k] * (of_block[k, 0, c] - mean[c]) ** 2
        square[c] = value / n


@_loop
def forward(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    shortcut: Any,
    eps: float,
    momentum: float,
    relu: bool,
    y: Any,
    saved: Any,
) -> None:
    """Writes y : (n C,), and into saved : (3, C) float64 the mean, mean square deviation and s.

    Moves the running mean and variance, (C,), as nn.BatchNorm2d does.  `shortcut` is empty if there
    is none.
    """
    channels, total = len(weight), len(x)
    line = _line(channels)
    moments(x, saved[0], saved[1])
    scale, shift = np.empty(line, np.float32), np.empty(line, np.float32)
    for c in range(channels):
        saved[2, c] = 1.0 / np.sqrt(saved[1, c] + eps)
        unbiased = saved[1, c] * total / (total - channels)
        running_mean[c] += momentum * (saved[0, c] - running_mean[c])
        running_var[c] += momentum * (unbiased - running_var[c])
    for i in range(line):
        c = i % channels
        scale[i] = weight[c] * saved[2, c]
        shift[i] = bias[c] - saved[0, c] * weight[c] * saved[2, c]
    least = np.float32(0.0) if relu else np.float32(-np.inf)
    for at in range(0, total, line):
        stop = min(at + line, total)
        part, out = x[at:stop], y[at:stop]
        if len(shortcut):
            more = shortcut[at:stop]
            for i in range(len(part)):
                value = part[i] * scale[i] + shift[i] + more[i]
                out[i] = least if value < least else value
        else:
            for i in range(len(part)):
                value = part[i] * scale[i] + shift[i]
                out[i] = least if value < least else value


@_loop
def backward(
    dy: Any, y: Any, x: Any, weight: Any, saved: Any, dx: Any, g: Any, dweight: Any, dbias: Any
) -> None:
    """Writes the gradients at x, the weight and the bias, and at the shortcut if `g` is not empty.

    `y` is empty if there is no ReLU.
    """
    channels, total = len(weight), len(x)
    line = _line(channels)
    block = line * max(1, BLOCK // line)
    centre = np.empty(line, np.float32)
    for i in range(line):
        centre[i] = saved[0, i % channels]
    plain, product = np.empty(line, np.float32), np.empty(line, np.float32)
    sums, of_block = np.zeros((2, channels)), np.empty((2, channels))
    zero = np.float32(0.0)
    for start in range(0, total, block):
        end = min(start + block, total)
        plain[:] = 0.0
        product[:] = 0.0
        for at in range(start, end, line):
            stop = min(at + line, end)
            slope, part = dy[at:stop], x[at:stop]
            if len(y):
                out = y[at:stop]
                for i in range(len(part)):
                    value = zero if out[i] <= zero else slope[i]
                    plain[i] += value
                    product[i] += value * (part[i] - centre[i])
            else:
                for i in range(len(part)):
                    plain[i] += slope[i]
                    product[i] += slope[i] * (part[i] - centre[i])
        _by_channel(plain, of_block[0])
        _by_channel(product, of_block[1])
        sums += of_block
    n = total // channels
    scale, tilt = np.empty(line, np.float32), np.empty(line, np.float32)
    level = np.empty(line, np.float32)
    for c in range(channels):
        dbias[c] = sums[0, c]
        dweight[c] = sums[1, c] * saved[2, c]
    for i in range(line):
        c = i % channels
        scale[i] = weight[c] * saved[2, c]
        tilt[i] = -weight[c] * saved[2, c] ** 3 * sums[1, c] / n
        level[i] = -weight[c] * saved[2, c] * sums[0, c] / n
    for at in range(0, total, line):
        stop = min(at + line, total)
        slope, part, result = dy[at:stop], x[at:stop], dx[at:stop]
        if len(y) and len(g):
            out, passed = y[at:stop], g[at:stop]
            for i in range(len(part)):
                value = zero if out[i] <= zero else slope[i]
                passed[i] = value
                result[i] = value * scale[i] + ((part[i] - centre[i]) * tilt[i] + level[i])
        elif len(y):
            out = y[at:stop]
            for i in range(len(part)):
                value = zero if out[i] <= zero else slope[i]
                result[i] = value * scale[i] + ((part[i] - centre[i]) * tilt[i] + level[i])
        else:
            for i in range(len(part)):
                result[i] = slope[i] * scale[i] + ((part[i] - centre[i]) * tilt[i] + level[i])


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """The pointer to float32 numbers at this address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), emit


@_loop
def _at(address: int, length: int) -> Any:
    """The array of `length` numbers at this address, empty where it is 0."""
    return numba.carray(_pointer(address), length if address else 0)


@_loop
def forward_at(
    total: int,
    x: int,
    weight: int,
    bias: int,
    running_mean: int,
    running_var: int,
    shortcut: int,
    eps: float,
    momentum: float,
    relu: bool,
    y: int,
    saved: Any,
) -> None:
    """`forward` of arrays by their addresses, which a tensor has sooner than an array."""
    channels = saved.shape[1]
    forward(
        _at(x, total), _at(weight, channels), _at(bias, channels), _at(running_mean, channels),
        _at(running_var, channels), _at(shortcut, total), eps, momentum, relu, _at(y, total), saved,
    )  # fmt: skip


@_loop
def backward_at(
    total: int,
    dy: int,
    y: int,
    x: int,
    weight: int,
    saved: Any,
    dx: int,
    g: int,
    dweight: int,
    dbias: int,
) -> None:
    """`backward` of arrays by their addresses."""
    channels = saved.shape[1]
    backward(
        _at(dy, total), _at(y, total), _at(x, total), _at(weight, channels), saved, _at(dx, total),
        _at(g, total), _at(dweight, channels), _at(dbias, channels),
    )  # fmt: skip
