"""Rows of a tensor in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def first_active_row(values: Tensor, mask: Tensor) -> Tensor:
    """Row of `values` (rows, S, E) that is the first active one at each position of `mask` (rows,
    S): (S, E), else 0, as where it is not finite.

    A constant to autograd: every use of it as a shift cancels.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    row = mask.long().argmax(0)
    first = values.detach()[row, torch.arange(values.shape[1], device=values.device)]
    # From an infinite row nothing is a difference.
    return torch.where(mask.any(0)[:, None] & first.isfinite(), first, 0)


def in_rows(values: Tensor, rows: slice, like: Tensor) -> Tensor:
    """`values` as those rows of a tensor of the shape and dtype of `like`; the other rows are 0."""
    values = values.to(like.dtype)
    if values.shape == like.shape:
        return values
    start, stop, _ = rows.indices(like.shape[0])
    return torch.nn.functional.pad(values, (0, 0, 0, 0, start, like.shape[0] - stop))
