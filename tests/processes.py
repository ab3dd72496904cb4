"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments, cwd=ROOT, **environment):
    """Variables that are None are unset."""
    variables = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables)
