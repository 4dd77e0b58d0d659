"""`python -m lnsim`."""

import sys

from lnsim.cli.main import program

sys.exit(program())
