"""Squared Mahalanobis distances over arbitrary leading dimensions, streamed over positions and
features."""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import working_dtype
from .streaming import Block, blocks, differentiable_sum_over_blocks
from .variance import stabilised_root


def square_distance(x: Tensor, y: Tensor, stds: Tensor, mask: Tensor, eps: Tensor) -> Tensor:
    """`1/2 sum_s mask_s sum_e (x - y)^2 / (stds^2 + eps)` over broadcast leading dimensions, in the
    working dtype.

    Args:
        x, y, stds: (..., S, E), broadcast in their leading dimensions only.
        mask: (..., S) bool.
        eps: 0-dim.
    """
    dtype = working_dtype(x.device)

    def block_distance(block: Block, x: Tensor, y: Tensor, stds: Tensor) -> tuple[Tensor]:
        active = mask[..., block[0]]
        difference = torch.where(active[..., None], x.to(dtype) - y.to(dtype), 0)
        standardised = difference / stabilised_root(stds, active, eps, dtype)
        return (standardised.square().sum((-2, -1)) / 2,)

    leading = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], stds.shape[:-2], mask.shape[:-1])
    cut = blocks(leading.numel(), x.shape[-2], x.shape[-1], x.device, min_features=1)
    return differentiable_sum_over_blocks(block_distance, cut, x, y, stds)[0]
