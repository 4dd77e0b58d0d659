"""The points of a sweep: the values that the swept keys take, and every complete configuration.

A key's values are written KEY=FIRST:LAST:COUNT (evenly spaced, both ends included),
KEY=FIRST:LAST:COUNT:log (evenly spaced in the logarithm) or KEY=V1,V2,...  Values of a range are
rounded to 12 significant digits, or to integers if the key takes integers: a value then equals its
printed form and is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, get_type_hints

import numpy as np

from lnsim.base import checks
from lnsim.base import config as configs
from lnsim.run.experiment import load
from lnsim.sweeps.points import Point

MOST_POINTS = 10_000_000
"""A grid of more points is refused as a mistake."""

SQL_MOST = 2**63 - 1
"""The largest integer that the results file (store.py) holds."""

Values = Iterable[Any] | str


def configuration(experiment: str) -> type[Point]:
    """The Config of an experiment.  Raises ValueError if the experiment cannot be swept."""
    cls = load(experiment).Config
    if not issubclass(cls, Point):
        raise ValueError(
            f"experiment {experiment!r} cannot be swept: a sweep takes those that train one network"
            " a run, not on images"
        )
    return cls


def parse_axis(text: str) -> tuple[str, str]:
    """("lr", "1e-4:1e-2:25:log") from "lr=1e-4:1e-2:25:log"."""
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"expected KEY=VALUES, got {text!r}")
    return key.strip(), values.strip()


def axes(cls: type[Point], grid: Mapping[str, Values]) -> dict[str, list[Any]]:
    """The values of every swept key, converted to the type of the key in `cls`.

    Raises ValueError or TypeError for an unknown key, a value of another type, a malformed range,
    or a value that occurs twice.
    """
    if not grid:
        raise ValueError("a sweep needs a grid of at least one key")
    result = {}
    for key, values in grid.items():
        if key == "seed":
            raise ValueError("seed cannot be swept: give the number of seeds instead")
        kind = get_type_hints(cls).get(key)
        given = _of_text(key, values, kind) if isinstance(values, str) else list(values)
        if not given:
            raise ValueError(f"{key} has no values")
        plain = (v.item() if isinstance(v, np.generic) else v for v in given)
        typed = [getattr(configs.build(cls, {key: value}), key) for value in plain]
        if len(set(typed)) < len(typed):
            repeated = next(value for value in typed if typed.count(value) > 1)
            raise ValueError(f"{key} has the value {repeated!r} twice")
        result[key] = typed
    return result


def _of_text(key: str, text: str, kind: type | None) -> list[Any]:
    if ":" not in text:
        return [configs.parse_assignment(f"{key}={word}")[1] for word in text.split(",")]
    first, last, *rest = text.split(":")
    try:
        ends, count = (float(first), float(last)), int(rest[0])
    except (ValueError, IndexError):
        count = 0
    if count < 2 or rest[1:] not in ([], ["log"]) or not all(map(math.isfinite, ends)):
        raise ValueError(
            f"{key}: expected FIRST:LAST:COUNT, FIRST:LAST:COUNT:log with COUNT at least 2, "
            f"or V1,V2,..., got {text!r}"
        )
    if count > MOST_POINTS:
        raise ValueError(f"{key}: at most {MOST_POINTS} values, got {count}")
    logarithmic = len(rest) == 2
    if logarithmic and min(ends) <= 0:
        raise ValueError(f"{key}: the ends of a log range must be above 0, got {text!r}")
    values = (np.geomspace if logarithmic else np.linspace)(*ends, count).tolist()
    if kind is int:
        return [round(value) for value in values]
    return [ends[0], *(float(f"{value:.12g}") for value in values[1:-1]), ends[1]]


def points(
    cls: type[Point], base: Mapping[str, Any], swept: Mapping[str, list[Any]], seeds: int
) -> list[Point]:
    """Every configuration: `seeds` seeds from base["seed"] on, each with the product of `swept`.

    `base` holds the keys with one value.  Raises ValueError or TypeError for an unknown key, a
    value of another type, or a value out of range.
    """
    seeds = checks.integer("seeds", seeds, 1)
    for key in swept:
        if key in base:
            raise ValueError(f"{key} is swept and set to {base[key]!r}: give only one of them")
    base_config = configs.build(cls, base)
    given = {key: getattr(base_config, key) for key in base}
    count = seeds * math.prod(len(values) for values in swept.values())
    if count > MOST_POINTS:
        raise ValueError(f"a sweep has at most {MOST_POINTS} points, got {count}")
    for key, values in {
        **vars(base_config), **swept, "seed": [base_config.seed + seeds - 1]
    }.items():  # fmt: skip
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and not isinstance(value, bool):
                checks.integer(key, value, -SQL_MOST, SQL_MOST)
    return [
        cls(**{**given, **dict(zip(swept, values, strict=True)), "seed": base_config.seed + k})
        for k in range(seeds)
        for values in product(*swept.values())
    ]
