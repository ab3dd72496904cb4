"""The stabiliser eps: the least positive variance over active positions, in two stages."""

import torch
import triton
import triton.language as tl
from fused_mi.reference.variance import stabiliser_factor
from torch import Tensor

from ._configs import features_tile, splits
from ._launch import accumulator, launch
from ._tiles import load, position


@triton.jit(do_not_specialize=["start", "rows", "rows_per_split", "S"])
def _least_kernel(
    stds,  # (rows, S, E)
    mask,  # (rows, S) bool
    least,  # (programs,) ACC
    stride_row,
    stride_s,
    stride_e,
    mask_stride_row,
    mask_stride_s,
    start,
    rows,
    rows_per_split,
    S,
    E,
    tiles,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    tile, s, split = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    found = tl.full((ROWS, FEATURES), float("inf"), ACC)
    end = min((split + 1) * rows_per_split, rows)
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        offset = row.to(tl.int64) * mask_stride_row + s.to(tl.int64) * mask_stride_s
        active = tl.load(mask + offset, mask=index < end, other=0) != 0
        sigma = load(stds, row, s, e, stride_row, stride_s, stride_e, active & (e < E), ACC)
        square = sigma * sigma
        found = tl.where((square > 0) & (square < found), square, found)
    tl.store(least + tl.program_id(0), tl.min(tl.min(found, 1), 0))


@triton.jit(do_not_specialize=["count"])
def _stabiliser_kernel(
    least,  # (count,) ACC
    eps,  # () ACC
    count,
    FACTOR: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """eps = FACTOR * min(least) within [SMALLEST, LARGEST], the minimum 1 where nothing counted."""
    found = tl.full((BLOCK,), float("inf"), least.dtype.element_ty)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        found = tl.minimum(found, tl.load(least + i, mask=i < count, other=float("inf")))
    minimum = tl.min(found, 0)
    minimum = tl.where(minimum < float("inf"), minimum, 1.0).to(tl.float64)
    # In float64: these constants may be beyond the range of float32, and are then of that type.
    scaled = tl.maximum(minimum * FACTOR, tl.full((), SMALLEST, tl.float64))
    # An infinite variance has no difference to another one.
    scaled = tl.minimum(scaled, tl.full((), LARGEST, tl.float64))
    tl.store(eps, scaled.to(eps.dtype.element_ty))


def variance(
    stds: Tensor, mask: Tensor, rows: tuple[int, int], dtype: torch.dtype, safety_factor: float
) -> Tensor:
    """See `fused_mi.reference.variance.variance`."""
    start, stop = rows
    _, positions, features = stds.shape
    factor, smallest = stabiliser_factor(dtype, safety_factor)
    tile = features_tile(features, stds)
    tiles = triton.cdiv(features, tile.FEATURES)
    batch_splits, rows_per_split = splits(stop - start, tiles * positions, tile.ROWS, stds.device)
    programs = tiles * positions * batch_splits
    least = torch.empty(programs, dtype=dtype, device=stds.device)
    if programs:
        launch(
            _least_kernel,
            programs,
            stds,
            mask,
            least,
            *stds.stride(),
            *mask.stride(),
            start,
            stop - start,
            rows_per_split,
            positions,
            features,
            tiles,
            ACC=accumulator(dtype),
            **tile._asdict(),
        )
    eps = torch.empty((), dtype=dtype, device=stds.device)
    launch(
        _stabiliser_kernel,
        1,
        least,
        eps,
        programs,
        FACTOR=factor,
        SMALLEST=smallest,
        LARGEST=torch.finfo(dtype).max,
        BLOCK=1024,
    )
    return eps
