"""Processes that are ranks, and functions that these import by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
