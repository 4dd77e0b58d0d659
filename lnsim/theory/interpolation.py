"""Curves between the steps of an integrator, at the times asked for alone: many values, few times.

The same as scipy.interpolate's, whose import takes longer than the prediction of a run.
"""

from __future__ import annotations

import numpy as np

from lnsim.base.checks import FloatArray


def hermite(
    grid: FloatArray, states: FloatArray, slopes: FloatArray, times: FloatArray
) -> FloatArray:
    """The cubic through states : (D, K) at grid : (K,) with these slopes, at times; (T, D).

    Like scipy's CubicHermiteSpline.
    """
    k = np.clip(np.searchsorted(grid, times, side="right") - 1, 0, len(grid) - 2)
    step = grid[k + 1] - grid[k]
    x = (times - grid[k]) / step
    rise = x**2 * (3 - 2 * x)
    values = states[:, k] * (1 - rise) + states[:, k + 1] * rise
    values += slopes[:, k] * (step * x * (1 - x) ** 2)
    values -= slopes[:, k + 1] * (step * x**2 * (1 - x))
    return np.ascontiguousarray(values.T)


def pchip(grid: FloatArray, values: FloatArray, times: FloatArray) -> FloatArray:
    """The monotone cubic through values : (K, ...) at grid : (K,), at times : (T,); (T, ...).

    Like scipy's PchipInterpolator: where the values turn, the slope is 0, and elsewhere a harmonic
    mean of those of the two intervals (Fritsch, Butland 1984).
    """
    flat = values.reshape(len(grid), -1)
    step = np.diff(grid)[:, None]
    rise = np.diff(flat, axis=0) / step
    slopes = np.zeros_like(flat)
    if len(grid) == 2:
        slopes[:] = rise
    else:
        before, after = rise[:-1], rise[1:]
        near, far = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
        monotone = np.sign(before) * np.sign(after) > 0
        mean = near / np.where(monotone, before, 1.0) + far / np.where(monotone, after, 1.0)
        slopes[1:-1] = np.where(monotone, (near + far) / mean, 0.0)
        slopes[0] = _end_slope(step[0], step[1], rise[0], rise[1])
        slopes[-1] = _end_slope(step[-1], step[-2], rise[-1], rise[-2])
    return hermite(grid, flat.T, slopes.T, times).reshape(-1, *values.shape[1:])


def _end_slope(
    step: FloatArray, next_step: FloatArray, rise: FloatArray, next_rise: FloatArray
) -> FloatArray:
    """The slope of the parabola through three values at its end, kept from overshooting."""
    slope = ((2 * step + next_step) * rise - step * next_rise) / (step + next_step)
    slope = np.where(np.sign(slope) == np.sign(rise), slope, 0.0)
    turns = np.sign(rise) != np.sign(next_rise)
    return np.where(turns & (np.abs(slope) > 3 * np.abs(rise)), 3 * rise, slope)
