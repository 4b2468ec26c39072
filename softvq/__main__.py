"""``python -m softvq``."""

import sys

from softvq.cli import main

sys.exit(main())
