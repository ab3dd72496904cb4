"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(**changes):
    """That of this process with changes; variables that are None are unset."""
    return {k: str(v) for k, v in {**os.environ, **changes}.items() if v is not None}


def python(*arguments, cwd=ROOT, **changes):
    """In an environment with changes, which see."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment(**changes)
    )
