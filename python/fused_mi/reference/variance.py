"""The stabiliser eps of the variances, and the variances and their logs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    variance = stds.detach().to(dtype).square()
    counts = variance > 0
    if mask is not None:
        counts = counts & mask[..., None]
    if variance.numel() == 0:
        return torch.ones((), dtype=dtype, device=stds.device)
    smallest = torch.where(counts, variance, math.inf).amin()
    return torch.where(smallest < math.inf, smallest, 1)


def stabiliser(
    stds: Tensor, mask: Tensor | None, dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """eps = safety_factor * finfo(dtype).eps * the smallest positive active variance; 0-dim, in
    `dtype`, > 0."""
    info = torch.finfo(dtype)
    smallest_subnormal = info.tiny * info.eps
    eps = safety_factor * info.eps * min_positive_variance(stds, mask, dtype)
    return eps.clamp(min=smallest_subnormal) if safety_factor > 0 else eps


def stabilised_variance(stds: Tensor, mask: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
    """`stds**2 + eps` (..., S, E) in `dtype` where `mask` (..., S) is active, and of stds 1
    elsewhere."""
    return torch.where(mask[..., None], stds, 1).to(dtype).square() + eps.to(dtype)


def log_determinant_terms(variance: Tensor, mask: Tensor) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (..., S) of `variance` (..., S, E), and 0 where `mask` (...,
    S) is not active."""
    return torch.where(mask, (variance.log() + LOG_2PI).sum(-1) / 2, 0)
