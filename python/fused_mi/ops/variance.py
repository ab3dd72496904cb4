"""Operator `variance`: the stabiliser eps, from the least positive variance of active positions."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mixture import Rows
from ._backends import choose
from ._library import define


def _implementation(
    stds: Tensor, mask: Tensor, start: int, stop: int, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    backend = choose("variance", stds)
    (eps,) = backend.variance(stds, [(mask, (start, stop))], dtype, safety_factor)
    found: Tensor = eps
    return found


def _fake(
    stds: Tensor, mask: Tensor, start: int, stop: int, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    return stds.new_empty((), dtype=dtype)


_variance = define(
    "variance(Tensor stds, Tensor mask, SymInt start, SymInt stop, ScalarType dtype,"
    " float safety_factor) -> Tensor",
    _implementation,
    _fake,
)


def stabiliser(
    stds: Tensor, mask: Tensor, rows: Rows, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """eps of the variances of `rows`: `safety_factor * finfo(dtype).eps * min(stds^2 > 0)`.

    Args:
        stds: (rows, S, E).
        mask: (rows, S) bool; the minimum runs over active positions, and is 1 without any.
        rows: which rows of both.
        dtype: of the squares and of the result, 0-dim, on the device of `stds`.
    """
    eps: Tensor = _variance(stds.detach(), mask, *rows, dtype, safety_factor)
    return eps
