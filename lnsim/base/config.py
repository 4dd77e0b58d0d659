"""Flat configurations: dataclasses of numbers, words and switches, and their TOML form."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

C = TypeVar("C")


def key(default: Any, meaning: str, *, later: bool = False, before: Any = None) -> Any:
    """A key of a configuration: its default, and its meaning, which `lnsim list` prints.

    `later`: it came after the first files of its experiment were written (see `recorded`), and runs
    without it were as with `before`, if that is given, or else as with its default.
    """
    before = default if before is None else before
    metadata = {"meaning": meaning, "later": later, "before": before}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def recorded(config: Any, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keys and values that a run keeps of its configuration, by which it is resumed.

    A key that came later is left out where it changes nothing, so that runs before and after it
    have the same: where its default is what was before, and, in a run that goes on from one with
    the keys `earlier`, where that one lacks it.
    """
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not _is_left_out(field, getattr(config, field.name), earlier)
    }


def _is_left_out(
    field: dataclasses.Field[Any], value: Any, earlier: Mapping[str, Any] | None
) -> bool:
    if not field.metadata.get("later") or value != field.metadata["before"]:
        return False
    return value == field.default or (earlier is not None and field.name not in earlier)


def completed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` that a run kept by `recorded`, and of the keys that it left out what was before.

    `cls` is the dataclass of its configuration.
    """
    left_out = {
        field.name: field.metadata["before"]
        for field in dataclasses.fields(cls)
        if field.metadata.get("later")
    }
    return {**left_out, **values}


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to `word`, or lists all if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """An instance of the dataclass `cls` with `values` in place of its defaults.

    Raises ValueError for an unknown key (naming the nearest) and TypeError for a value of the
    wrong type.  An integral float such as 2e6 passes for an int, an int for a float.
    """
    types = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(f"unknown key {key!r}: {nearest(key, fields)}")
    return cls(**{key: _coerce(key, value, types[key]) for key, value in values.items()})


def _coerce(key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is bool:
        raise TypeError(f"{key} must be true or false, got {value!r}")
    raise TypeError(f"{key} must be of type {kind.__name__}, got {value!r}")


def parse_assignment(text: str) -> tuple[str, Any]:
    """("lr", 0.001) from "lr=1e-3".

    The value is read as TOML, in which numbers and switches may also be written as in Python
    (.001, 5., True); any other value is a word.  Raises ValueError if the key or "=" is missing,
    or if the value is None.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ValueError(f"expected KEY=VALUE, got {text!r}")
    if value == "None":
        raise ValueError(f"{key} cannot be set to None: leave it out for its default")
    as_toml = value
    for pattern, replacement in _OF_PYTHON:
        as_toml = re.sub(pattern, replacement, as_toml)
    for written in (value, as_toml):
        with suppress(tomllib.TOMLDecodeError):
            return key, tomllib.loads(f"value = {written}")["value"]
    return key, value


_OF_PYTHON = (
    (r"(?<![\w.])\.(?=\d)", "0."),
    (r"(?<=\d)\.(?![\d.])", ".0"),
    (r"\bTrue\b", "true"),
    (r"\bFalse\b", "false"),
)
"""Replacements of what TOML does not accept: points without a digit beside them, True, False."""


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file, whose text may begin with the byte order mark (BOM) of UTF-8.

    Raises ValueError if it cannot be read or is malformed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Flat `values` as TOML, one key a line, floats to the last bit."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
