"""Losses of the standard deviations alone: the more noise, the lower."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import _checks


def gaussian_entropy_log_loss(stds: Tensor, noise_mask: Tensor | None = None) -> Tensor:
    """Minus the mean entropy of a Gaussian feature, in nats.

    `mean over the active elements of -log(stds + finfo(stds.dtype).eps) - 1/2 log(2 pi e)`

    Args:
        stds: any shape, for example (B, S, E).
        noise_mask: non-zero = active; its shape is a prefix of that of stds, for example (B, S).
            None = all active.

    Returns:
        0-dim in the dtype of stds, accumulated in T; 0 with zero gradients where nothing is active.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: the shape of noise_mask is no prefix of that of stds, or devices differ.
    """
    mean, any_active = _masked_mean(stds, noise_mask, lambda values, eps: -(values + eps).log())
    constant = math.log(2 * math.pi * math.e) / 2
    return torch.where(any_active, mean - constant, mean).to(stds.dtype)


def masked_negative_log_mean(stds: Tensor, noise_mask: Tensor | None = None) -> Tensor:
    """`-log(mean of the active stds + finfo(stds.dtype).eps)`, in nats: a bonus for large noise.

    Arguments, result and errors are those of `gaussian_entropy_log_loss`.
    """
    mean, any_active = _masked_mean(stds, noise_mask, lambda values, eps: values)
    loss = -(torch.where(any_active, mean, 1) + torch.finfo(stds.dtype).eps).log()
    return torch.where(any_active, loss, mean).to(stds.dtype)


def _masked_mean(
    stds: Tensor, noise_mask: Tensor | None, function: Callable[[Tensor, float], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean of `function(stds, eps)` over the active elements, 0 if there are none, and whether
    there are any."""
    dtype = _checks.floating(stds=stds)
    active = (
        stds.new_ones((), dtype=torch.bool)
        if noise_mask is None
        else _checks.activity("noise_mask", noise_mask, stds)
    )
    if noise_mask is not None:
        _checks.shape("noise_mask", active, stds.shape[: active.dim()], "a prefix of that of stds")
        active = active[(...,) + (None,) * (stds.dim() - active.dim())]
    active = active.expand(stds.shape)
    count = active.sum()
    values = function(torch.where(active, stds, 1).to(dtype), torch.finfo(stds.dtype).eps)
    return torch.where(active, values, 0).sum() / count.clamp(min=1), count > 0
