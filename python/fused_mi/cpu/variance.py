"""The stabiliser eps: the least positive variance of active positions."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mixture import Rows
from ..reference.variance import stabiliser_factor
from ._arguments import with_rows
from ._library import operators, path


def variance(
    stds: Tensor, mask: Tensor, rows: Rows, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """See `fused_mi.reference.variance.variance`."""
    eps = torch.empty((), dtype=dtype)
    factor = stabiliser_factor(dtype, safety_factor)
    operators().variance(with_rows(stds), mask, *rows, *factor, path(), eps)
    return eps
