"""Whether `warmup` is running: a backend then launches what only larger batches need as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_running = 0  # of the process: the backward pass runs in a thread of its own


def warming() -> bool:
    """Calls beside a warmup launch more than they need, and are as right."""
    return _running > 0


@contextlib.contextmanager
def every_kernel() -> Iterator[None]:
    """Calls inside launch every kernel that a batch of another size would."""
    global _running
    _running += 1
    try:
        yield
    finally:
        _running -= 1
