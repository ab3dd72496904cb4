"""Whether the Triton kernels can be used, and the reason."""

from __future__ import annotations

import functools
import importlib
import os

import torch

MINIMUM = (3, 6)
OPERATORS = ("jensen", "logsumexp", "distances", "variance", "ranks")


@functools.cache
def usable() -> tuple[bool, str]:
    """In this process at all: Triton imports, and there is a GPU or the interpreter."""
    try:
        import triton

        version = tuple(int(part) for part in triton.__version__.split(".")[:2])
        if version < MINIMUM:
            return False, f"Triton {triton.__version__} is older than {MINIMUM[0]}.{MINIMUM[1]}"
        importlib.import_module("fused_mi.triton_kernels.moments")
    except ModuleNotFoundError as error:
        return False, f"not installed: {error}"
    except Exception as error:  # whatever a broken installation raises: the plain path serves
        return False, f"its import failed: {type(error).__name__}: {error}"
    if interpreting():
        return True, f"Triton {triton.__version__}, interpreter (TRITON_INTERPRET), CPU tensors"
    if not torch.cuda.is_available():
        return False, "no GPU that torch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return False, "the GPU is older than compute capability 8.0"
    return True, f"Triton {triton.__version__}, {torch.cuda.get_device_name()}"


def interpreting() -> bool:
    """The kernels run in Triton's interpreter, on CPU tensors."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def serves(operator: str, device: str) -> tuple[bool, str]:
    """This operator on this type of device."""
    if operator not in OPERATORS:
        return False, "there is no such kernel"
    # Before anything is imported: tensors on a CPU must not cost the import of Triton.
    if device == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return False, "it serves CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    if device not in ("cpu", "cuda"):
        return False, f"it does not serve {device} tensors"
    works, reason = usable()
    if works and interpreting() != (device == "cpu"):
        return False, f"its interpreter is {'on' if interpreting() else 'off'}"
    return works, reason
