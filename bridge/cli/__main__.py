"""``python -m bridge.cli``: the same as ``stembridge``."""

import sys

from bridge.cli import main

sys.exit(main())
