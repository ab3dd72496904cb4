"""The one way to launch a kernel: on the device of its tensors, on the current stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor


class Launch(NamedTuple):
    """A launch that was recorded, or is about to happen."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    meta: dict[str, Any]

    def named(self) -> dict[str, Any]:
        """Arguments and constants by name, tensors without strides; none of them is None."""
        given = (a[0] if isinstance(a, tuple) else a for a in self.arguments)
        named = dict(zip(self.kernel.arg_names, given, strict=False)) | self.meta
        return {name: value for name, value in named.items() if value is not None}


_recorded: list[Launch] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside are listed, not executed: for compilation ahead of time and inspection."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, programs: int, *arguments: Any, **meta: Any) -> None:
    """Run `programs` programs of a kernel; `meta` are its constants, `num_warps` and `maxnreg`."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, arguments, meta))
        return
    if torch.version.hip:
        meta = for_amd(meta)
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **meta)
    else:
        kernel[(programs,)](*arguments, **meta)


def for_amd(meta: dict[str, Any]) -> dict[str, Any]:
    """Without the limit of registers, an option that the compiler for AMD GPUs does not have."""
    return {name: value for name, value in meta.items() if name != "maxnreg"}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type of all arithmetic of a kernel."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def strided(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """One argument of a kernel: a tensor and its strides; None for one that is missing. Triton
    specialises all of a tuple, whatever `do_not_specialize` says of the argument."""
    return None if tensor is None else (tensor, *tensor.stride())
