"""The stabiliser eps: the least positive variance of active positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Role
from ..reference.variance import least as least
from ..reference.variance import stabiliser_factor
from ._library import operators


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `fused_mi.reference.variance.variance`; two roles at a time."""
    found: list[Tensor] = []
    for i in range(0, len(roles), 2):
        two = roles[i : i + 2]
        eps = torch.empty(len(two), dtype=dtype, device=stds.device)
        masks = two[0][0], two[-1][0]
        ranges = [n for j, (_, (start, stop)) in enumerate(two) for n in (j, start, stop - start)]
        bounds = factor_and_bounds(dtype, safety_factor)
        operators().variance(stds, *masks, ranges, *bounds, eps)
        found += eps.unbind()
    return found


def factor_and_bounds(dtype: torch.dtype, safety_factor: float) -> tuple[float, float, float]:
    """eps is the first number times the minimum, within the two others; or minus the first, where
    that is negative."""
    factor, least = stabiliser_factor(dtype, safety_factor)
    return -least if safety_factor < 0 else factor, least, torch.finfo(dtype).max
