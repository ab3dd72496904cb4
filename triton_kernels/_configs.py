"""All tile sizes: by architecture, width of the elements and shape."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from fused_mi._warming import warming
from torch import Tensor
from triton.runtime import driver

_WARP = (
    32  # lanes in which `num_warps` counts; a launch on AMD GPUs, whose warps have 64, halves it
)
_VECTOR_BYTES = 16  # of one load or store of one thread
_MAX_ROWS_PER_SPLIT = 512  # the rounding error of a running sum grows with its length
_MIN_ITERATIONS = 4  # of a program over its rows: fewer, and merging costs more than it hides
_MAX_ROWS_PER_STREAM = 128  # the same, where rows are added four at a time
_MIN_GROUPS = 2  # of rows of a program: fewer, and parts are as much traffic as the rows
_FEW_ROWS = 16  # of which each meets all others in the backward pass
_MAX_SPLITS = 512  # one program merges them, 16 at a time
_MAX_LEAST = 1024  # programs of a role: they fill the machine, and one program adds them up


def ceil_div(size: int, part: int) -> int:
    """How many parts hold `size`; `triton.cdiv` takes a microsecond or two."""
    return -(-size // part)


class Tile(NamedTuple):
    """ROWS x FEATURES elements of a program, each row of the tile an independent stream."""

    ROWS: int
    FEATURES: int
    num_warps: int


def features_tile(features: int, *tensors: Tensor, heavy: bool = False) -> Tile:
    """One vector of 16 bytes of the narrowest input for each thread; short features leave threads
    for more rows.

    Args:
        heavy: both roles or float64 in a sum: registers allow no more than 4 elements of a thread.
    """
    warps = warps_of(tensors[0].device)
    vector = _VECTOR_BYTES // min(t.element_size() for t in tensors)
    vector = min(vector, 4) if heavy else vector
    elements = warps * _WARP * vector
    # A row of one warp: long enough for the memory, and four rows in flight for each program.
    width = min(triton.next_power_of_2(max(features, 1)), _WARP * vector)
    return Tile(elements // width, width, warps)


def rows_tile(positions: int, features: int, *tensors: Tensor) -> Tile:
    """For a column at a time: one warp with all rows of its features, where there are programs
    enough; else rows are shared by warps."""
    tile = features_tile(features, *tensors)
    alone = Tile(1, tile.FEATURES, 1)
    programs = ceil_div(features, tile.FEATURES) * positions
    return alone if programs >= 4 * enough_programs(tensors[0].device) else tile


def candidates(features: int, *tensors: Tensor, heavy: bool = False) -> list[Tile]:
    """Tiles worth measuring; the first is the one that is used without a measurement."""
    first = features_tile(features, *tensors, heavy=heavy)
    elements, longest = first.ROWS * first.FEATURES, triton.next_power_of_2(max(features, 1))
    found = [first]
    for warps in (first.num_warps, 2 * first.num_warps):
        size = elements * warps // first.num_warps
        for width in (first.FEATURES, 2 * first.FEATURES, 4 * first.FEATURES):
            tile = Tile(size // width, width, warps)
            if tile.ROWS >= 1 and width <= longest and tile not in found:
                found.append(tile)
    return found


class MomentsTile(NamedTuple):
    """ROWS x FEATURES elements of a program, four times, of which a thread loads VECTOR at once."""

    ROWS: int
    FEATURES: int
    VECTOR: int
    num_warps: int
    maxnreg: int


def moments_tiles(features: int, *tensors: Tensor, both: bool) -> list[MomentsTile]:
    """Tiles of `accumulate_kernel`, of which the first is used without a measurement. Programs of
    one warp, which waits for no other; a thread has one vector of each input in each of four rows.
    Eight warps of an SM have registers: enough, as a group is 4 KiB at least.

    Args:
        both: rows have both roles: registers allow no more than 4 elements.
    """
    vector = _VECTOR_BYTES // min(t.element_size() for t in tensors)
    vector = min(vector, 4) if both else vector
    full, warps = lanes() * vector, lanes() // _WARP
    width = min(triton.next_power_of_2(max(features, 1)), full)
    first = MomentsTile(full // width, width, vector, warps, ALL_REGISTERS)
    wider = [MomentsTile(1, n * full, vector, n * warps, ALL_REGISTERS) for n in (2, 4)]
    return [first, *(tile for tile in wider if features >= tile.FEATURES)]


class FewTile(NamedTuple):
    """FEATURES of four rows, which a program holds, of which a thread loads VECTOR at once."""

    FEATURES: int
    VECTOR: int
    num_warps: int
    maxnreg: int


def few(rows: int) -> bool:
    """Whether the gradients of "leave_one_out" are summed pair by pair: one row is soon more than
    half of a few, and the arithmetic of so many pairs fits under the bytes of a row."""
    return rows <= _FEW_ROWS


def few_tile(features: int, *tensors: Tensor, most: int = 4) -> FewTile:
    """For a few rows: programs of one warp, which waits for no other. Registers of a thread allow
    `most` elements, in float64 one; for gradients 4."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    vector = 1 if wide else min(_VECTOR_BYTES // min(t.element_size() for t in tensors), most)
    width = min(triton.next_power_of_2(max(features, 1)), lanes() * vector)
    return FewTile(width, vector, lanes() // _WARP, ALL_REGISTERS)


def few_splits(rows: int, programs: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the rows of one tile, and rows for each, in groups of four: one has
    all of them where programs fill the machine, as partners come from the cache then."""
    wanted = min(ceil_div(4 * enough_programs(device), programs), ceil_div(rows, 4))
    per_split = ceil_div(ceil_div(rows, wanted), 4) * 4
    return ceil_div(rows, per_split), per_split


class MomentsSplits(NamedTuple):
    """How many programs share the batch, and rows of either role for each of them."""

    parts: int
    samples: int
    components: int


def moments_splits(
    samples: int, components: int, programs: int, tile_rows: int, device: torch.device
) -> MomentsSplits:
    """Programs of one warp: four times as many as of others fill the machine."""
    block, rows = 4 * tile_rows, max(samples, components)
    fill = ceil_div(4 * enough_programs(device), programs)
    accuracy = ceil_div(rows, _MAX_ROWS_PER_STREAM * tile_rows)
    wanted = min(max(fill, accuracy), _MAX_SPLITS, ceil_div(rows, block * _MIN_GROUPS))
    per_split = ceil_div(ceil_div(rows, wanted), block) * block
    # More than one also where another batch needs it: the last may be empty.
    count = max(ceil_div(rows, per_split), 2 if warming() else 1)
    return MomentsSplits(
        count, *(ceil_div(ceil_div(n, count), block) * block for n in (samples, components))
    )


class LostTile(NamedTuple):
    """ROWS x PARTNERS x FEATURES elements of a program, in LOOK columns that it looks at."""

    ROWS: int
    PARTNERS: int
    FEATURES: int
    LOOK: int
    num_warps: int
    maxnreg: int


def lost_tile(features: int) -> LostTile:
    """For lost columns: few features, for they may be few of a long batch, and not too few, for
    they may be all of a short one. The look is long: an ordinary call pays for every program.
    Nothing depends on the batch, for which `warmup` does not ask, and little on the features."""
    width = between(features, 1, 16)
    look = 2048 if features > 128 else between(features, 1, 128)
    return LostTile(4, 64 // width, width, look, 4, ALL_REGISTERS)


def finish_tile(features: int, dtype: torch.dtype) -> Tile:
    """For the merge of the parts: 16 splits at a time, each a stream of its own, and a cache line
    of each. Nothing depends on the batch."""
    return Tile(16, between(features, 1, 128 // dtype.itemsize), 4)


class PositionsTile(NamedTuple):
    """BLOCK_ROWS x BLOCK_S flags of a program at a time."""

    BLOCK_ROWS: int
    BLOCK_S: int
    num_warps: int


def positions_tile(positions: int) -> PositionsTile:
    """For the masks. Nothing depends on the batch."""
    width = between(positions, 1, 32)
    return PositionsTile(512 // width, width, 4)


def positions_splits(rows: int, tile_rows: int) -> tuple[int, int]:
    """Programs that share the rows of some positions, and rows for each; more than one take two
    launches, and so at least eight tiles."""
    wanted = min(ceil_div(rows, 4 * tile_rows), 64) if rows > 8 * tile_rows else 1
    per_split = ceil_div(ceil_div(rows, wanted), tile_rows) * tile_rows
    return ceil_div(rows, per_split), per_split


class AgainTile(NamedTuple):
    """ROWS x FEATURES elements of a program, in LOOK columns that it looks at."""

    ROWS: int
    FEATURES: int
    LOOK: int
    num_warps: int
    maxnreg: int


def again_tile(features: int) -> AgainTile:
    """For columns whose moments are lost: one warp, which stores what it has read, and waits for no
    other. Nothing depends on the batch."""
    width = between(features, 1, 16)
    return AgainTile(128 // width, width, between(features, 1, 512), 1, ALL_REGISTERS)


MERGE = {"BLOCK": 512, "num_warps": 4}
"""For columns of planes, in vectors of 16 bytes of float32."""

REDUCE = {"BLOCK": 512, "num_warps": 4}
"""For the last sum, in one program."""


def splits(rows: int, programs: int, tile_rows: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the rows of one tile of features, and rows for each of them."""
    if rows == 0 or programs == 0:
        return 0, 0
    fill = ceil_div(enough_programs(device), programs)
    accuracy = ceil_div(rows, _MAX_ROWS_PER_SPLIT * tile_rows)
    wanted = min(max(fill, accuracy), _MAX_SPLITS, ceil_div(rows, tile_rows * _MIN_ITERATIONS))
    per_split = ceil_div(ceil_div(rows, wanted), tile_rows) * tile_rows
    return ceil_div(rows, per_split), per_split


def least_splits(rows: int, programs: int, tile_rows: int, device: torch.device) -> tuple[int, int]:
    """Programs of a role that look for the least variance, which share its tiles, positions and
    parts of the batch, and rows of such a part: the one that adds them up reads so many numbers."""
    count, per_split = splits(rows, programs, tile_rows, device)
    return max(min(programs * count, _MAX_LEAST), 1), max(per_split, 1)


@functools.cache
def lanes() -> int:
    """Of one warp, the smallest program: AMD GPUs for servers have 64."""
    if torch.version.hip is None:
        return _WARP
    size: int = driver.active.get_current_target().warp_size
    return size


@functools.cache
def warps_of(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 4


@functools.cache
def enough_programs(device: torch.device) -> int:
    """Enough to fill the machine several times over."""
    if device.type == "cpu":  # the interpreter
        return 1
    if device.type == "meta":  # recorded launches: as on an H100
        return 4 * 132
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def between(size: int, least: int, largest: int) -> int:
    """The power of two that holds `size`, within bounds."""
    power: int = triton.next_power_of_2(max(size, 1))
    return min(max(power, least), largest)


ALL_REGISTERS = 255  # of a thread
REGISTERS_OF_16_WARPS = 128
REGISTERS_OF_24_WARPS = 80
REGISTERS_OF_48_WARPS = 40  # of a thread: what reads one tensor alone waits for less at once
