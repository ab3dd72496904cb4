"""Whether the compiled CUDA kernels can be used, and the reason."""

from __future__ import annotations

import os

OPERATORS = ("jensen", "logsumexp", "distances", "variance", "ranks")


def usable() -> tuple[bool, str]:
    """In this process at all: the library was built and loads, and there is a GPU or the
    emulator."""
    from ..cuda import _library

    return _library.usable()


def serves(operator: str, device: str) -> tuple[bool, str]:
    """This operator on this type of device."""
    if operator not in OPERATORS:
        return False, "there is no such kernel"
    emulated = os.environ.get("FUSED_MI_EMULATE_CUDA") == "1"
    if device == "cpu" and not emulated:
        return False, "it serves CPU tensors only in its emulator (FUSED_MI_EMULATE_CUDA=1)"
    if device != ("cpu" if emulated else "cuda"):
        return False, f"it does not serve {device} tensors"
    return usable()
