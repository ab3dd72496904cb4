"""Masks and distances over broadcast leading dimensions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


def used_by(active: Tensor, stds: Tensor) -> Tensor:
    """The positions of `stds` (..., S, E) that some broadcast active position uses; broadcasts
    against (..., S)."""
    extra = active.dim() - (stds.dim() - 1)
    for _ in range(extra):
        active = active.any(0)
    offset = stds.dim() - 1 - active.dim()
    for dim in range(active.dim() - 1):
        if stds.shape[dim + offset] == 1:
            active = active.any(dim, keepdim=True)
    return active


class Outer(NamedTuple):
    """One side against the other: arguments of all pairs, and whether the result (N, M) is to be
    transposed."""

    y: Tensor  # (N, S, E)
    y_mask: Tensor  # (N, S)
    centers: Tensor  # (M, S, E)
    stds: Tensor  # (M, S, E)
    mask: Tensor  # (M, S)
    transposed: bool


def outer_pattern(x: Tensor, y: Tensor, stds: Tensor, active: Tensor) -> Outer | None:
    """Arguments (N, 1, S, E) with (1, M, S, E), either way round, stds along one of them; None for
    other patterns."""
    tensors = (x, y, stds, active[..., None])
    if max(t.dim() for t in tensors) != 4:
        return None
    x, y, stds, active = (t[(None,) * (4 - t.dim())] for t in tensors)
    for samples, centers in ((x, y), (y, x)):
        for axis in (0, 1):  # the samples run along `axis`, the components along the other
            rows, columns = samples.shape[axis], centers.shape[1 - axis]
            if rows == 1 or columns == 1:
                continue
            if not samples.shape[1 - axis] == centers.shape[axis] == stds.shape[axis] == 1:
                continue
            if active.shape[axis] != 1 and active.shape[1 - axis] != 1:
                continue
            by_sample = active.select(1 - axis, 0) if active.shape[1 - axis] == 1 else None
            by_component = active.select(axis, 0) if by_sample is None else None
            positions, features = x.shape[2:]
            return Outer(
                samples.select(1 - axis, 0),
                _rows(by_sample, active, rows, positions),
                centers.select(axis, 0),
                stds.select(axis, 0).expand(columns, positions, features),
                _rows(by_component, active, columns, positions),
                transposed=axis == 1,
            )
    return None


def _rows(mask: Tensor | None, like: Tensor, rows: int, positions: int) -> Tensor:
    """`mask` (rows or 1, S, 1) as (rows, S); all active where there is none."""
    if mask is None:
        return like.new_ones((), dtype=like.dtype).expand(rows, positions)
    return mask[..., 0].expand(rows, positions)
