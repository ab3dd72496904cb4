"""The stabiliser eps: the least positive variance of active positions."""

from __future__ import annotations

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
    of_rows, found = with_rows(stds), []
    for mask, rows in roles:
        eps = torch.empty((), dtype=dtype)
        factor = stabiliser_factor(dtype, safety_factor)
        operators().variance(of_rows, mask, *rows, *factor, path(), eps)
        found.append(eps)
    return found
