"""`python -m lnsim`."""

import sys

from lnsim.cli.main import main

sys.exit(main())
