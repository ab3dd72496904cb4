"""Whether `warmup` is running: a backend then launches what only larger batches need as well."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_running = ContextVar("warming", default=False)


def warming() -> bool:
    """In this context."""
    return _running.get()


@contextlib.contextmanager
def every_kernel() -> Iterator[None]:
    """Calls inside launch every kernel that a batch of another size would."""
    token = _running.set(True)
    try:
        yield
    finally:
        _running.reset(token)
