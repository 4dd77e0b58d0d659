"""The Runge-Kutta-Chebyshev method of second order, for the slow equations of the theory.

It is explicit and meant for mildly stiff equations: with s stages it is stable up to a step of
0.65 (s^2 - 1) over the largest rate (Sommeijer, Shampine, Verwer 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np

from lnsim.base.checks import FloatArray

TOLERANCE = 3e-4
"""Relative error allowed in one step; the whole curve was then within 0.2% where checked."""

FLOOR = 1e-6
"""A part that has fallen below this share of its largest size so far counts as of that size."""

ATTEMPTS = 500
"""Limit on the steps tried, rejected ones included; 100 to 200 suffice where (4) is small."""


class Law(Protocol):
    """A slow equation at one state: its slope, (D,), its largest rate per step, and the
    small parameter of the expansion behind it."""

    @property
    def slope(self) -> FloatArray: ...

    @property
    def stiffness(self) -> float: ...

    @property
    def expansion(self) -> float: ...


L = TypeVar("L", bound=Law)


def integrate(
    law: Callable[[FloatArray], L], state: FloatArray, end: float, parts: Sequence[Any]
) -> tuple[FloatArray, FloatArray, list[L]]:
    """Solves d(state)/dt = law(state).slope from 0 to `end`.

    state : (D,); the error of each of its `parts`, slices or indices, is relative to the largest
    entry of the part, or FLOOR of the largest that it has had.  Returns the times of the steps
    taken, (K,), the states then, (D, K), and `law` of each.  Raises ValueError if ATTEMPTS steps do
    not reach the end.
    """
    current = law(state)
    time, step, path = 0.0, 0.25 / max(current.stiffness, 1e-300), [(0.0, state, current)]
    largest = [max(float(np.abs(state[p]).max()), 1e-300) for p in parts]
    for _ in range(ATTEMPTS):
        step = min(step, end - time, 2e4 / max(current.stiffness, 1e-300))  # at most 177 stages
        stages = 2 + math.isqrt(int(1.54 * step * current.stiffness))
        after = chebyshev_step(lambda y: law(y).slope, state, current.slope, step, stages)
        law_after = law(after)
        defect = 0.8 * (state - after) + 0.4 * step * (current.slope + law_after.slope)
        sizes = [
            max(float(np.abs(after[p]).max()), FLOOR * s)
            for p, s in zip(parts, largest, strict=True)
        ]
        errors = [float(np.abs(defect[p]).max()) / s for p, s in zip(parts, sizes, strict=True)]
        error = max(errors) / TOLERANCE
        if error <= 1:
            time, state, current = time + step, after, law_after
            largest = [max(s, past) for s, past in zip(sizes, largest, strict=True)]
            path.append((time, state, current))
            if time >= end:
                times, states, laws = zip(*path, strict=True)
                return np.array(times), np.stack(states, axis=1), list(laws)
        step *= min(5.0, max(0.2, 0.8 * max(error, 1e-9) ** (-1 / 3)))
    raise ValueError(
        f"the mean course cannot be followed beyond step {time:.4g},"
        f" where its small parameter is {current.expansion:.3g}"
    )


def chebyshev_step(
    slope: Callable[[FloatArray], FloatArray],
    state: FloatArray,
    first: FloatArray,
    step: float,
    stages: int,
) -> FloatArray:
    """One step of the Runge-Kutta-Chebyshev method; stable to step * rate = 0.65 (stages^2 - 1)."""
    T, dT, ddT, b, w0 = _coefficients(stages)
    gain = step * dT[-1] / ddT[-1]
    previous, current = state, state + b[1] * gain * first
    for j in range(2, stages + 1):
        mu, nu = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2]
        change = slope(current) - (1 - b[j - 1] * T[j - 1]) * first
        weighted = (1 - mu - nu) * state + mu * current + nu * previous
        previous, current = current, weighted + 2 * gain * b[j] / b[j - 1] * change
    return current


@lru_cache(maxsize=256)
def _coefficients(
    stages: int,
) -> tuple[list[float], list[float], list[float], list[float], float]:
    """Chebyshev polynomials and their two derivatives at w0, the weights b_j, and w0."""
    w0 = 1 + 2 / (13 * stages**2)
    T, dT, ddT = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        ddT.append(2 * w0 * ddT[-1] + 4 * dT[-1] - ddT[-2])
        dT.append(2 * w0 * dT[-1] + 2 * T[-1] - dT[-2])
        T.append(2 * w0 * T[-1] - T[-2])
    b = [ddT[max(j, 2)] / dT[max(j, 2)] ** 2 for j in range(stages + 1)]
    return T, dT, ddT, b, w0
