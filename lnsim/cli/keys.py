"""The lines of `lnsim list EXPERIMENT`."""

from __future__ import annotations

import textwrap
from dataclasses import fields

from lnsim.base import config as configs
from lnsim.run.experiment import load

WIDTH, INDENT = 80, 34


def described(name: str) -> list[str]:
    """Every key of experiment `name` with its default and meaning.  Raises as `load` does."""
    config = load(name).Config()
    lines = []
    for field in fields(config):
        assignment = configs.to_toml({field.name: getattr(config, field.name)}).rstrip("\n")
        lines += textwrap.wrap(
            f"{assignment:<{INDENT - 2}}  {field.metadata['meaning']}", WIDTH,
            subsequent_indent=" " * INDENT, drop_whitespace=True,
        )  # fmt: skip
    return lines
