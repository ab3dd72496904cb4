"""The stabiliser eps: the least positive variance of active positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Role
from ..reference.variance import stabiliser_factor
from ._arguments import with_rows
from ._library import operators, path


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `fused_mi.reference.variance.variance`."""
    factor = stabiliser_factor(dtype, safety_factor)
    return _of_roles(stds, roles, dtype, *factor, 1.0)


def least(stds: Tensor, roles: Sequence[Role], dtype: torch.dtype) -> list[Tensor]:
    """See `fused_mi.reference.variance.least`."""
    found = _of_roles(stds, roles, dtype, 1.0, 0.0, 0.0)  # no variance that counts is 0
    return [torch.where(v > 0, v, math.inf) for v in found]


def _of_roles(
    stds: Tensor,
    roles: Sequence[Role],
    dtype: torch.dtype,
    factor: float,
    smallest: float,
    none: float,
) -> list[Tensor]:
    """The least variance of each role times `factor`, but no less than `smallest`."""
    of_rows, found = with_rows(stds), []
    for mask, rows in roles:
        of_role = torch.empty((), dtype=dtype)
        operators().variance(of_rows, mask, *rows, factor, smallest, none, path(), of_role)
        found.append(of_role)
    return found
