"""`python -m alexnet_func`: the console script `alexnet`."""

import sys

from alexnet_func.app.cli import script

sys.exit(script())
