"""The compiled library: loaded when it is first needed, and why it cannot be used.

`FUSED_MI_EMULATE_CUDA=1` takes the library of the same kernels for an execution model of CUDA on
the host instead: it serves CPU tensors, for tests.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from .._environment import Variable

VARIABLE = "FUSED_MI_EMULATE_CUDA"
_variable = Variable(VARIABLE)
_FOLDER = Path(__file__).parent
LIBRARY = _FOLDER / "libfused_mi_cuda.so"
EMULATED = _FOLDER / "libfused_mi_emulated.so"
_VERSION = 2  # of the operators' schemas
OPERATORS = (
    "variance",
    "jensen",
    "jensen_backward",
    "log_determinants",
    "distances",
    "samples_gradient",
    "components_gradient",
    "logsumexp",
    "logsumexp_backward",
    "logsumexp_of_pairs",
    "logsumexp_of_pairs_backward",
)


def emulated() -> bool:
    """Whether the kernels run in the emulator, on CPU tensors."""
    return _variable.get() == "1"


def usable() -> tuple[bool, str]:
    """Whether the library works in this process, and the reason."""
    return _usable(emulated())


def operators() -> Any:
    """The namespace of the raw operators.

    Raises:
        RuntimeError: the library cannot be used.
    """
    of_emulator = emulated()
    works, reason = _usable(of_emulator)
    if not works:
        raise RuntimeError(reason)
    return torch.ops.fused_mi_emulated if of_emulator else torch.ops.fused_mi_cuda


@functools.cache
def _usable(of_emulator: bool) -> tuple[bool, str]:
    file = EMULATED if of_emulator else LIBRARY
    if not of_emulator and not torch.cuda.is_available():
        return False, "no GPU that torch can use"
    if not of_emulator and torch.version.cuda is None:
        return False, "this torch has no CUDA"
    if not file.exists():
        return False, "the library was not built: see FUSED_MI_BUILD_CUDA"
    try:
        torch.ops.load_library(str(file))
        library = torch.ops.fused_mi_emulated if of_emulator else torch.ops.fused_mi_cuda
        _check(library)
    except Exception as error:  # whatever a wrong file raises: another backend serves
        cause = error.__cause__ or error
        return False, f"{file} does not load: {type(cause).__name__}: {cause}"
    if of_emulator:
        return True, f"emulator ({VARIABLE}), CPU tensors"
    driver, runtime = library.versions_of_cuda()
    if driver // 1000 < runtime // 1000:
        return False, f"the driver serves CUDA {_version(driver)}, not {_version(runtime)}"
    if torch.cuda.get_device_capability() < (8, 0):
        return False, "the GPU is older than compute capability 8.0"
    return True, f"CUDA {_version(runtime)}, {torch.cuda.get_device_name()}"


def _check(library: Any) -> None:
    missing = [name for name in ("version", *OPERATORS) if not hasattr(library, name)]
    if missing:
        raise RuntimeError(f"it lacks {', '.join(missing)}")
    if (found := library.version()) != _VERSION:
        raise RuntimeError(f"it was built from other sources: version {found}, not {_VERSION}")


def _version(number: int) -> str:
    """13.0 of 13000."""
    return f"{number // 1000}.{number % 1000 // 10}"
