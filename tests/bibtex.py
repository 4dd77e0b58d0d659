"""A strict reader of BibTeX as `lnsim cite` writes it: comments, then entries of braced fields."""

import re

ENTRY = re.compile(r"@(\w+)\{(\w+),\n((?:  \w+ = \{.*\},\n)+)\}")
FIELD = re.compile(r"  (\w+) = \{(.*)\},")


def read(text):
    """The entries by their keys, each a dict of its fields and its "type".

    Fails on a character outside ASCII, on text that is neither comment nor entry, on a key or a
    field that comes twice, and on braces of a value that do not close where they should.
    """
    assert text.isascii()
    entries = {}
    for block in text.split("\n\n"):
        if all(line.startswith("%") for line in block.strip("\n").split("\n")):
            assert "@" not in block  # where BibTeX would begin an entry
            continue
        kind, key, body = ENTRY.fullmatch(block.strip("\n")).groups()
        assert key not in entries
        entries[key] = {"type": kind}
        for line in body.splitlines():
            name, value = FIELD.fullmatch(line).groups()
            assert name not in entries[key]
            assert closes(value), line
            entries[key][name] = value
    return entries


def closes(value):
    """Whether every brace of a value is closed inside it, and none that is not open."""
    depth = 0
    for letter in value:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth < 0:
            return False
    return depth == 0
