"""Tiles and splits of the kernels of the pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import _configs
from ._configs import (
    ALL_REGISTERS,
    REGISTERS_OF_16_WARPS,
    REGISTERS_OF_24_WARPS,
    between,
    ceil_div,
)


def careful_programs(programs: int, device: torch.device) -> int:
    """Of a launch that as a rule only looks at a flag: programs that end at once take time too."""
    return min(programs, _configs.enough_programs(device))


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
        n, m = between(samples, 16, 32), between(components, 16, 32)
        return PairsTile(n, m, 4, 1, True, 4, ALL_REGISTERS)
    n, m = between(samples, 16, 64), between(components, 16, 32)
    warps = n * m // 256
    if itemsize == 4:
        most = {4: 168, 8: 128}.get(warps, ALL_REGISTERS)
        return PairsTile(n, m, 8, 4, warps < 8, max(warps, 2), most)
    return PairsTile(n, m, 8, 1, True, max(warps, 2), 128 if warps >= 4 else ALL_REGISTERS)


def pairs_splits(chunks: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the features of one tile of pairs, and chunks for each of them."""
    wanted = max(
        ceil_div(_configs.enough_programs(device), 4 * tiles), ceil_div(chunks, _MAX_CHUNKS)
    )
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
    n = between(rows, 8, 32)
    exact = dtype == torch.float64
    width = between(features, 4, 32 if exact else 64)
    most = REGISTERS_OF_24_WARPS if sums == 1 else REGISTERS_OF_16_WARPS
    return PairsGradientTile(n, 8, width, n // 4, ALL_REGISTERS if exact else most)


PAIRS_PADDING = 32
"""Both sizes of a matrix of upstream gradients are multiples of it, and so of ROWS and SUMMED."""


def log_tile(features: int) -> dict[str, int]:
    """For sums over the features of one row and position."""
    width = between(features, 1, 1024)
    return {"FEATURES": width, "num_warps": max(1, min(4, width // 128))}


def logs_tile(components: int) -> dict[str, int]:
    """For sums over the positions of pairs: 8 of a thread, which reads little for each."""
    width = between(components, 1, 64)
    return {"ROWS": 1024 // width, "COLUMNS": width, "num_warps": 4}


class LogsumexpTile(NamedTuple):
    """ROWS x COLUMNS pairs of a program at a time."""

    ROWS: int
    COLUMNS: int
    num_warps: int


def logsumexp_tile(components: int, device: torch.device) -> LogsumexpTile:
    """Four pairs of a thread: its 96 bytes of energies are on their way together, and beside them
    the sums over the components fit into registers."""
    width = between(components, 1, 512)
    warps = _configs.warps_of(device)
    return LogsumexpTile(max(128 * warps // width, 1), width, warps)


def online_tile(samples: int, components: int, dtype: torch.dtype, itemsize: int = 4) -> PairsTile:
    """That of the energies, always with the registers of 16 warps and so without what is next in
    them: between loops over the features there are those over positions and components."""
    tile = pairs_tile(samples, components, dtype, itemsize)._replace(AHEAD=False)
    if dtype == torch.float64:
        return tile
    return tile._replace(num_warps=max(tile.num_warps, 4), maxnreg=REGISTERS_OF_16_WARPS)


def online_splits(tiles_n: int, tiles_m: int, device: torch.device) -> tuple[int, int]:
    """How many programs share the components of one tile of samples, and tiles of components for
    each of them: few samples against very many components fill the device too."""
    wanted = min(ceil_div(_configs.enough_programs(device), tiles_n), tiles_m)
    per_split = ceil_div(tiles_m, wanted)
    return ceil_div(tiles_m, per_split), per_split


ONLINE_FINISH = {"BLOCK": 128, "num_warps": 4}
"""Samples of a program that adds up what programs have found of them."""

_BLOCK_ROWS, _BLOCK_PAIRS = 2048, 1 << 22


def online_block(samples: int, components: int) -> tuple[int, int]:
    """Of how many samples and components the backward pass keeps weights at once: an energy needs
    all features before a gradient has its first, and 32 rows of gradients of 4096 features are
    twice the registers of an SM. A matrix of four million is 16 MiB, in the L2 cache of an H100."""
    rows = min(samples, _BLOCK_ROWS)
    columns = _BLOCK_PAIRS // max(rows, PAIRS_PADDING) // 64 * 64
    return rows, min(components, columns)


def gradient_splits(
    samples: int, components: int, elements: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """How many programs share the components of one tile of the samples' gradient, and components
    for each: of few samples the tiles fill no device.

    Args:
        elements: positions times features.
    """
    tile = pairs_gradient_tile(samples, elements, dtype, 1)
    tiles = ceil_div(samples, tile.ROWS) * ceil_div(elements, tile.FEATURES)
    wanted = ceil_div(_configs.enough_programs(device), tiles)
    least = 16 * tile.SUMMED  # fewer, and parts are as much traffic as what they spare
    per_split = max(ceil_div(components, wanted), min(least, components))
    per_split = ceil_div(per_split, tile.SUMMED) * tile.SUMMED
    return ceil_div(components, per_split), per_split


ADD_GRADIENTS = {"BLOCK": 1024, "num_warps": 4}
"""Elements of a program that adds up what programs have found of gradients."""


def sum_weights_tile(positions: int) -> dict[str, int]:
    """For sums of a matrix of weights over one of its roles: a thread has 32 of them in flight."""
    width = between(positions, 1, 8)
    return {"KEPT": 32, "SUMMED": 128 // width, "POSITIONS": width, "num_warps": 4}
