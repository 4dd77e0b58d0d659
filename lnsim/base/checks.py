"""Checks of arguments: every error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
DIVERGED_ABOVE = 1e60
"""A run has diverged when its squared residual reaches this; its earlier records are finite."""
Scalar = float | FloatArray
"""A hyperparameter: one number, or an array of one number per replica, shape (S,)."""


def array(name: str, value: Any, ndim: int) -> FloatArray:
    """`value` as a finite, nonempty, C-contiguous float64 array of `ndim` axes."""
    if np.iscomplexobj(value):
        raise TypeError(f"{name} must be an array of real numbers, got complex ones")
    try:
        result = np.ascontiguousarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value)}") from error
    if result.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {result.shape}")
    if 0 in result.shape:
        raise ValueError(f"{name} must not be empty, got shape {result.shape}")
    if not np.isfinite(result).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise ValueError(f"{name} must be finite, got {result[index]} at index {index}")
    return result


def shape(name: str, value: FloatArray, expected: tuple[int, ...], because: str) -> None:
    """Raises ValueError if the shape of `value` is not `expected`."""
    if value.shape != expected:
        raise ValueError(f"{name} must have shape {expected} ({because}), got {value.shape}")


MOST_STEPS = 2**53
"""Every integer up to this is exact as a float64, which phases and curves use for steps."""
MOST_ENTRIES = 10**15
"""Limit along one axis of an array: more fit into no memory, and NumPy's error names no axis."""


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int that is at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most:,}, got {_short(number)}")
    return number


def _short(number: int) -> str:
    """The digits of an integer, rounded to six where there are 20 or more."""
    digits = str(number)
    return digits if len(digits) < 20 else f"{digits[0]}.{digits[1:6]}e+{len(digits) - 1}"


def real(name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf) -> Scalar:
    """`value` as a finite float, or as a float64 array (S,), with every entry in range."""
    if isinstance(value, (bool, str)) or value is None:
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        entries = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    if entries.ndim > 1 or entries.size == 0:
        raise ValueError(f"{name} must be a number or one number per replica, got {value!r}")
    wrong = ~(np.isfinite(entries) & (entries >= least) & (entries > above))
    if wrong.any():
        allowed = "finite"
        if above > -math.inf:
            allowed += f" and above {above:g}"
        if least > -math.inf:
            allowed += f" and at least {least:g}"
        raise ValueError(f"{name} must be {allowed}, got {entries[wrong].flat[0]}")
    if entries.ndim == 0:
        return float(entries)
    entries.setflags(write=False)
    return entries


def number(name: str, value: Any) -> float:
    """`value` as one finite float."""
    result = real(name, value)
    if not isinstance(result, float):
        raise TypeError(f"{name} must be one number, got {value!r}")
    return result


def flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value`, which must be one of the `allowed` words."""
    words = sorted(allowed)
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
    return str(value)


def per_replica(name: str, value: Scalar, replicas: int) -> FloatArray:
    """`value` for each of S = `replicas` replicas, shape (S,)."""
    if np.ndim(value) == 1 and np.size(value) != replicas:
        raise ValueError(
            f"{name} has {np.size(value)} values for {replicas} replicas: give one, or one each"
        )
    return np.full(replicas, value, dtype=np.float64)


class Noting:
    """A context around a user's own function: it adds `note` to an Exception that passes."""

    def __init__(self, note: str) -> None:
        self._note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):  # not KeyboardInterrupt
            error.add_note(self._note)
