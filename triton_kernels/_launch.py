"""The one way to launch a kernel: on the device of its tensors, on the current stream."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ._configs import lanes


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
        meta = for_amd(meta, lanes())
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*arguments, **meta)
    else:
        kernel[(programs,)](*arguments, **meta)


def for_amd(meta: dict[str, Any], lanes: int) -> dict[str, Any]:
    """As many threads, in warps of so many lanes; without the limit of registers, an option that
    the compiler for AMD GPUs does not have."""
    found = {name: value for name, value in meta.items() if name != "maxnreg"}
    return found | {"num_warps": max(found.get("num_warps", 4) * 32 // lanes, 1)}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type of all arithmetic of a kernel."""
    return tl.float64 if dtype == torch.float64 else tl.float32


UNIT = 8
"""Elements of 16 bytes of the narrowest inputs: what tiles load at once."""


def unit(*sizes: int) -> int:
    """What the sizes are multiples of, as kernels need it for loads of 16 bytes: UNIT or 1. Triton
    would tell multiples of 16 apart: other code for no wider loads, and none for E = 1000."""
    return 1 if any(size % UNIT for size in sizes) else UNIT


def strided(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """One argument of a kernel: a tensor and its strides, for `_tiles.stride`; None for one that is
    missing. Triton specialises all of a tuple, whatever `do_not_specialize` says of the argument:
    but not by odd numbers, which these are, times what the last element says."""
    return None if tensor is None else (tensor, *_odd(tensor.stride(), tensor.is_floating_point()))


@functools.lru_cache(maxsize=1024)  # a launch has up to six, and microseconds for all of them
def _odd(strides: tuple[int, ...], embeddings: bool) -> tuple[Any, ...]:
    *outer, inner = strides
    times = unit(*outer) if embeddings else 1
    return *(2 * (stride // times) - 1 for stride in outer), inner, tl.constexpr(times)
