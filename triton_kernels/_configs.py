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
    warps = _warps(tensors[0].device)
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
    return alone if programs >= 4 * _programs(tensors[0].device) else tile


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
    wanted = min(ceil_div(4 * _programs(device), programs), ceil_div(rows, 4))
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
    fill = ceil_div(4 * _programs(device), programs)
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
    width = _between(features, 1, 16)
    look = 2048 if features > 128 else _between(features, 1, 128)
    return LostTile(4, 64 // width, width, look, 4, ALL_REGISTERS)


def finish_tile(features: int, dtype: torch.dtype) -> Tile:
    """For the merge of the parts: 16 splits at a time, each a stream of its own, and a cache line
    of each. Nothing depends on the batch."""
    return Tile(16, _between(features, 1, 128 // dtype.itemsize), 4)


class PositionsTile(NamedTuple):
    """BLOCK_ROWS x BLOCK_S flags of a program at a time."""

    BLOCK_ROWS: int
    BLOCK_S: int
    num_warps: int


def positions_tile(positions: int) -> PositionsTile:
    """For the masks. Nothing depends on the batch."""
    width = _between(positions, 1, 32)
    return PositionsTile(512 // width, width, 4)


def positions_splits(rows: int, tile_rows: int) -> tuple[int, int]:
    """Programs that share the rows of some positions, and rows for each; more than one take two
    launches, and so at least eight tiles."""
    wanted = min(ceil_div(rows, 4 * tile_rows), 64) if rows > 8 * tile_rows else 1
    per_split = ceil_div(ceil_div(rows, wanted), tile_rows) * tile_rows
    return ceil_div(rows, per_split), per_split


REDUCE = {"BLOCK": 512, "num_warps": 4}
"""For the last sum, in one program."""


def splits(rows: int, programs: int, tile_rows: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the rows of one tile of features, and rows for each of them."""
    if rows == 0 or programs == 0:
        return 0, 0
    fill = ceil_div(_programs(device), programs)
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
def _warps(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 4


@functools.cache
def _programs(device: torch.device) -> int:
    """Enough to fill the machine several times over."""
    if device.type == "cpu":  # the interpreter
        return 1
    if device.type == "meta":  # recorded launches: as on an H100
        return 4 * 132
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def careful_programs(programs: int, device: torch.device) -> int:
    """Of a launch that as a rule only looks at a flag: programs that end at once take time too."""
    return min(programs, _programs(device))


CHUNK = 1024
"""Features of one position that are added up in float32 before anything else joins them."""


class PairsTile(NamedTuple):
    """SAMPLES x COMPONENTS pairs of a program, FEATURES at a time; VECTOR times as many are loaded,
    and where AHEAD, one loop before they are used."""

    SAMPLES: int
    COMPONENTS: int
    FEATURES: int
    VECTOR: int
    AHEAD: bool
    num_warps: int
    maxnreg: int


def pairs_tile(samples: int, components: int, dtype: torch.dtype, itemsize: int = 4) -> PairsTile:
    """Up to 64 x 32 pairs, eight of a thread that share one component: preparing a component takes
    most of the work beside the pairs, and serves 64 of them. 16 warps of an SM have registers.

    In 32 bits a row is read by lines of 128 bytes. Where the pairs are few, which the memory
    limits, 12 warps have registers for the next lines too; where they are many there are none left.

    Args:
        dtype: of the arithmetic.
        itemsize: the least of the inputs.
    """
    if dtype == torch.float64:
        n, m = _between(samples, 16, 32), _between(components, 16, 32)
        return PairsTile(n, m, 4, 1, True, 4, ALL_REGISTERS)
    n, m = _between(samples, 16, 64), _between(components, 16, 32)
    warps = n * m // 256
    if itemsize == 4:
        most = {4: 168, 8: 128}.get(warps, ALL_REGISTERS)
        return PairsTile(n, m, 8, 4, warps < 8, max(warps, 2), most)
    return PairsTile(n, m, 8, 1, True, max(warps, 2), 128 if warps >= 4 else ALL_REGISTERS)


ALL_REGISTERS = 255  # of a thread
REGISTERS_OF_16_WARPS = 128
REGISTERS_OF_24_WARPS = 80
REGISTERS_OF_48_WARPS = 40  # of a thread: what reads one tensor alone waits for less at once


def pairs_splits(chunks: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the features of one tile of pairs, and chunks for each of them."""
    wanted = max(ceil_div(_programs(device), 4 * tiles), ceil_div(chunks, _MAX_CHUNKS))
    per_split = ceil_div(chunks, min(wanted, chunks))
    return ceil_div(chunks, per_split), per_split


_MAX_CHUNKS = 16  # of a program: the rest is added up in float64


class PairsGradientTile(NamedTuple):
    """ROWS x FEATURES elements of a gradient, SUMMED rows of the other role at a time."""

    ROWS: int
    SUMMED: int
    FEATURES: int
    num_warps: int
    maxnreg: int


def pairs_gradient_tile(
    rows: int, features: int, dtype: torch.dtype, sums: int
) -> PairsGradientTile:
    """Features across the lanes, rows across the warps, the sums in registers: 64 pairs and
    features of a thread in flight, and what is prepared of the other role serves 32 rows. Of one
    sum, 24 warps of an SM have registers, of two 16."""
    n = _between(rows, 8, 32)
    exact = dtype == torch.float64
    width = _between(features, 4, 32 if exact else 64)
    most = REGISTERS_OF_24_WARPS if sums == 1 else REGISTERS_OF_16_WARPS
    return PairsGradientTile(n, 8, width, n // 4, ALL_REGISTERS if exact else most)


PAIRS_PADDING = 32
"""Both sizes of a matrix of upstream gradients are multiples of it, and so of ROWS and SUMMED."""


def log_tile(features: int) -> dict[str, int]:
    """For sums over the features of one row and position."""
    width = _between(features, 1, 1024)
    return {"FEATURES": width, "num_warps": max(1, min(4, width // 128))}


class LogsumexpTile(NamedTuple):
    """ROWS x COLUMNS pairs of a program at a time."""

    ROWS: int
    COLUMNS: int
    num_warps: int


def logsumexp_tile(components: int, device: torch.device) -> LogsumexpTile:
    """Four pairs of a thread: its 96 bytes of energies are on their way together, and beside them
    the sums over the components fit into registers."""
    width = _between(components, 1, 512)
    warps = _warps(device)
    return LogsumexpTile(max(128 * warps // width, 1), width, warps)


def _between(size: int, least: int, largest: int) -> int:
    """The power of two that holds `size`, within bounds."""
    power: int = triton.next_power_of_2(max(size, 1))
    return min(max(power, least), largest)
