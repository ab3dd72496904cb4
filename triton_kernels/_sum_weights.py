"""What pairs weigh, added up over one role: for what a row has at a position."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._configs import ceil_div
from ._launch import launch
from ._pairs_configs import sum_weights_tile
from ._tiles import cast


@triton.jit(do_not_specialize=["kept", "summed", "S", "add"])
def sum_weights_kernel(
    weights,  # (kept, summed) by strides, 0 outside of whole tiles
    along_kept,
    along_summed,
    active,  # (summed, S) uint8, or None
    irregular,  # (1,) int32; where CAREFUL, 0: nothing to do
    sums,  # (kept, S) float64, written
    kept,
    summed,
    S,
    add,  # not 0: on top of what is there
    CAREFUL: tl.constexpr,
    KEPT: tl.constexpr,
    SUMMED: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Sums of weights over the rows of a role that contribute at a position, in a fixed order."""
    if CAREFUL:  # noqa: SIM102 (decided at compile time)
        if tl.load(irregular) == 0:
            return
    blocks = tl.cdiv(S, POSITIONS)
    i = tl.program_id(0) // blocks * KEPT + tl.arange(0, KEPT)
    s = (tl.program_id(0) % blocks) * POSITIONS + tl.arange(0, POSITIONS)
    total = tl.zeros((KEPT, POSITIONS), tl.float64)
    for begin in range(0, summed, SUMMED):
        j = begin + tl.arange(0, SUMMED)
        at = i.to(tl.int64)[:, None] * along_kept + j.to(tl.int64)[None, :] * along_summed
        found = tl.load(weights + at, mask=(i < kept)[:, None] & (j < summed)[None, :], other=0.0)
        if active is not None:
            at = j.to(tl.int64)[:, None] * S + s[None, :]
            here = tl.load(active + at, mask=(j < summed)[:, None] & (s < S)[None, :], other=0) != 0
            found = tl.where(here[None, :, :], found[:, :, None], 0.0)
            total += cast(tl.sum(found, 1), tl.float64)
        else:
            total += cast(tl.sum(found, 1), tl.float64)[:, None]
    to = sums + i.to(tl.int64)[:, None] * S + s[None, :]
    inside = (i < kept)[:, None] & (s < S)[None, :]
    before = tl.load(to, mask=inside & (add != 0), other=0.0)
    tl.store(to, before + total, mask=inside)


def sum_weights(
    weights: Tensor,  # (kept, summed), both sizes or more, by any strides
    active: Tensor | None,  # (summed, S) uint8
    irregular: Tensor,
    to: Tensor,  # (kept, S) float64, or (kept,) where there are no flags
    summed: int,
    *,
    add: bool = False,
    careful: bool = False,
) -> None:
    """Sums over the rows of a role that contribute at a position; to what is there where `add`."""
    kept, S = len(to), 1 if active is None else active.shape[1]
    tile = sum_weights_tile(S)
    launch(
        sum_weights_kernel,
        ceil_div(kept, tile["KEPT"]) * ceil_div(S, tile["POSITIONS"]),
        weights,
        *weights.stride(),
        active,
        irregular,
        to,
        kept,
        summed,
        S,
        int(add),
        CAREFUL=careful,
        **tile,
    )
