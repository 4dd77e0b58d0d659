"""The README as a package index shows it.  All else is in setup.cfg.

An index has none of the pictures that the README names by their paths, and takes no embedded ones:
there, each gives way to its words and to where it is.
"""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(
        r"!\[(.*?)\]\((?!https://)(.*?)\)", r"*\1* (`\2` in the source archive)", readme
    ),
    long_description_content_type="text/markdown",
)
