"""Environment variables, on the path of every call."""

from __future__ import annotations

import os

# `os.environ.get` encodes, looks up and decodes: 1 us, a call reads four variables. Below it is a
# plain dict on every platform; without it, the slow way.
_data = getattr(os.environ, "_data", None)
_encode = getattr(os.environ, "encodekey", str)


class Variable:
    """One variable, read anew each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = _encode(name)

    def get(self) -> str | None:
        """Its value; None where it is not set or empty."""
        if _data is not None and self._key not in _data:
            return None
        return os.environ.get(self.name) or None
