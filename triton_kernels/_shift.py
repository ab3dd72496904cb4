"""Of the components of a mixture the row that weighs most, column by column: what differences are
measured from.

A difference of two numbers that were rounded relative to a third keeps its digits where the third
is no larger than they are. Measured in the deviations of each component, the value of the component
with the least deviation is: whatever it costs another row, that row's own value costs it as much.
"""

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Mixture
from torch import Tensor

from ._configs import ceil_div, rows_tile
from ._launch import accumulator, launch, strided, unit
from ._tiles import contributing, load, multiple, position


@triton.jit(do_not_specialize=["start", "rows", "S", "E", "tiles"])
def shift_kernel(
    x,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    active,  # (M, S) uint8
    shift,  # (S, E), written
    start,
    rows,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    E = multiple(E, UNIT)
    tile, s, _ = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    least = tl.full((ROWS, FEATURES), float("inf"), ACC)
    found = tl.zeros((ROWS, FEATURES), tl.int32)
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        use = contributing(active, index, s, S, rows) & (e < E)
        row = start + index
        sigma = load(stds, row, s, e, use, ACC)
        sigma = tl.abs(sigma)
        better = use & (sigma < least)
        least = tl.where(better, sigma, least)
        found = tl.where(better, row, found)
    stream = tl.arange(0, ROWS)[:, None]
    here = stream == tl.argmin(least, 0)[None, :]
    row = tl.sum(tl.where(here, found, 0), 0)[None, :]
    some = (tl.min(least, 0)[None, :] < float("inf")) & (e < E)
    value = load(x, row, s, e, some, ACC)
    # From an infinite row nothing is a difference.
    value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
    tl.store(shift + (s.to(tl.int64) * E + e), value.to(shift.dtype.element_ty), mask=e < E)


def shift_of(x: Tensor, stds: Tensor, mixture: Mixture, component_active: Tensor) -> Tensor:
    """(S, E) in the dtype of x: at each position and feature the value of x in the contributing row
    of least stds, 0 where there is none or it is infinite."""
    _, S, E = x.shape
    shift = x.new_empty((S, E))
    tile = rows_tile(S, E, x, stds)
    tiles = ceil_div(E, tile.FEATURES)
    start, stop = mixture.component_rows
    launch(
        shift_kernel,
        tiles * S,
        strided(x),
        strided(stds),
        component_active,
        shift,
        start,
        stop - start,
        S,
        E,
        tiles,
        UNIT=unit(E),
        ACC=accumulator(torch.promote_types(x.dtype, stds.dtype)),
        **tile._asdict(),
    )
    return shift
