"""Rows of a tensor in plain torch."""

from __future__ import annotations

import math

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


def heaviest_row(values: Tensor, roots: Tensor, mask: Tensor) -> Tensor:
    """Of each column of `values` (rows, S, E) the finite active one whose `roots` (rows, S, E), of
    variances, is the least: (S, E), else 0; `mask` (rows, S).

    A mean that weighs by the inverse variances is no farther from it than from anything else that
    weighs. A constant to autograd, as above.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    values = values.detach()
    counts = mask[..., None] & values.isfinite()
    row = torch.where(counts, roots.detach(), math.inf).argmin(0, keepdim=True)
    return torch.where(counts.gather(0, row), values.gather(0, row), 0)[0]


def in_rows(values: Tensor, rows: slice, like: Tensor) -> Tensor:
    """`values` as those rows of a tensor of the shape and dtype of `like`; the other rows are 0."""
    values = values.to(like.dtype)
    if values.shape == like.shape:
        return values
    start, stop, _ = rows.indices(like.shape[0])
    return torch.nn.functional.pad(values, (0, 0, 0, 0, start, like.shape[0] - stop))


class RowsOfRole:
    """Rows of one role: whether all their positions contribute, and where."""

    def __init__(self, mask: Tensor, rows: tuple[int, int]) -> None:
        self.mask, self.rows = mask, slice(*rows)
        self.everywhere = bool(mask.all())

    def at(self, positions: slice) -> Tensor:
        """Their mask (rows, b)."""
        return self.mask[:, positions]

    def count(self, here: Tensor, dtype: torch.dtype) -> Tensor | int:
        """How many rows contribute at each position, (b, 1) or the same number."""
        return len(here) if self.everywhere else here.sum(0, dtype=dtype)[:, None]

    def first(self, values: Tensor, here: Tensor) -> Tensor:
        """The first contributing row of `values` (rows, b, e)."""
        return values[0] if self.everywhere else first_active_row(values, here)

    def empty(self, like: Tensor) -> Tensor:
        """Memory of a gradient: 0 in all rows but those of the role."""
        found = torch.empty(like.shape, dtype=like.dtype)
        start, stop, _ = self.rows.indices(len(like))
        found[:start] = 0
        found[stop:] = 0
        return found

    def fill(self, values: Tensor, here: Tensor, other: float) -> Tensor:
        """`values` (rows, b, e), in place, and `other` where they do not contribute."""
        return values if self.everywhere else values.masked_fill_(~here[..., None], other)
