"""`python -m pyimago.cli`: the command without its script."""

import sys

from pyimago.cli import main

sys.exit(main())
