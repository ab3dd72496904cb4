"""Which positions of which rows contribute, how many, and which is the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Mixture
from torch import Tensor

from ._configs import positions_block
from ._launch import launch, strided
from ._tiles import load_mask


class Positions(NamedTuple):
    """The contributing positions of one mixture, see `Mixture.contributing`."""

    sample_active: Tensor  # (N, S) uint8
    component_active: Tensor  # (M, S) uint8
    # (4, S) int32: contributing samples and components, and the first index of each
    counts: Tensor
    irregular: Tensor  # (1,) int32, 0: becomes 1 where a kernel of the pairs is out of range


@triton.jit
def _contributing(
    mask,
    partner_mask,
    partners,  # (BLOCK_S,) of each position
    active,  # (rows, S) uint8, written
    counts,  # (S,) written
    first,  # (S,) written
    start,
    partner_start,
    rows,
    S,
    s,
    EXCLUDE_DIAGONAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    total = tl.zeros((BLOCK_S,), tl.int32)
    least = tl.zeros((BLOCK_S,), tl.int32) + rows
    for begin in range(0, rows, BLOCK_ROWS):
        index = begin + tl.arange(0, BLOCK_ROWS)[:, None]
        inside = (index < rows) & (s < S)[None, :]
        here = load_mask(mask, start + index, s[None, :], inside)
        others = partners[None, :] + tl.zeros((BLOCK_ROWS, BLOCK_S), tl.int32)
        if EXCLUDE_DIAGONAL:
            theirs = load_mask(partner_mask, partner_start + index, s[None, :], inside)
            others -= theirs.to(tl.int32)
        here = here & (others > 0)
        tl.store(active + index.to(tl.int64) * S + s[None, :], here.to(tl.uint8), mask=inside)
        total += tl.sum(here.to(tl.int32), 0)
        least = tl.minimum(least, tl.min(tl.where(here, index, rows), 0))
    tl.store(counts + s, total, mask=s < S)
    tl.store(first + s, least, mask=s < S)


@triton.jit
def _count(mask, start, rows, S, s, BLOCK_ROWS: tl.constexpr, BLOCK_S: tl.constexpr):
    total = tl.zeros((BLOCK_S,), tl.int32)
    for begin in range(0, rows, BLOCK_ROWS):
        index = begin + tl.arange(0, BLOCK_ROWS)[:, None]
        inside = (index < rows) & (s < S)[None, :]
        here = load_mask(mask, start + index, s[None, :], inside)
        total += tl.sum(here.to(tl.int32), 0)
    return total


@triton.jit(do_not_specialize=["N", "M", "sample_start", "component_start"])
def _positions_kernel(
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    counts,  # (4, S) int32
    irregular,  # (1,) int32
    sample_start,
    component_start,
    N,
    M,
    S,
    EXCLUDE_DIAGONAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    tl.store(irregular, 0)
    samples = _count(sample_mask, sample_start, N, S, s, BLOCK_ROWS, BLOCK_S)
    components = _count(
        component_mask,
        component_start,
        M,
        S,
        s,
        BLOCK_ROWS,
        BLOCK_S,
    )
    _contributing(
        sample_mask,
        component_mask,
        components,
        sample_active,
        counts,
        counts + 2 * S,
        sample_start,
        component_start,
        N,
        S,
        s,
        EXCLUDE_DIAGONAL,
        BLOCK_ROWS,
        BLOCK_S,
    )
    _contributing(
        component_mask,
        sample_mask,
        samples,
        component_active,
        counts + S,
        counts + 3 * S,
        component_start,
        sample_start,
        M,
        S,
        s,
        EXCLUDE_DIAGONAL,
        BLOCK_ROWS,
        BLOCK_S,
    )


def positions(mixture: Mixture) -> Positions:
    """The contributing positions of a mixture, on its device."""
    m, sample_mask, component_mask = mixture, mixture.sample_mask, mixture.component_mask
    S, device = sample_mask.shape[1], sample_mask.device
    result = Positions(
        torch.empty((m.samples, S), dtype=torch.uint8, device=device),
        torch.empty((m.components, S), dtype=torch.uint8, device=device),
        torch.empty((4, S), dtype=torch.int32, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
    )
    block = positions_block(max(m.samples, m.components), S)
    launch(
        _positions_kernel,
        triton.cdiv(S, block["BLOCK_S"]),
        strided(sample_mask),
        strided(component_mask),
        *result,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        S,
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        **block,
    )
    return result
