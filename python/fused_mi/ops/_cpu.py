"""Whether the compiled CPU kernels can be used, and the reason."""

from __future__ import annotations

_OPERATORS = ("jensen", "logsumexp", "distances", "variance", "ranks")


def usable() -> tuple[bool, str]:
    """In this process at all: the library was built and loads."""
    from ..cpu import _library

    return _library.usable()


def serves(operator: str, device: str) -> tuple[bool, str]:
    """This operator on this type of device."""
    if device != "cpu":
        return False, f"it does not serve {device} tensors"

    if operator not in _OPERATORS:
        return False, "there is no such kernel"
    return usable()


def warn_of_slowness(reason: str) -> None:
    """That plain torch serves CPU tensors instead, because of `reason`; once."""
    from ..cpu import _library

    _library.warn_of_slowness(reason)
