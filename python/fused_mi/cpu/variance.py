"""The stabiliser eps: the least positive variance of active positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.mixture import Rows
from ._library import operators, path, with_rows


def variance(
    stds: Tensor, mask: Tensor, rows: Rows, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """See `fused_mi.reference.variance.variance`."""
    info = torch.finfo(dtype)
    # A minimum that is denormal must not vanish under the factor.
    smallest = info.tiny * info.eps if safety_factor > 0 else 0.0
    eps = torch.empty((), dtype=dtype)
    operators().variance(
        with_rows(stds), mask, *rows, safety_factor * info.eps, smallest, path(), eps
    )
    return eps
