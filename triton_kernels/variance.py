"""The stabiliser eps: the least positive variance over active positions, in two stages."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Role
from fused_mi.reference.variance import stabiliser_factor
from torch import Tensor

from ._configs import features_tile, splits
from ._launch import accumulator, launch, strided
from ._tiles import load, load_mask


@triton.jit(
    do_not_specialize=[
        *("start", "rows", "rows_per_split"),
        *("other_start", "other_rows", "other_rows_per_split"),
        *("programs", "S"),
    ]
)
def _least_kernel(
    stds,  # (rows, S, E) strided
    mask,  # (rows, S) strided bool, of one role
    other_mask,  # (rows, S) strided bool, of another
    least,  # (programs,) ACC, of both
    start,
    rows,
    rows_per_split,
    other_start,
    other_rows,
    other_rows_per_split,
    programs,  # of the first role
    S,
    E,
    tiles,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    other = tl.program_id(0) >= programs
    program = tl.program_id(0) - tl.where(other, programs, 0)
    tile, s, split = program % tiles, (program // tiles) % S, program // tiles // S
    start = tl.where(other, other_start, start)
    rows = tl.where(other, other_rows, rows)
    per_split = tl.where(other, other_rows_per_split, rows_per_split)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    found = tl.full((ROWS, FEATURES), float("inf"), ACC)
    end = min((split + 1) * per_split, rows)
    for begin in range(split * per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        inside = index < end
        active = load_mask(mask, row, s, inside & ~other)
        active |= load_mask(other_mask, row, s, inside & other)
        sigma = load(stds, row, s, e, active & (e < E), ACC)
        square = sigma * sigma
        found = tl.where((square > 0) & (square < found), square, found)
    tl.store(least + tl.program_id(0), tl.min(tl.min(found, 1), 0))


@triton.jit(do_not_specialize=["programs", "total"])
def _stabiliser_kernel(
    least,  # (total,) ACC, of one role or two
    eps,  # (roles,) ACC
    programs,  # of the first role
    total,
    FACTOR: tl.constexpr,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """eps = FACTOR * min(least) within [SMALLEST, LARGEST], the minimum 1 where nothing counted."""
    role = tl.program_id(0)
    first, end = tl.where(role == 0, 0, programs), tl.where(role == 0, programs, total)
    found = tl.full((BLOCK,), float("inf"), least.dtype.element_ty)
    for begin in range(first, end, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        found = tl.minimum(found, tl.load(least + i, mask=i < end, other=float("inf")))
    minimum = tl.min(found, 0)
    minimum = tl.where(minimum < float("inf"), minimum, 1.0).to(tl.float64)
    # In float64: these constants may be beyond the range of float32, and are then of that type.
    scaled = tl.maximum(minimum * FACTOR, tl.full((), SMALLEST, tl.float64))
    # An infinite variance has no difference to another one.
    scaled = tl.minimum(scaled, tl.full((), LARGEST, tl.float64))
    tl.store(eps + role, scaled.to(eps.dtype.element_ty))


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `fused_mi.reference.variance.variance`; two roles at a time."""
    found: list[Tensor] = []
    for i in range(0, len(roles), 2):
        found += _of_two(stds, roles[i : i + 2], dtype, safety_factor)
    return found


def _of_two(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> Sequence[Tensor]:
    _, positions, features = stds.shape
    tile = features_tile(features, stds)
    tiles = triton.cdiv(features, tile.FEATURES)
    ranges, programs = [], []
    for _, (start, stop) in roles:
        count, per_split = splits(stop - start, tiles * positions, tile.ROWS, stds.device)
        ranges.append((start, stop - start, per_split))
        programs.append(tiles * positions * count)
    total = sum(programs)
    least = torch.empty(total, dtype=dtype, device=stds.device)
    if total:
        masks = roles[0][0], roles[-1][0]
        launch(
            _least_kernel,
            total,
            strided(stds),
            *map(strided, masks),
            least,
            *ranges[0],
            *ranges[-1],
            programs[0],
            positions,
            features,
            tiles,
            ACC=accumulator(dtype),
            **tile._asdict(),
        )
    eps = torch.empty(len(roles), dtype=dtype, device=stds.device)
    factor, smallest = stabiliser_factor(dtype, safety_factor)
    launch(
        _stabiliser_kernel,
        len(roles),
        least,
        eps,
        programs[0],
        total,
        FACTOR=factor,
        SMALLEST=smallest,
        LARGEST=torch.finfo(dtype).max,
        BLOCK=1024,
    )
    return eps.unbind()
