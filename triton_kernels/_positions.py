"""Which positions of which rows contribute, how many, and which is the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Mixture
from torch import Tensor

from ._configs import ceil_div, positions_splits, positions_tile
from ._launch import launch, strided
from ._tiles import load_mask


class Positions(NamedTuple):
    """The contributing positions of one mixture, see `Mixture.contributing`."""

    sample_active: Tensor  # (N, S) uint8
    component_active: Tensor  # (M, S) uint8
    # (4, S) int32: contributing samples and components, and the first index of each
    counts: Tensor
    irregular: Tensor  # (1,) int32, 0: becomes 1 where a kernel of the pairs is out of range


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S"),
        *("rows_per_split", "splits", "counting", "deciding"),
    ],
    do_not_specialize_on_alignment=["counts", "parts"],
)
def _positions_kernel(
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    counts,  # (4, S) int32
    irregular,  # (1,) int32
    parts,  # (splits, 7, S) int32: see `_add`; where there are more splits than one
    sample_start,
    component_start,
    N,
    M,
    S,
    rows_per_split,
    splits,
    counting,  # 1 where the rows are counted, else 0: their parts are added up
    deciding,  # 1 where flags and counts are written
    EXCLUDE_DIAGONAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    blocks = tl.cdiv(S, BLOCK_S)
    split = tl.program_id(0) // blocks
    s = (tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    none = tl.zeros((BLOCK_S,), tl.int32)
    found = (none, none, none, none + N, none + M, none + N, none + M)
    first, end = split * rows_per_split, min((split + 1) * rows_per_split, max(N, M))
    for begin in range(first, first + (end - first) * counting, BLOCK_ROWS):
        index = begin + tl.arange(0, BLOCK_ROWS)[:, None]
        i = load_mask(sample_mask, sample_start + index, s[None, :], _inside(index, s, N, S))
        j = load_mask(component_mask, component_start + index, s[None, :], _inside(index, s, M, S))
        here = (
            tl.sum(i.to(tl.int32), 0),
            tl.sum(j.to(tl.int32), 0),
            tl.sum((i & j).to(tl.int32), 0),
            tl.min(tl.where(i, index, N), 0),
            tl.min(tl.where(j, index, M), 0),
            tl.min(tl.where(i & ~j, index, N), 0),
            tl.min(tl.where(j & ~i, index, M), 0),
        )
        found = _add(found, here)
    to, valid = parts + split * 7 * S + s, (s < S) & (splits > 1)
    for p in tl.static_range(7):
        tl.store(to + p * S, found[p], mask=valid & (counting != 0))
    for other in range(0, splits * (1 - counting)):
        at = parts + other * 7 * S + s
        here = (
            tl.load(at, mask=valid, other=0),
            tl.load(at + S, mask=valid, other=0),
            tl.load(at + 2 * S, mask=valid, other=0),
            tl.load(at + 3 * S, mask=valid, other=0),
            tl.load(at + 4 * S, mask=valid, other=0),
            tl.load(at + 5 * S, mask=valid, other=0),
            tl.load(at + 6 * S, mask=valid, other=0),
        )
        found = _add(found, here)
    samples, components, both, first_i, first_j, alone_i, alone_j = found
    for begin in range(first, first + (end - first) * deciding, BLOCK_ROWS):
        index = begin + tl.arange(0, BLOCK_ROWS)[:, None]
        of_i, of_j = _inside(index, s, N, S), _inside(index, s, M, S)
        i = load_mask(sample_mask, sample_start + index, s[None, :], of_i)
        j = load_mask(component_mask, component_start + index, s[None, :], of_j)
        of_sample = components[None, :] + tl.zeros((BLOCK_ROWS, BLOCK_S), tl.int32)
        of_component = samples[None, :] + tl.zeros((BLOCK_ROWS, BLOCK_S), tl.int32)
        if EXCLUDE_DIAGONAL:
            of_sample -= j.to(tl.int32)
            of_component -= i.to(tl.int32)
        at = index.to(tl.int64) * S + s[None, :]
        tl.store(sample_active + at, (i & (of_sample > 0)).to(tl.uint8), mask=of_i)
        tl.store(component_active + at, (j & (of_component > 0)).to(tl.uint8), mask=of_j)
    write = (s < S) & (split == 0) & (deciding != 0)
    n, i = _met(samples, components, both, first_i, alone_i, N, EXCLUDE_DIAGONAL)
    m, j = _met(components, samples, both, first_j, alone_j, M, EXCLUDE_DIAGONAL)
    tl.store(counts + s, n, mask=write)
    tl.store(counts + S + s, m, mask=write)
    tl.store(counts + 2 * S + s, i, mask=write)
    tl.store(counts + 3 * S + s, j, mask=write)
    tl.store(irregular, 0, mask=tl.program_id(0) + 1 - deciding == 0)


@triton.jit
def _inside(index, s, rows, S):
    return (index < rows) & (s < S)[None, :]


@triton.jit
def _add(a, b):
    """Of two sets of rows, each (BLOCK_S,): how many are active as samples, as components and as
    both; the first sample, the first component, the first that is only a sample, and only a
    component."""
    return (
        a[0] + b[0],
        a[1] + b[1],
        a[2] + b[2],
        tl.minimum(a[3], b[3]),
        tl.minimum(a[4], b[4]),
        tl.minimum(a[5], b[5]),
        tl.minimum(a[6], b[6]),
    )


@triton.jit
def _met(active, partners, both, first, alone, rows, EXCLUDE_DIAGONAL: tl.constexpr):
    """How many active rows have a partner, and the first of them; `rows` where there is none."""
    count = tl.where(partners > 0, active, 0)
    first = tl.where(partners > 0, first, rows)
    if EXCLUDE_DIAGONAL:  # a single partner is none of itself
        count -= tl.where(partners == 1, both, 0)
        first = tl.where(partners == 1, alone, first)
    return count, first


def positions(mixture: Mixture, counts: Tensor | None = None) -> Positions:
    """The contributing positions of a mixture, on its device; the counts (4, S) may be given."""
    m, sample_mask, component_mask = mixture, mixture.sample_mask, mixture.component_mask
    S, device = sample_mask.shape[1], sample_mask.device
    result = Positions(
        torch.empty((m.samples, S), dtype=torch.uint8, device=device),
        torch.empty((m.components, S), dtype=torch.uint8, device=device),
        torch.empty((4, S), dtype=torch.int32, device=device) if counts is None else counts,
        torch.empty(1, dtype=torch.int32, device=device),
    )
    tile = positions_tile(S)
    splits, rows_per_split = positions_splits(max(m.samples, m.components), tile.BLOCK_ROWS)
    several = splits > 1
    parts = torch.empty((splits, 7, S), dtype=torch.int32, device=device) if several else result[2]
    # Together where one program has all rows of its positions.
    for counting, deciding in ((1, 0), (0, 1)) if several else ((1, 1),):
        launch(
            _positions_kernel,
            ceil_div(S, tile.BLOCK_S) * splits,
            strided(sample_mask),
            strided(component_mask),
            *result,
            parts,
            m.sample_rows[0],
            m.component_rows[0],
            m.samples,
            m.components,
            S,
            rows_per_split,
            splits,
            counting,
            deciding,
            EXCLUDE_DIAGONAL=m.exclude_diagonal,
            **tile._asdict(),
        )
    return result
