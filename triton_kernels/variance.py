"""The stabiliser eps: the least positive variance over active positions, in two stages."""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Role
from fused_mi.reference.variance import stabiliser_factor
from torch import Tensor

from ._configs import (
    ALL_REGISTERS,
    REGISTERS_OF_48_WARPS,
    ceil_div,
    features_tile,
    least_splits,
)
from ._launch import accumulator, launch, strided, unit
from ._tiles import load, load_mask, multiple, position_of


@triton.jit
def least_of(
    stds,
    masks,  # two of them
    second,  # which one
    rows_of,  # start, rows, and how many of them are one item
    program,
    programs,  # that share the items: tiles of features, positions and ranges of rows
    sizes,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """The least positive variance of active positions, infinity where there is none."""
    start, rows, per_split = rows_of
    S, E, tiles = sizes
    found = tl.full((ROWS, FEATURES), float("inf"), ACC)
    for item in range(program, tiles * S * tl.cdiv(rows, per_split), programs):
        tile, s, split = position_of(item, tiles, S)
        e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
        end = min((split + 1) * per_split, rows)
        for begin in range(split * per_split, end, ROWS):
            index = begin + tl.arange(0, ROWS)[:, None]
            row = start + index
            inside = index < end
            active = load_mask(masks[0], row, s, inside & ~second)
            active |= load_mask(masks[1], row, s, inside & second)
            sigma = load(stds, row, s, e, active & (e < E), ACC)
            square = sigma * sigma
            found = tl.where((square > 0) & (square < found), square, found)
    return tl.min(tl.min(found, 1), 0)


@triton.jit
def stabiliser_of(
    least,
    first,
    end,
    low,  # the bits of a float64, FACTOR, in two halves: an argument that is a float has 32
    high,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """eps = FACTOR * min(least) within [SMALLEST, LARGEST], the minimum 1 where nothing counted; no
    least number where FACTOR is 0. A FACTOR below 0 is minus eps. In float64."""
    found = tl.full((BLOCK,), float("inf"), least.dtype.element_ty)
    for begin in range(first, end, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        found = tl.minimum(found, tl.load(least + i, mask=i < end, other=float("inf")))
    minimum = tl.min(found, 0)
    minimum = tl.where(minimum < float("inf"), minimum, 1.0).to(tl.float64)
    bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    factor = bits.to(tl.float64, bitcast=True)
    # In float64: these constants may be beyond the range of float32, and are then of that type.
    smallest = tl.where(factor > 0, tl.full((), SMALLEST, tl.float64), 0.0)
    scaled = tl.where(factor < 0, -factor, tl.maximum(minimum * factor, smallest))
    # An infinite variance has no difference to another one.
    return tl.minimum(scaled, tl.full((), LARGEST, tl.float64))


@triton.jit(
    do_not_specialize=[
        *("start", "rows", "other_start", "other_rows"),
        *("rows_per_split", "programs", "S", "E", "tiles"),
    ]
)
def _least_kernel(
    stds,  # (rows, S, E) strided
    mask,  # (rows, S) strided bool, of one role
    other_mask,  # (rows, S) strided bool, of another
    least,  # (roles, programs) ACC
    start,
    rows,
    other_start,
    other_rows,
    rows_per_split,
    programs,  # of a role
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    E = multiple(E, UNIT)
    other = tl.program_id(0) >= programs
    start, rows = tl.where(other, other_start, start), tl.where(other, other_rows, rows)
    part, number = (start, rows, rows_per_split), tl.program_id(0) % programs
    masks, sizes = (mask, other_mask), (S, E, tiles)
    found = least_of(stds, masks, other, part, number, programs, sizes, ACC, ROWS, FEATURES)
    tl.store(least + tl.program_id(0), found)


@triton.jit(do_not_specialize=["programs", "low", "high"])
def _stabiliser_kernel(
    least,  # (roles, programs) ACC
    eps,  # (roles,) ACC
    programs,
    low,
    high,
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    role = tl.program_id(0)
    first, end = role * programs, (role + 1) * programs
    found = stabiliser_of(least, first, end, low, high, SMALLEST, LARGEST, BLOCK)
    tl.store(eps + role, found.to(eps.dtype.element_ty))


def factor_and_bounds(dtype: torch.dtype, safety_factor: float) -> tuple[int, int, float, float]:
    """Arguments `low` to `LARGEST` of `stabiliser_of`."""
    factor, fixed = stabiliser_factor(dtype, safety_factor)
    if safety_factor < 0:
        factor = -fixed
    _, smallest = stabiliser_factor(dtype, 1.0)
    low, high = struct.unpack("<2i", struct.pack("<d", factor))
    return low, high, smallest, torch.finfo(dtype).max


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `fused_mi.reference.variance.variance`; two roles at a time."""
    found: list[Tensor] = []
    for i in range(0, len(roles), 2):
        found += _of_two(stds, roles[i : i + 2], dtype, safety_factor)
    return found


def least(stds: Tensor, roles: Sequence[Role], dtype: torch.dtype) -> list[Tensor]:
    """See `fused_mi.reference.variance.least`; two roles at a time."""
    found: list[Tensor] = []
    for i in range(0, len(roles), 2):
        found += _least_of_two(stds, roles[i : i + 2], dtype).amin(1).unbind()
    return found


def _least_of_two(stds: Tensor, roles: Sequence[Role], dtype: torch.dtype) -> Tensor:
    """Least variances (roles, programs), infinity where there is none."""
    _, positions, features = stds.shape
    tile = features_tile(features, stds)
    tiles = ceil_div(features, tile.FEATURES)
    ranges = [(start, stop - start) for _, (start, stop) in roles]
    rows = max(rows for _, rows in ranges)
    programs, per_split = least_splits(rows, tiles * positions, tile.ROWS, stds.device)
    found = torch.empty((len(roles), programs), dtype=dtype, device=stds.device)
    launch(
        _least_kernel,
        len(roles) * programs,
        strided(stds),
        strided(roles[0][0]),
        strided(roles[-1][0]),
        found,
        *ranges[0],
        *ranges[-1],
        per_split,
        programs,
        positions,
        features,
        tiles,
        UNIT=unit(features),
        ACC=accumulator(dtype),
        **tile._asdict(),
        maxnreg=ALL_REGISTERS if dtype == torch.float64 else REGISTERS_OF_48_WARPS,
    )
    return found


def _of_two(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> Sequence[Tensor]:
    found = _least_of_two(stds, roles, dtype)
    eps = torch.empty(len(roles), dtype=dtype, device=stds.device)
    low, high, smallest, largest = factor_and_bounds(dtype, safety_factor)
    launch(
        _stabiliser_kernel,
        len(roles),
        found,
        eps,
        found.shape[1],
        low,
        high,
        SMALLEST=smallest,
        LARGEST=largest,
        BLOCK=1024,
    )
    return eps.unbind()
