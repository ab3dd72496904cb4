"""The stabiliser eps of the variances, and the variances and their logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._mixture import Role

LOG_2PI = math.log(2 * math.pi)


def min_positive_variance(stds: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Smallest `stds**2 > 0` over the active positions, in `dtype`, 0-dim, no gradient; 1 when
    there is none.

    Args:
        stds: (..., S, E) standard deviations.
        mask: (..., S) bool, broadcast against stds, or None for all positions.
        dtype: the accumulation type; squares that underflow in it, overflow in it, or are NaN do
            not count.
    """
    return or_one(least_variance(stds, mask, dtype))


def least_variance(stds: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same, and infinity when there is none: of several sets of rows the least is that of
    all."""
    variance = stds.detach().to(dtype).square()
    counts = variance > 0
    if mask is not None:
        counts = counts & mask[..., None]
    if variance.numel() == 0:
        return torch.full((), math.inf, dtype=dtype, device=stds.device)
    return torch.where(counts, variance, math.inf).amin()


def least(stds: Tensor, roles: Sequence[Role], dtype: torch.dtype) -> list[Tensor]:
    """The least positive active variance of each role, infinity where there is none."""
    return [
        least_variance(stds[start:stop], mask[start:stop], dtype) for mask, (start, stop) in roles
    ]


def or_one(least: Tensor) -> Tensor:
    """1 where nothing counted."""
    return torch.where(least < math.inf, least, 1)


def stabiliser_factor(dtype: torch.dtype, safety_factor: float) -> tuple[float, float]:
    """eps is the first number times the minimum, but no less than the second: a minimum that is
    denormal must not vanish. A factor below 0 is minus eps, see `Scoring`."""
    info = torch.finfo(dtype)
    if safety_factor < 0:
        return 0.0, min(-safety_factor, info.max)
    return safety_factor * info.eps, info.tiny * info.eps if safety_factor > 0 else 0.0


def stabiliser(
    stds: Tensor, mask: Tensor | None, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """eps = safety_factor * finfo(dtype).eps * the smallest positive active variance; 0-dim, in
    `dtype`, > 0 and finite."""
    return stabiliser_of(min_positive_variance(stds, mask, dtype), safety_factor)


def stabiliser_of(smallest: Tensor, safety_factor: float) -> Tensor:
    """eps of the smallest variance that counts."""
    factor, least = stabiliser_factor(smallest.dtype, safety_factor)
    most = torch.finfo(smallest.dtype).max
    return (min(factor, most) * smallest).clamp(least, most)


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """The stabiliser of each role, of those rows of `stds` (rows, S, E)."""
    return of_roles(stabiliser, stds, roles, dtype, safety_factor)


def of_roles(
    of_role: Callable[..., Tensor],
    stds: Tensor,
    roles: Sequence[Role],
    dtype: torch.dtype,
    safety_factor: float,
) -> list[Tensor]:
    """`of_role(stds, mask, dtype, safety_factor)` for the rows of each."""
    return [
        of_role(stds[start:stop], mask[start:stop], dtype, safety_factor)
        for mask, (start, stop) in roles
    ]


def stabilised_root(stds: Tensor, mask: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
    """`sqrt(stds**2 + eps)` (..., S, E) in `dtype` where `mask` (..., S) is active, and of stds 1
    elsewhere.

    The root is in range where the variance is not; narrower stds have squares in range."""
    active = torch.where(mask[..., None], stds, 1)
    if active.dtype == dtype:
        return torch.hypot(active, eps.to(dtype).sqrt())
    return (active.to(dtype).square() + eps.to(dtype)).sqrt()


def log_determinant_terms(root: Tensor, mask: Tensor) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (..., S) of `root` = sqrt(v) (..., S, E), and 0 where `mask`
    (..., S) is not active."""
    return torch.where(mask, (root.log() + LOG_2PI / 2).sum(-1), 0)


def range_scale(root: Tensor) -> Tensor:
    """A power of two for each column of `root` (rows, S, E), in the middle of whose values it
    brings 1: products of the column's squares and reciprocals stay in range."""
    exponents = torch.frexp(torch.stack((root.detach().amin(0), root.detach().amax(0))))[1]
    middle = exponents.sum(0).div(2, rounding_mode="floor")
    most = int(math.log2(torch.finfo(root.dtype).max)) - 3
    return torch.ldexp(torch.ones_like(root[0]), (-middle).clamp(-most, most))
