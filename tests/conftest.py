"""Shared by all tests."""

import os

# Tiny models are slower on several threads than on one, and tests then disturb each other.
# Set before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
