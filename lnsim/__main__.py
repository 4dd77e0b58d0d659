"""`python -m lnsim`."""

import sys

from lnsim.cli import main

sys.exit(main())
