"""`python -m nexa_dist`."""

import sys

from nexa_dist.cli import main

sys.exit(main())
