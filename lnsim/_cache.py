"""Where Numba keeps what it has compiled of lnsim: a folder of the user's, for these very sources.

Numba's own choice is a folder beside the sources, named in no list of what was installed.  It would
outlive the removal of lnsim, and Python would take what is left for an empty package; and of the
loops there, Numba only sees whether their own file has changed, not what they call in others.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
COMPILED = ("_custom_loop", "_loops", "_philox", "backend")
"""The modules of lnsim that are compiled, or hold constants that are; of lnsim_numba it is all."""


def choose() -> None:
    """Tells Numba, unless the user has told it already.  To be called before anything is compiled.

    Where the folder cannot be written, Numba falls back on its own choice.
    """
    if os.environ.get(VARIABLE):
        return
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.read_bytes())
    folder = str(_of_user() / "lnsim" / digest.hexdigest()[:16])
    os.environ[VARIABLE] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def _sources() -> Iterator[Path]:
    for name in COMPILED:
        yield Path(__file__).with_name(f"{name}.py")
    spec = find_spec("lnsim_numba")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob("*.py"))


def _of_user() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    home = Path(os.path.expanduser("~"))
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
