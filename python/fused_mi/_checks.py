"""Checks of arguments: every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What else can be compared with 0.
_COUNTING = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
)
_INDICES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_STRIDED, _BOOL = torch.strided, torch.bool
_DENSE = frozenset((Tensor, torch.nn.Parameter))


def all_well(tensors: Sequence[Any], mask: Any) -> bool:
    """Whether `tensors` are dense, floating, of one shape (rows, S, E) and on one device, and
    `mask` is a bool one of (rows, S): then nothing has to be named."""
    first = tensors[0]
    if type(first) not in _DENSE or first.is_nested or first.dim() != 3:
        return False
    shape, device = first.shape, first.device
    for t in tensors:
        if (
            type(t) not in _DENSE
            or t.is_nested
            or t.dtype not in _FLOATING
            or t.layout is not _STRIDED
            or t.device != device
            or t.shape != shape
        ):
            return False
    return (
        type(mask) is Tensor
        and not mask.is_nested
        and mask.dtype is _BOOL
        and mask.layout is _STRIDED
        and mask.device == device
        and mask.shape == shape[:2]
    )


def with_positions(embeddings: Sequence[Any], *masks: Any) -> list[Any]:
    """Embeddings (rows, E), by the first of them, and masks (rows,) as those of one position; what
    has another number of dimensions as it is."""
    first = embeddings[0]
    if not isinstance(first, Tensor) or first.dim() != 2:
        return [*embeddings, *masks]
    ranked = [(t, 2) for t in embeddings] + [(t, 1) for t in masks]
    return [
        t.unsqueeze(1)
        if isinstance(t, Tensor) and t.dim() == rank and t.layout is _STRIDED and not t.is_nested
        else t
        for t, rank in ranked
    ]


def floating(**tensors: Any) -> torch.dtype:
    """Each argument is a dense tensor of a supported floating dtype, all on one device; returns the
    accumulation type T."""
    for name, value in tensors.items():
        _dense(name, value, _FLOATING, "tensor of float16, bfloat16, float32 or float64")
    one_device(tensors)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return torch.float64 if wide else torch.float32


def activity(name: str, mask: Any, like: Tensor) -> Tensor:
    """A dense 0/1 mask of any real dtype as bool, on the device of `like`."""
    _dense(name, mask, _FLOATING + _COUNTING, "bool, integer or floating-point tensor")
    one_device({"the embeddings": like, name: mask})
    active: Tensor = mask if mask.dtype == torch.bool else mask.detach() != 0
    return active


def rows_of(name: str, indices: Any, like: Tensor, rows: int) -> Tensor:
    """Indices (N,) of any integer dtype, one for each row of `like` and each in [0, rows), as
    int64; they are looked at where that costs nothing, on a CPU."""
    _dense(name, indices, _INDICES, "integer tensor")
    one_device({"the embeddings": like, name: indices})
    shape(name, indices, like.shape[:1], "(N,)")
    found: Tensor = indices.detach().long()
    if type(found) is Tensor and found.device.type == "cpu" and not _transformed():
        least, most = (t.item() for t in torch.aminmax(found))
        if least < 0 or most >= rows:
            wrong = least if least < 0 else most
            raise ValueError(
                f"{name}: expected rows 0 to {rows - 1} of the components, got {wrong}"
            )
    return found


def _transformed() -> bool:
    """Whether values cannot be looked at: in a graph, a transform or a mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
    )


def shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """`tensor` has exactly the shape `expected`; `meaning` names its dimensions."""
    if tensor.shape != torch.Size(expected):
        raise ValueError(
            f"{name}: expected shape {meaning} = {tuple(expected)}, got {tuple(tensor.shape)}"
        )


def sample_mask(mask: Any, y: Tensor) -> Tensor:
    """The mask of samples y (N, S, E), as bool."""
    active = activity("mask", mask, y)
    shape("mask", active, y.shape[:2], "(N, S)")
    return active


def component_mask(mask: Any, stds: Tensor) -> Tensor | None:
    """That of components (M, S, E), if there is any."""
    if mask is None:
        return None
    active = activity("component_mask", mask, stds)
    shape("component_mask", active, stds.shape[:2], "(M, S)")
    return active


def dimensions(name: str, tensor: Tensor, meaning: str) -> None:
    """`tensor` has as many dimensions as `meaning`, for example "(B, S, E)", names."""
    if tensor.dim() != meaning.count(",") + 1:
        raise ValueError(f"{name}: expected shape {meaning}, got {tuple(tensor.shape)}")


def not_empty(name: str, tensor: Tensor) -> None:
    """`tensor` has at least one row."""
    if tensor.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row, got shape {tuple(tensor.shape)}")


def option(name: str, value: Any, literal: Any) -> None:
    """`value` is one of the strings of the type `literal`."""
    if value not in literal.__args__:
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, get_args(literal)))}, got {value!r}"
        )


def factor(value: Any, name: str = "safety_factor") -> float:
    """A finite real number >= 0 of Python or NumPy, as a float."""
    if type(value) is float and 0 <= value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # of an integer or a fraction
        number = -math.inf if value < 0 else math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {number}")
    return number


def fixed(eps: Any) -> float | None:
    """None, or a stabiliser as `factor` wants numbers."""
    return None if eps is None else factor(eps, "eps")


def factor_or_fixed(safety_factor: Any, eps: Any) -> float:
    """What a `Scoring` has: the factor, or minus the stabiliser where that is fixed."""
    of_least, itself = factor(safety_factor), fixed(eps)
    return of_least if itself is None else -itself


def flag(name: str, value: Any) -> bool:
    """`value`, True or False of Python or NumPy, as a bool; a text such as "no" would be true."""
    if isinstance(value, bool):
        return value
    numpy = sys.modules.get("numpy")  # where it is not imported, nothing can be of its types
    if numpy is None or not isinstance(value, numpy.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def mapping(name: str, value: Any) -> None:
    """`value` is None or a mapping that can be written to."""
    if value is not None and type(value) is not dict and not isinstance(value, MutableMapping):
        raise TypeError(f"{name}: expected a mutable mapping or None, got {type(value).__name__}")


def tensor(name: str, value: Any) -> None:
    """`value` is a tensor of any kind."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def one_device(tensors: Mapping[str, Tensor]) -> None:
    """All tensors are where the first one is."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(
                f"{name}: expected device {reference.device} as {first}, got {tensor.device}"
            )


def _dense(name: str, value: Any, dtypes: Sequence[torch.dtype], expected: str) -> None:
    tensor(name, value)
    if value.is_nested:  # first: its layout may be that of dense tensors
        got = "a nested tensor"
    elif value.layout != torch.strided:
        got = f"layout {value.layout}"
    elif value.dtype not in dtypes:
        got = str(value.dtype)
    else:
        return
    raise TypeError(f"{name}: expected a dense {expected}, got {got}")
