"""The README as a package index shows it.  All else is in setup.cfg.

An index shows neither pictures that are named by their paths nor embedded ones.  Where setup.cfg
says from what address the files of this repository are served (`pictures` in [lnsim]), pictures are
named by it; until then each gives way to its words and to where it is.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
settings = ConfigParser()
settings.read(here / "setup.cfg", encoding="utf-8")
address = settings.get("lnsim", "pictures", fallback="").rstrip("/")
shown = rf"![\1]({address}/\2)" if address else r"*\1* (`\2` in the source archive)"
setup(
    long_description=re.sub(
        r"!\[(.*?)\]\((?!https://)(.*?)\)", shown, (here / "README.md").read_text(encoding="utf-8")
    ),
    long_description_content_type="text/markdown",
)
