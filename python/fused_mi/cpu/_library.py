"""The compiled library: loaded when it is first needed, and why it cannot be used."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from .._environment import Variable

VARIABLE = "FUSED_MI_CPU"
_variable = Variable(VARIABLE)
PATHS = ("plain", "avx2", "avx512")  # instruction paths, the fastest last
LIBRARY = Path(__file__).with_name("libfused_mi_cpu.so")
HEADER = "torch/csrc/stable/library.h"
_VERSION = 6  # of the operators' schemas
OPERATORS = (
    "variance",
    "moments",
    "moments_backward",
    "parts",
    "pull",
    "merge",
    "pairs",
    "pairs_backward",
    "logsumexp",
    "logsumexp_backward",
    "jensen",
    "jensen_backward",
    "logsumexp_of_pairs",
    "logsumexp_of_pairs_backward",
)


@functools.cache
def usable() -> tuple[bool, str]:
    """Whether the library works in this process, and the reason."""
    if not LIBRARY.exists():
        return False, f"the library was not built: {_missing()}"
    try:
        _check_size(LIBRARY)
        torch.ops.load_library(str(LIBRARY))
        _check_operators()
    except Exception as error:  # whatever a wrong file raises: the plain path serves
        cause = error.__cause__ or error
        return False, f"{LIBRARY} does not load: {type(cause).__name__}: {cause}"
    return True, f"{platform.machine()}, instructions: {', '.join(supported())}"


@functools.cache
def warn_of_slowness(reason: str) -> None:
    """Once: plain torch serves CPU tensors though there are kernels for this machine."""
    if platform.system() == "Windows":
        return
    warnings.warn(
        f"fused_mi: plain torch serves CPU tensors, slower than the CPU kernels: "
        f"{reason}. They are built where a C++ compiler and torch's headers are found: in a clone, "
        "pip install --force-reinstall --no-deps .",
        stacklevel=2,
    )


def _missing() -> str:
    """What the build needs and is not here now."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")  # as setup.py looks for them
    if not any(map(shutil.which, filter(None, names))):
        return "there is no C++ compiler"
    if not Path(torch.__file__).with_name("include").joinpath(HEADER).exists():
        return f"torch has no {HEADER}"
    return "a compiler and torch's headers are here now; at installation they were not, or unwanted"


@functools.cache
def supported() -> tuple[str, ...]:
    """The instruction paths that this machine has, the fastest last."""
    bits = torch.ops.fused_mi_cpu.paths()
    return tuple(name for i, name in enumerate(PATHS) if bits >> i & 1)


def path() -> int:
    """The instruction path to use: the fastest, or that of the environment variable FUSED_MI_CPU.

    Raises:
        ValueError: no path has this name, or this machine lacks its instructions.
    """
    return _path(_variable.get())


@functools.cache
def _path(name: str | None) -> int:
    name = name or supported()[-1]
    if name not in supported():
        known = ", ".join(map(repr, supported()))
        raise ValueError(f"{VARIABLE}: expected one of {known} on this machine, got {name!r}")
    return PATHS.index(name)


def operators() -> Any:
    """The namespace of the raw operators.

    Raises:
        RuntimeError: the library cannot be used.
    """
    works, reason = usable()
    if not works:
        raise RuntimeError(reason)
    return torch.ops.fused_mi_cpu


def _check_size(file: Path) -> None:
    """Of an ELF file: one that was cut off would not raise, but end the process."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if len(head) == 64 and head[:6] == b"\x7fELF\x02\x01":
        (sections,) = struct.unpack_from("<Q", head, 40)
        size, count = struct.unpack_from("<HH", head, 58)
        if file.stat().st_size < sections + size * count:
            raise OSError("the file is cut off")


def _check_operators() -> None:
    library = torch.ops.fused_mi_cpu
    missing = [name for name in ("version", "paths", *OPERATORS) if not hasattr(library, name)]
    if missing:
        raise RuntimeError(f"it lacks {', '.join(missing)}")
    found = library.version()
    if found != _VERSION:
        raise RuntimeError(f"it was built from other sources: version {found}, not {_VERSION}")
